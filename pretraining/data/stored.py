"""Rows of text on disk: stored once in the cache of `datasets`, and what can be told of them without reading them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features
from filelock import FileLock
from tqdm import tqdm

from pretraining.errors import UserError
from pretraining.files import publish

CHARACTERS = 2**22  # of rows held in memory at a time, unless one alone has more
OVERHEAD = 100  # characters that a row counts beyond its own: many short ones are work too

AnyStored = TypeVar("AnyStored", bound="Stored")


def hash_bytes(data: bytes) -> int:
    """64 bits of what is in a file, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def hash_text(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    return hash_bytes(text.encode())


@dataclass(frozen=True)
class Stored:
    """N rows in order; their text stays on disk, and the arrays (N,) tell what can be told without it."""

    dataset: Dataset
    """Memory-mapped columns."""
    hash: np.ndarray
    """64 bits of the text."""
    characters: np.ndarray
    """Length of the text."""

    def __len__(self) -> int:
        return len(self.dataset)

    def select(self, chosen: np.ndarray) -> Self:
        """The rows where `chosen` (N,) is true."""
        rows = np.flatnonzero(chosen)
        _, *arrays = dataclasses.fields(self)
        return type(self)(self.dataset.select(rows), *(getattr(self, array.name)[rows] for array in arrays))

    @property
    def fingerprint(self) -> str:
        """A hash of the text and its order, the same on every machine, whatever the files are called."""
        return hashlib.blake2b(self.hash.tobytes(), digest_size=16).hexdigest()

    def shards(self) -> list[range]:
        """Runs of rows, each of about `CHARACTERS`: what one process works on at a time."""
        sizes = self.characters + OVERHEAD
        number = (sizes.cumsum() - sizes) // CHARACTERS
        bounds = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(self)]
        return [range(*pair) for pair in pairwise(bounds)]


def require_held_out(splits: Mapping[str, Sized], unit: str, mend: str) -> None:
    """Raises UserError where nothing is held out; `unit` is what there is, in the plural, `mend` what to do."""
    if not len(splits["validation"]):
        raise UserError(
            f"Nothing is held out for evaluation (there are {len(splits['train'])} {unit} in all): name "
            f"data.validation_files, or {mend}."
        )


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which rows are held out, bool (N,): those whose hash falls into the lowest `fraction` of all possible hashes.

    The hashes (N,) alone decide: equal ones never straddle the split, and a row keeps its side when others come or go.
    Where two rows differ, each side gets at least one; with a single row, or only equal ones, or `fraction` 0, none is
    held out.
    """
    held = hashes < fraction * 2.0**64
    if fraction > 0 and not held.any():
        held = hashes == hashes.min()
    if held.all():
        held = hashes != hashes.max()
    return held


def first_equal(hashes: np.ndarray) -> np.ndarray:
    """The place of the first hash that is equal to each, (N,)."""
    _, first, number = np.unique(hashes, return_index=True, return_inverse=True)
    return first[number]


def hold_out(rows: AnyStored, fraction: float, hashes: np.ndarray) -> dict[str, AnyStored]:
    """The rows in two splits, as `held_out` parts them."""
    held = held_out(hashes, fraction)
    return {"train": rows.select(~held), "validation": rows.select(held)}


def store(
    rows: Callable[[], Iterable[dict[str, Any]]], features: Features, unit: str, code: list[str], *key: object
) -> Dataset:
    """Stream rows into an Arrow file in the cache of `datasets`.

    `Dataset.from_generator` would count the rows of a batch, not their characters: a hundred books are much memory
    while writing, and a hundred lines so little that the index of the batches becomes much while reading.

    Args:
        features: of the rows; "characters" among them.
        unit: what a row is, in the plural.
        code: the files of the code that makes the rows, which they depend on too.
        key: all else that they depend on.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in [*code, __file__]:
        digest.update(Path(file).read_bytes())
    digest.update(repr(key).encode())
    path = Path(datasets.config.HF_DATASETS_CACHE, "keel", f"{digest.hexdigest()}.arrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # of the processes on this machine, one reads
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            bar = tqdm(rows(), "reading", unit=f" {unit}", disable=None, leave=False)
            try:
                with pa.ipc.new_stream(unfinished, features.arrow_schema) as file:
                    for batch in _batches(bar):
                        file.write_batch(pa.RecordBatch.from_pylist(batch, features.arrow_schema))
                publish(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
    return Dataset.from_file(str(path))


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of at most `CHARACTERS`, or of one row."""
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        if batch and size + row["characters"] > CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row["characters"] + OVERHEAD
    if batch:
        yield batch
