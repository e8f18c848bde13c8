"""Rows on disk: stored once in the cache of `datasets`, and what is known of them without reading them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features
from filelock import FileLock
from tqdm import tqdm

from pretraining.errors import tell
from pretraining.files import check_writable, publish, write_text, writing_to

CHARACTERS = 2**22  # of rows held in memory at a time, unless one alone has more
CACHE = "the environment variable HF_DATASETS_CACHE"
OVERHEAD = 100  # characters that a row counts beyond its own: many short ones are work too


def hash_bytes(data: bytes) -> int:
    """64 bits of what is in a file, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def hash_text(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    return hash_bytes(text.encode())


@dataclass(frozen=True)
class Stored:
    """N rows in order; their text stays on disk, the arrays (N,) are in memory."""

    dataset: Dataset
    """Memory-mapped columns."""
    hash: np.ndarray
    """64 bits of the text."""
    characters: np.ndarray
    """Length of the text."""

    def __len__(self) -> int:
        return len(self.dataset)

    def select(self, mask: np.ndarray) -> Self:
        """The rows where `mask` (N,) is true."""
        rows = np.flatnonzero(mask)
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


def store(
    rows: Callable[[], Iterable[dict[str, Any] | str]], features: Features, unit: str, code: list[str], *key: object
) -> Dataset:
    """Stream rows into an Arrow file in the cache of `datasets`.

    `Dataset.from_generator` would count the rows of a batch, not their characters: a hundred books are much memory
    while writing, and a hundred lines so little that the index of the batches becomes much while reading.

    Args:
        rows: the rows, and among them lines to tell, now and whenever the rows are taken from the file.
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
    to_tell = path.with_suffix(".txt")
    if path.exists():
        tell(f"{unit}: nothing has changed since they were read, and the stored copy is used: {path}")
    else:
        check_writable(path.parent, CACHE)
        with writing_to(path.parent, CACHE), FileLock(f"{path}.lock"):  # of the processes on this machine, one reads
            if not path.exists():
                _write(rows(), features, unit, path, to_tell)
    for line in to_tell.read_text(encoding="utf-8").splitlines():
        tell(line)
    return Dataset.from_file(str(path))


def _write(rows: Iterable[dict[str, Any] | str], features: Features, unit: str, path: Path, to_tell: Path) -> None:
    lines: list[str] = []

    def only_rows() -> Iterator[dict[str, Any]]:
        for row in rows:
            if isinstance(row, str):
                lines.append(row)
            else:
                yield row

    unfinished = path.with_suffix(".unfinished")
    bar = tqdm(only_rows(), "reading", unit=f" {unit}", disable=None, leave=False)
    try:
        with pa.ipc.new_stream(unfinished, features.arrow_schema) as file:
            for batch in _batches(bar):
                file.write_batch(pa.RecordBatch.from_pylist(batch, features.arrow_schema))
        write_text(to_tell, "".join(f"{line}\n" for line in lines))
        publish(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


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
