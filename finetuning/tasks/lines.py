"""How the windows of a batch's examples lie in lines of tokens, which are what the model sees.

R rows of the plan, E examples of a batch, L tokens in a line.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretraining.data.packing import Example, layout, pack_tokens
from pretraining.data.plan import pack

# What an example has for each of its tokens, and for each of its windows.
OF_TOKENS = ("input_ids", "token_type_ids", "labels", "word_ids")
OF_WINDOWS = ("start_positions", "end_positions")


class Place(NamedTuple):
    """Where a window lies in a batch."""

    example: int
    window: int
    line: int
    column: int
    """Which of the line's windows it is."""
    start: int
    """Its first token in the line."""


@dataclass(frozen=True)
class Lines:
    """The windows of a batch's E examples as lines of tokens: what the model sees."""

    lines: list[list[Example]]
    """The windows of each line; "example" is the number of a window's example in the batch, from 1."""
    places: list[Place]
    """In the order of examples and windows."""
    index: list[int]
    """(E,): the number of each example in its split."""

    def windows_of(self, x: Tensor) -> list[list[Tensor]]:
        """What a tensor (lines, L, ...) has for the tokens of each window of each example."""
        found: list[list[Tensor]] = [[] for _ in self.index]
        for at in self.places:
            size = len(self.lines[at.line][at.column]["input_ids"])
            found[at.example].append(x[at.line, at.start : at.start + size])
        return found

    def sequences_of(self, columns: int) -> list[list[int]]:
        """The places of each example's windows among all sequences of the batch, a line after another.

        Args:
            columns: places for sequences in a line.
        """
        found: list[list[int]] = [[] for _ in self.index]
        for at in self.places:
            found[at.example].append(at.line * columns + at.column)
        return found

    def pack(self, length: int, padding: int) -> dict[str, Tensor]:
        """The model's inputs but for targets, in lines of `length` tokens: each window is a sequence."""
        rows, sequences = self.lines, max(1, *map(len, self.lines))
        owners = np.zeros((len(rows), sequences), dtype=np.int64)
        for line, windows in zip(owners, rows, strict=True):
            line[: len(windows)] = [int(window["example"]) for window in windows]
        return {
            "input_ids": pack_tokens(rows, "input_ids", length, padding),
            "token_type_ids": pack_tokens(rows, "token_type_ids", length, 0),
            **layout(rows, "input_ids", length, sequences),
            "example_ids": torch.from_numpy(owners),
        }


def fill_lines(lengths: np.ndarray, line_length: int) -> list[list[int]]:
    """As `pack`, which a row that is one line, as most are, does not need: the longest window first."""
    if 0 < lengths.sum() <= line_length:
        return [np.argsort(-lengths, kind="stable").tolist()]
    return pack(lengths, line_length)


def split_windows(example: Example) -> list[Example]:
    """The windows of an example; what it has of each token or of each window goes with them."""
    of_windows = [name for name in OF_WINDOWS if name in example]
    if len(example["window_lengths"]) == 1:
        return [{**example, "window": np.array(0), **{name: example[name][0] for name in of_windows}}]
    of_tokens = [
        name for name in OF_TOKENS if name in example and np.ndim(example[name])
    ]  # a label may be of the whole
    windows: list[Example] = []
    start = 0
    for number, size in enumerate(example["window_lengths"].tolist()):
        tokens = {name: example[name][start : start + size] for name in of_tokens}
        windows.append({"window": np.array(number), **tokens, **{name: example[name][number] for name in of_windows}})
        start += size
    return windows


def lay_out(rows: list[list[Example]], length: int) -> Lines:
    """The windows of R rows of the plan in lines of `length` tokens.

    A row is one line, but that of an example which needs several. One without examples is none; of nothing but such
    rows one line stands for all.
    """
    lines: list[list[Example]] = []
    places: list[Place] = []
    index: list[int] = []
    for row in rows:
        windows: list[Example] = []
        for example in row:
            index.append(int(example["index"]))
            windows += [{**window, "example": np.array(len(index))} for window in split_windows(example)]
        lengths = np.array([len(window["input_ids"]) for window in windows], dtype=np.int64)
        for members in fill_lines(lengths, length):
            line = [windows[member] for member in members]
            starts = np.cumsum([0, *(len(window["input_ids"]) for window in line)])
            for column, (window, start) in enumerate(zip(line, starts, strict=False)):
                owner, number = int(window["example"]) - 1, int(window["window"])
                places.append(Place(owner, number, len(lines), column, int(start)))
            lines.append(line)
    return Lines(lines or [[]], sorted(places), index)
