"""Which examples form step N, in which rows: a function of (seed, epoch) and of the examples' lengths alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pretraining.data import draws


@dataclass(frozen=True)
class Plan:
    """One epoch. Row r holds `examples[offsets[r]:offsets[r + 1]]`, step s the rows `bounds[s]` to `bounds[s + 1]`."""

    examples: np.ndarray
    offsets: np.ndarray
    bounds: np.ndarray
    """The last step may have fewer rows than it should."""
    tokens_before: np.ndarray
    """The epoch's tokens before each step, padding not counted; ends with all of them."""
    fill: float
    """Share of the rows' tokens that is no padding."""
    sequences_per_row: int
    """The most examples in one row."""

    @property
    def steps(self) -> int:
        return len(self.bounds) - 1

    def step(self, step: int) -> list[np.ndarray]:
        """The rows of a step, each the indices of its examples."""
        rows = range(self.bounds[step], self.bounds[step + 1])
        return [self.examples[self.offsets[r] : self.offsets[r + 1]] for r in rows]


def pack(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Best fit decreasing: the longest example first, each into the fullest row that has room for it.

    Args:
        lengths: tokens of each example, none above `row_length`.

    Returns:
        The indices of the examples of each row.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    rooms = 0  # bit r is set where some row has r tokens of room
    for example in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[example])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = row_length, len(rows)
            rows.append([])
        rows[row].append(example)
        if room > length:
            by_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return rows


def make_plan(
    index: np.ndarray,
    lengths: np.ndarray,
    row_length: int,
    rows_per_step: Callable[[int], int],
    window: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
) -> Plan:
    """Packs the epoch's examples, in an order drawn from (seed, epoch), within windows of `window` examples.

    Args:
        index: the epoch's examples (N,).
        lengths: tokens of each (N,).
        rows_per_step: the rows of the epoch's step 0, 1, ...
        shuffle: False keeps the examples' order between windows (evaluation).
    """
    assert lengths.max() <= row_length, "an example is longer than a row"
    order = np.arange(len(lengths))
    if shuffle:
        order = np.argsort(draws.mix(seed, epoch, draws.PERMUTATION, index), kind="stable")
    packed: list[np.ndarray] = []
    for first in range(0, len(order), window):
        members = order[first : first + window]
        rows = [members[row] for row in pack(lengths[members], row_length)]
        # Packing sorts by length: without this the first steps would be all long examples.
        places = np.argsort(draws.mix(seed, epoch, draws.ROW_ORDER, first, np.arange(len(rows))), kind="stable")
        packed.extend(rows[place] for place in places)
    sizes = np.array([len(row) for row in packed])
    order = np.concatenate(packed)
    offsets = np.concatenate([[0], sizes.cumsum()])
    bounds = [0]
    while bounds[-1] < len(packed):
        bounds.append(min(bounds[-1] + rows_per_step(len(bounds) - 1), len(packed)))
    before = np.concatenate([[0], lengths[order].cumsum()])  # tokens before each place in the order
    return Plan(
        examples=index[order],
        offsets=offsets,
        bounds=np.array(bounds),
        tokens_before=before[offsets[bounds]],
        fill=float(lengths.sum() / (len(packed) * row_length)),
        sequences_per_row=int(sizes.max()),
    )


def share(rows: list[np.ndarray], rank: int, ranks: int, micro_batch: int) -> list[list[np.ndarray]]:
    """A rank's part of a step: its micro-batches of rows; empty rows fill up what the cut leaves over.

    Every rank gets the same number of micro-batches of the same size, so that all reduce together and shapes stay.
    """
    per_round = ranks * micro_batch
    empty = np.empty(0, dtype=np.int64)
    padded = rows + [empty] * (-len(rows) % per_round)
    return [
        padded[first + rank * micro_batch : first + (rank + 1) * micro_batch]
        for first in range(0, len(padded), per_round)
    ]
