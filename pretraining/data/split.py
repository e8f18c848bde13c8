"""Which rows are held out: by a hash of what they hold, so that equal ones never straddle the split."""

from collections.abc import Mapping, Sized
from typing import TypeVar

import numpy as np

from pretraining.data.stored import Stored
from pretraining.errors import UserError

AnyStored = TypeVar("AnyStored", bound=Stored)


def require_held_out(splits: Mapping[str, Sized], unit: str, mend: str) -> None:
    """Raises UserError where nothing is held out; `unit` is what there is, in the plural, `mend` what to do."""
    if not len(splits["validation"]):
        raise UserError(
            f"Nothing is held out for evaluation (there are {len(splits['train'])} {unit} in all): name "
            f"data.validation_files, or {mend}."
        )


def is_held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which rows are held out, bool (N,): those whose hash falls into the lowest `fraction` of all possible hashes.

    The hashes (N,) alone decide: equal ones never straddle the split, and a row keeps its side when others come or go.
    Where two rows differ, each side gets at least one; with a single row, or only equal ones, or `fraction` 0, none is
    held out.
    """
    held_out = hashes < fraction * 2.0**64
    if fraction > 0 and not held_out.any():
        held_out = hashes == hashes.min()
    if held_out.all():
        held_out = hashes != hashes.max()
    return held_out


def first_equal(hashes: np.ndarray) -> np.ndarray:
    """The place of the first hash that is equal to each, (N,)."""
    _, first, number = np.unique(hashes, return_index=True, return_inverse=True)
    return first[number]


def split_by_hash(rows: AnyStored, fraction: float, hashes: np.ndarray) -> dict[str, AnyStored]:
    """The rows in two splits, as `is_held_out` parts them."""
    held_out = is_held_out(hashes, fraction)
    return {"train": rows.select(~held_out), "validation": rows.select(held_out)}
