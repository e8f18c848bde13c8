"""Windows of a block of texts in packed rows, all at once: no text is a Python object on its way to the model.

N texts (or pairs), W windows, T tokens of all windows, R rows of L tokens, E the most windows in a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetuning.windows import Flat, ragged
from pretraining.data.plan import pack

SHORTEST = 32  # tokens of a row at least: attention over fewer is no faster
TOKENS = 2048  # of a batch, if no number of rows is given


@dataclass(frozen=True)
class Rows:
    """Some packed rows as tensors, and where each window lies in them."""

    tensors: dict[str, Tensor]
    windows: np.ndarray
    """The windows in these rows (w,)."""
    row: np.ndarray
    """The row of each (w,)."""
    place: np.ndarray
    """Which one of its row it is (w,): 0, 1, 2 ..."""
    start: np.ndarray
    """Where it begins in its row (w,)."""


def pack_by_length(sizes: np.ndarray) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Rows for all windows: the tokens that some have room for, and the windows of each, the longest one first.

    The time of attention grows with the length of rows, so the longest window that is left says how long the next ones
    are. Each of them has a window of more than half of that, with shorter ones beside it.

    Args:
        sizes: tokens of each window (W,).
    """
    rest = np.arange(len(sizes))
    while len(rest):
        length = max(SHORTEST, int(sizes[rest].max()))
        rows = [rest[row] for row in pack(sizes[rest], length)]
        if length > SHORTEST:
            longest = sizes[[row[0] for row in rows]]  # in descending order, as `pack` goes on
            count = int((2 * longest > length).sum())
        else:
            count = len(rows)
        yield length, rows[:count]
        rest = np.concatenate([rest[:0], *rows[count:]])


def pack_rows(flat: Flat, rows: int | None, pad: int) -> Iterator[Rows]:
    """The windows in packed rows, `rows` of them at a time, or as many as have TOKENS tokens together."""
    for length, packed in pack_by_length(flat.sizes):
        at_a_time = rows or max(1, TOKENS // length)
        for first in range(0, len(packed), at_a_time):
            members = packed[first : first + at_a_time]
            windows = np.concatenate(members)
            counts = np.array([len(row) for row in members])
            row = np.repeat(np.arange(len(members)), counts)
            place = ragged(np.zeros_like(counts), counts)
            sizes = flat.sizes[windows]
            before = np.cumsum(sizes) - sizes  # tokens of all windows before, in earlier rows too
            start = before - before[np.cumsum(counts) - counts][row]
            yield Rows(to_tensors(flat, windows, row, place, start, length, pad), windows, row, place, start)


def to_tensors(
    flat: Flat, windows: np.ndarray, row: np.ndarray, place: np.ndarray, start: np.ndarray, length: int, pad: int
) -> dict[str, Tensor]:
    """What `pretraining.data.packing.layout` makes of the same rows, without a loop over windows."""
    rows, most = int(row[-1]) + 1, int(place.max()) + 1
    sizes = flat.sizes[windows]
    to = ragged(row * length + start, sizes)  # places in the flattened rows
    of = ragged(flat.starts[windows], sizes)
    ids = np.full(rows * length, pad, dtype=np.int64)
    types, sequence_ids, positions = (np.zeros(rows * length, dtype=np.int64) for _ in range(3))
    ids[to], types[to] = flat.input_ids[of], flat.token_type_ids[of]
    sequence_ids[to] = np.repeat(place + 1, sizes)
    positions[to] = ragged(np.zeros_like(sizes), sizes)
    starts = np.zeros((rows, most), dtype=np.int64)
    starts[row, place] = start
    flattened = {
        "input_ids": ids,
        "token_type_ids": types,
        "sequence_ids": sequence_ids,
        "position_ids": positions,
    }
    tensors = {name: torch.from_numpy(values.reshape(rows, length)) for name, values in flattened.items()}
    return tensors | {"sequence_starts": torch.from_numpy(starts)}


def over_windows(values: np.ndarray, owners: np.ndarray, pooling: str) -> np.ndarray:
    """The mean or the largest of each text's windows: (W, C) -> (N, C)."""
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))
    if pooling == "max":
        return np.maximum.reduceat(values, firsts)
    counts = np.diff(firsts, append=len(owners))
    return np.add.reduceat(values, firsts) / counts[:, None]
