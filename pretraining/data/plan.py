"""Which examples form step N, in which rows: a function of (seed, epoch) and of the examples' lengths alone.

N examples, S sides (one; or source and target). A row has room for a number of tokens on each side, a step has a number
of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pretraining.data import draws

# Of `pack_sides` and `choose_row_lengths`:
IMBALANCE = 3  # what a token of room on one side alone costs beside one that all sides have
COMPACT_BELOW = 0.7  # lengths that are used up are forgotten once fewer than this share are left
SLACK = 0.01  # share of the rows' tokens that a shorter row may leave empty beyond the best row
SAMPLE = 2048  # examples on which row lengths are tried
# Room on the shorter side beyond its share: sentences of one length leave a remainder in most rows.
EXTRA_ROOM = (1.0, 1.03, 1.06)


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
    """Best fit decreasing (Krell 2021): the longest example first, each into the fullest row that has room for it.

    Args:
        lengths: tokens of each example (N,), none above `row_length`.

    Returns:
        The indices of the examples of each row.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # the rows that have so many tokens of room
    # Bit r is set where some row has r tokens of room, so that the fullest row that fits is the lowest bit from the
    # example's length on: a few instructions, where a search over rows would be quadratic.
    rooms = 0
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


def pack_sides(lengths: np.ndarray, row_lengths: tuple[int, ...]) -> list[list[int]]:
    """Row by row: next comes the example that leaves the least room, and room most alike on all sides.

    An example lies in one row on every side, as a sentence and its translation do. A row that has room for short
    sources and long targets alone would find few (Panigrahy 2011: bins one by one, by what is left of them).

    Args:
        lengths: tokens of each example on each side (N, S), none above `row_lengths` (S,).

    Returns:
        The indices of the examples of each row.
    """
    # Examples of equal lengths are one kind: (kinds, S) is compared for each choice, not (N, S).
    kinds, kind, counts = np.unique(lengths, axis=0, return_inverse=True, return_counts=True)
    waiting = np.split(np.argsort(kind.ravel(), kind="stable"), counts.cumsum()[:-1])  # the examples of each kind
    rows: list[list[int]] = []
    while len(kinds):
        row: list[int] = []
        room = np.array(row_lengths)  # (S,)
        while True:
            left = room - kinds  # (kinds, S)
            least = left.min(1)
            cost = left.sum(1) + IMBALANCE * (left.max(1) - least)
            cost[(least < 0) | (counts == 0)] = np.iinfo(cost.dtype).max
            best = int(cost.argmin())
            if least[best] < 0 or not counts[best]:
                break
            counts[best] -= 1
            row.append(int(waiting[best][counts[best]]))
            room = left[best]
        rows.append(row)
        if (counts > 0).sum() <= COMPACT_BELOW * len(counts):
            remaining = np.flatnonzero(counts)
            kinds, counts, waiting = kinds[remaining], counts[remaining], [waiting[i] for i in remaining]
    return rows


def choose_row_lengths(lengths: np.ndarray, longest: np.ndarray, row_length: int | None) -> tuple[int, ...]:
    """Tokens of a row on each side: `row_length` on the longer one, on the others as their share is, or a bit more.

    None: of the longest example's tokens, rounded up, and of powers of two and what lies halfway, up to four times as
    many, the shortest that leaves at most SLACK more of the rows empty than the best one does; short rows are what
    attention computes fastest.

    Args:
        lengths: of the examples that are packed (N, S).
        longest: of other examples, for which rows must have room too (S,).
    """
    longest, mean = np.maximum(lengths.max(0), longest), lengths.mean(0)  # (S,)
    sample = lengths[np.argsort(draws.hash_key(draws.SUBSET, np.arange(len(lengths))), kind="stable")[:SAMPLE]]
    most = int(longest.max())
    sizes = [size for power in range(3, 20) for size in (2**power, 3 * 2 ** (power - 1)) if most <= size <= 4 * most]
    sizes = [row_length] if row_length else sorted({-(-most // 8) * 8, *sizes})
    candidates: list[tuple[float, tuple[int, ...]]] = []  # of each size the best fill, and the lengths that give it
    for size in sizes:
        sides = size * mean / mean.max()
        shares = [np.where(mean == mean.max(), size, np.round(sides * extra)) for extra in EXTRA_ROOM]
        rows = {tuple(np.maximum(share, longest).astype(int).tolist()) for share in shares}
        candidates.append(max((sample.sum() / (len(pack_sides(sample, row)) * sum(row)), row) for row in rows))
    return next(row for fill, row in candidates if fill >= max(candidates)[0] - SLACK)


def make_plan(
    index: np.ndarray,
    lengths: np.ndarray,
    row_lengths: tuple[int, ...],
    rows_per_step: Callable[[int], int],
    window: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
) -> Plan:
    """Packs the epoch's examples, in an order drawn from (seed, epoch), within windows of `window` examples.

    Args:
        index: the epoch's examples (N,).
        lengths: tokens of each (N,), or on each side (N, S).
        row_lengths: tokens of a row on each side (S,).
        rows_per_step: the rows of the epoch's step 0, 1, ...
        shuffle: False keeps the examples' order between windows (evaluation).
    """
    lengths = lengths.reshape(len(lengths), -1)  # (N, S)
    assert (lengths <= row_lengths).all(), "an example is longer than a row"
    order = np.arange(len(lengths))
    if shuffle:
        # By a hash of each one's own number: which of two comes first does not depend on what else is there.
        order = np.argsort(draws.hash_key(seed, epoch, draws.PERMUTATION, index), kind="stable")
    rows: list[np.ndarray] = []  # each the places of its examples in `index`
    # A window bounds how far packing moves an example from its place in the drawn order.
    for first in range(0, len(order), window):
        members = order[first : first + window]
        sizes = lengths[members]
        packed = pack(sizes[:, 0], *row_lengths) if len(row_lengths) == 1 else pack_sides(sizes, row_lengths)
        # Packing sorts by length: without this the first steps would be all long examples.
        row_order = draws.hash_key(seed, epoch, draws.ROW_ORDER, first, np.arange(len(packed)))
        rows += [members[packed[place]] for place in np.argsort(row_order, kind="stable")]
    row_sizes = np.array([len(row) for row in rows])
    order = np.concatenate(rows)
    offsets = np.concatenate([[0], row_sizes.cumsum()])  # (rows + 1,)
    bounds = [0]  # (steps + 1,)
    while bounds[-1] < len(rows):
        bounds.append(min(bounds[-1] + rows_per_step(len(bounds) - 1), len(rows)))
    tokens = np.concatenate([[0], lengths[order].sum(1).cumsum()])  # (N + 1,): before each example of the order
    return Plan(
        examples=index[order],
        offsets=offsets,
        bounds=np.array(bounds),
        tokens_before=tokens[offsets[bounds]],
        fill=float(lengths.sum() / (len(rows) * sum(row_lengths))),
        sequences_per_row=int(row_sizes.max()),
    )


def share(rows: list[np.ndarray], rank: int, ranks: int, micro_batch: int) -> list[list[np.ndarray]]:
    """A rank's part of a step: its micro-batches of rows; empty rows fill up what the cut leaves over.

    Every rank gets the same number of micro-batches of as many rows, so that all reduce together and, where a row's
    shape is its own, shapes stay.
    """
    per_round = ranks * micro_batch  # rows that all ranks compute at one time
    empty = np.empty(0, dtype=np.int64)
    padded = rows + [empty] * (-len(rows) % per_round)
    return [
        padded[first + rank * micro_batch : first + (rank + 1) * micro_batch]
        for first in range(0, len(padded), per_round)
    ]
