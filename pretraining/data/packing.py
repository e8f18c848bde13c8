"""Examples to tensors: the packed layout, written once for every objective.

R rows, L tokens in a row, E the most examples in a row. Examples lie one behind the other, padding only at a row's end.
"""

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
"""The label of what is no target."""

Example = dict[str, np.ndarray]


def pack_tokens(rows: list[list[Example]], key: str, length: int, fill: int) -> Tensor:
    """The token arrays `key` of each row's examples, one after another: (R, L); `fill` where nothing is."""
    packed = np.full((len(rows), length), fill, dtype=np.int64)
    for row, examples in zip(packed, rows, strict=True):
        if examples:
            tokens = np.concatenate([example[key] for example in examples])
            row[: len(tokens)] = tokens
    return torch.from_numpy(packed)


def pack_values(rows: list[list[Example]], key: str, sequences: int, fill: int = IGNORED) -> Tensor:
    """The one value `key` of each example: (R, E)."""
    packed = np.full((len(rows), sequences), fill, dtype=np.int64)
    for row, examples in zip(packed, rows, strict=True):
        row[: len(examples)] = [int(example[key]) for example in examples]
    return torch.from_numpy(packed)


def layout(rows: list[list[Example]], key: str, length: int, sequences: int) -> dict[str, Tensor]:
    """Where each example lies, by the lengths of its token array `key`.

    Returns:
        `sequence_ids` (R, L): 1, 2, 3 ... for the examples of a row, 0 for padding; `position_ids` (R, L), counted
        anew in each example; `sequence_starts` (R, E): the first token of each example, 0 where there is none;
        `cu_seq_lens_q` and `cu_seq_lens_k` (R * (E + 1) + 1,): where each example and each row's padding begins in the
        flattened rows, for kernels that take no mask; the same number of bounds whatever the rows hold.
    """
    ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    starts = np.zeros((len(rows), sequences), dtype=np.int64)
    # What a row lacks in examples ends where the row does: sequences of no token, which kernels pass over. The last
    # column, always the row's end, makes the padding a sequence of its own.
    ends = np.full((len(rows), sequences + 1), length, dtype=np.int32)
    for r, examples in enumerate(rows):
        start = 0
        for i, example in enumerate(examples):
            end = start + len(example[key])
            ids[r, start:end] = i + 1  # 0 is padding
            positions[r, start:end] = np.arange(end - start)
            starts[r, i], ends[r, i] = start, end
            start = end
    row_starts = np.arange(len(rows), dtype=np.int32)[:, None] * np.int32(length)  # in the flattened rows (R, 1)
    bounds = np.append(np.int32(0), ends + row_starts)
    return {
        "sequence_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "sequence_starts": torch.from_numpy(starts),
        "cu_seq_lens_q": torch.from_numpy(bounds),
        "cu_seq_lens_k": torch.from_numpy(bounds.copy()),  # a tensor of its own: nobody may change both by one
    }
