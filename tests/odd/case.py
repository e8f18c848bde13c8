"""An odd input: how it is written to disk, and what its reader must make of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One input of the corpus; exactly one of `right` and `error` is set.

    Args:
        write: fills an empty folder and returns the settings of `data` that read it, without the source's name.
        right: what the reader gives: texts, pairs, or images with the names of their classes, in order.
        error: a regular expression that the one sentence of the `UserError` matches.
        told: a regular expression that what is printed beside a right result matches.
    """

    name: str
    write: Callable[[Path], dict[str, Any]]
    right: list[Any] | None = None
    error: str | None = None
    told: str | None = None

    def __post_init__(self) -> None:
        assert (self.right is None) != (self.error is None), self.name
