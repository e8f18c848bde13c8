"""A text that is longer than the model reads becomes several windows, each with some tokens of the one before it.

Of a pair the longer side is cut into windows, or the second one where a question stands before its text; each window
has the other side whole.

N examples, of one text or of a pair (S sides); W windows of E of them, T tokens of all these windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from finetuning.prepared import PreparedTexts
from finetuning.settings import WindowSettings


def ragged(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of each span, one span behind the other: (total,)."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)


@dataclass(frozen=True)
class Windows:
    """How the texts of N examples are cut."""

    pairs: bool
    side: np.ndarray
    """(N,): which side is cut, 0 or 1."""
    whole: np.ndarray
    """(N,): tokens of the other side, which each window has."""
    space: np.ndarray
    """(N,): tokens of the side that is cut in one window."""
    covered: np.ndarray
    """(N,): tokens of the side that is cut in all windows together."""
    counts: np.ndarray
    """(N,): windows."""
    unread: np.ndarray
    """(N,): tokens that no window has."""
    stride: int

    @classmethod
    def of(cls, lengths: np.ndarray, pairs: bool, settings: WindowSettings, cut_second: bool = False) -> "Windows":
        """The windows of examples with so many tokens on each side (N, 2).

        Args:
            cut_second: the first side is a question, which is never cut into windows.
        """
        assert settings.stride is not None, "resolved"
        numbers = np.arange(len(lengths))
        side = np.ones(len(lengths), dtype=np.int64) if cut_second else lengths.argmax(1)
        room = settings.sequence_length - (3 if pairs else 2)
        # The side that each window repeats may take half of it at most.
        whole = np.minimum(lengths[numbers, 1 - side], room // 2)
        space, long = room - whole, lengths[numbers, side]
        step = space - settings.stride
        counts = np.minimum(1 + -(-np.maximum(long - space, 0) // step), settings.windows)
        covered = np.minimum(long, space + (counts - 1) * step)
        return cls(pairs, side, whole, space, covered, counts, lengths.sum(1) - whole - covered, settings.stride)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of all windows of each example, special ones included: (N,)."""
        special = 3 if self.pairs else 2
        return self.counts * (self.whole + special) + self.covered + (self.counts - 1) * self.stride

    def spans(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `cut` says of several examples, window behind window: the first tokens (W, 2) and their numbers (W, 2).

        Args:
            examples: (E,).
        """
        counts = self.counts[examples]
        owners = np.repeat(examples, counts)  # (W,)
        begins = (np.arange(len(owners)) - np.repeat(counts.cumsum() - counts, counts)) * (self.space - self.stride)[
            owners
        ]
        side, windows = self.side[owners], np.arange(len(owners))
        first = np.zeros((len(owners), 2), dtype=np.int64)
        sizes = np.repeat(self.whole[owners, None], 2, axis=1)
        first[windows, side] = begins
        sizes[windows, side] = np.minimum(self.space[owners], self.covered[owners] - begins)
        return first, sizes

    def cut(self, example: int) -> Iterator[tuple[slice, slice]]:
        """The tokens of the first and of the second side that each window of an example has."""
        space, covered = int(self.space[example]), int(self.covered[example])
        whole = slice(0, int(self.whole[example]))
        for window in range(int(self.counts[example])):
            first = window * (space - self.stride)
            part = slice(first, min(first + space, covered))
            yield (whole, part) if self.side[example] else (part, whole)


@dataclass(frozen=True)
class Flat:
    """All windows of some examples, one behind the other."""

    input_ids: np.ndarray
    """(T,)"""
    token_type_ids: np.ndarray
    """(T,)"""
    sizes: np.ndarray
    """(W,): tokens of each window, special ones included."""
    owners: np.ndarray
    """(W,): the example that it is a window of; windows of an example stand together."""
    source: np.ndarray
    """(T,): where in the texts' tokens each one stands; -1: it is a special token."""

    @property
    def starts(self) -> np.ndarray:
        """Where each window begins: (W,)."""
        return np.cumsum(self.sizes) - self.sizes


def flatten(data: PreparedTexts, windows: Windows, examples: np.ndarray, cls: int, sep: int) -> Flat:
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP], of each window of some examples (E,).

    All at once: texts are short, and arrays of a few tokens slow.
    """
    owners = np.repeat(examples, windows.counts[examples])  # (W,)
    first, lengths = windows.spans(examples)  # (W, 2): of each side where it begins in its text, and its tokens
    sizes = lengths.sum(1) + 1 + data.sides  # [CLS], and [SEP] behind each text
    starts = np.cumsum(sizes) - sizes
    total = int(sizes.sum())
    ids, types = np.full(total, sep, dtype=np.int64), np.zeros(total, dtype=np.int64)
    source = np.full(total, -1, dtype=np.int64)
    ids[starts] = cls
    at = starts + 1
    for side in range(data.sides):
        size = lengths[:, side]
        to = ragged(at, size)
        source[to] = ragged(data.bounds[owners * data.sides + side] + first[:, side], size)
        ids[to] = data.tokens[source[to]]
        if side:
            types[ragged(at, size + 1)] = 1
        at = at + size + 1
    return Flat(ids, types, sizes, owners, source)
