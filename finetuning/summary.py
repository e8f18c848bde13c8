"""What the scores of several runs say together, as numbers and as Markdown."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev

from pretraining.errors import UserError, one_line


def read_metrics(folder: Path) -> dict[str, float]:
    """The metrics of a finished run, those of single classes left out; null is NaN.

    Held-out ones have their plain names; those of a test split begin with test_.
    """
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): delete it, and the same command writes it anew."
        ) from error
    return {
        name.removeprefix("eval_"): math.nan if value is None else value
        for name, value in results.items()
        if name.startswith(("eval_", "test_")) and " " not in name
    }


def spread(values: list[float]) -> float:
    """The standard deviation of a sample; NaN of one value."""
    return stdev(values) if len(values) > 1 else math.nan


def compare(first: list[float], second: list[float]) -> tuple[float, float]:
    """The difference of the means, and its standard error (Welch 1947); NaN of single runs."""
    error = math.sqrt(sum(spread(values) ** 2 / len(values) for values in (first, second)))
    return mean(first) - mean(second), error


def difference(first: list[float], second: list[float]) -> list[str]:
    """How far the first values are above the second ones, and in standard errors of that."""
    gap, error = compare(first, second)
    return [f"{gap:+.4f}", f"{gap / error:.1f}" if error > 0 else "-"]


def mean_and_spread(values: list[float], digits: int = 4) -> str:
    """The mean, and the standard deviation where there is one."""
    return f"{mean(values):.{digits}f}" + (f" ± {spread(values):.{digits}f}" if len(values) > 1 else "")


def to_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (header, *rows)]
    return [f"| {' | '.join(row)} |" for row in (lines[0], ["---"] * len(header), *lines[1:])]


def compared(
    head: list[str],
    lines: Iterable[tuple[Iterable[str], dict[str, list[float]]]],
    names: list[str],
    shown: Callable[[list[float]], str] = mean_and_spread,
) -> list[str]:
    """A Markdown table with a column for each of the names, and for the difference of two.

    A line is the cells under `head`, and the values of each of the names, one a seed.
    """
    two = len(names) == 2
    rows = []
    for cells, by_name in lines:
        values = [by_name[name] for name in names]
        rows.append([*cells, *map(shown, values), *(difference(*values) if two else [])])
    return to_table([*head, *names, *(["difference", "standard errors"] if two else [])], rows)
