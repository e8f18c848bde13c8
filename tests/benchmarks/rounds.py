"""Contestants in one process, by turns: what the machine's moods do to one they do to the others; and their tables."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """The median and the quartiles around it."""

    low: float
    median: float
    high: float


def alternate(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each contestant returns in each round; another one begins every time."""
    names = list(contestants)
    measured: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            measured[name].append(contestants[name]())
    return measured


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Round by round: the two of a round met the same mood."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: list[float]) -> Spread:
    return Spread(*np.quantile(values, [0.25, 0.5, 0.75]).tolist())


def cell(values: list[float], form: str) -> str:
    """`median (quartile - quartile)`, each number in the format `form`."""
    low, median, high = spread(values)
    return f"{median:{form}} ({low:{form}} - {high:{form}})"


def print_table(*rows: list[str]) -> None:
    """Rows of cells, the first one the head; the first column is flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for name, *others in rows:
        cells = (f"{other:>{width}}" for other, width in zip(others, widths[1:], strict=True))
        print("  ".join([f"{name:{widths[0]}}", *cells]))
