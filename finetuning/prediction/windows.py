"""Texts of a block as windows in packed rows, all at once: no text is a Python object on its way to the model.

N texts (or pairs) of S sides, W windows, T tokens of all windows, R rows of L tokens, E the most windows in a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetuning.prepared import PreparedTexts
from finetuning.windows import Windows
from pretraining.data.plan import pack


def ragged(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of each span, one span behind the other: (total,)."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)


@dataclass(frozen=True)
class Flat:
    """All windows of a block, one behind the other."""

    input_ids: np.ndarray
    """(T,)"""
    token_type_ids: np.ndarray
    """(T,)"""
    sizes: np.ndarray
    """(W,): tokens of each window, special ones included."""
    owners: np.ndarray
    """(W,): the text that it is a window of; windows of a text stand together."""
    source: np.ndarray
    """(T,): where in the texts' tokens each one stands; -1: it is a special token."""

    @property
    def starts(self) -> np.ndarray:
        """Where each window begins: (W,)."""
        return np.cumsum(self.sizes) - self.sizes


def cut(data: PreparedTexts, windows: Windows, cls: int, sep: int) -> Flat:
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP], of each window."""
    owners = np.repeat(np.arange(len(windows.counts)), windows.counts)  # (W,)
    number = ragged(np.zeros_like(windows.counts), windows.counts)  # of the window in its text
    first = number * (windows.space[owners] - windows.stride)
    part = np.minimum(first + windows.space[owners], windows.covered[owners]) - first
    second_side = windows.side[owners] == 1
    whole = windows.whole[owners]
    # Of each side of each window: where it begins in its text, and how many tokens it has.
    begins = np.stack([np.where(second_side, 0, first), np.where(second_side, first, 0)], 1)  # (W, 2)
    lengths = np.stack([np.where(second_side, whole, part), np.where(second_side, part, whole)], 1)
    sizes = lengths.sum(1) + (3 if windows.pairs else 2)
    starts = np.cumsum(sizes) - sizes
    total = int(sizes.sum())
    ids, types = np.empty(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    source = np.full(total, -1, dtype=np.int64)
    text_starts = data.bounds[:-1].reshape(-1, data.sides)[owners]  # (W, S)
    ids[starts] = cls
    at = starts + 1
    for side in range(data.sides):
        to = ragged(at, lengths[:, side])
        source[to] = ragged(text_starts[:, side] + begins[:, side], lengths[:, side])
        ids[to] = data.tokens[source[to]]
        ids[at + lengths[:, side]] = sep
        if side:
            types[ragged(at, lengths[:, side] + 1)] = 1
        at = at + lengths[:, side] + 1
    return Flat(ids, types, sizes, owners, source)


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


def pack_rows(flat: Flat, length: int, rows: int, pad: int) -> Iterator[Rows]:
    """The windows in rows of `length` tokens, or of as many as the longest window has; `rows` of them at a time."""
    length = max(length, int(flat.sizes.max()))
    packed = pack(flat.sizes, length)
    for first in range(0, len(packed), rows):
        members = packed[first : first + rows]
        counts = np.array([len(row) for row in members])
        windows = np.concatenate(members).astype(np.int64)
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
