"""Images in order, encoded where they are: what every source of images becomes."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Value

from pretraining.data.readers import Row
from pretraining.data.stored import store
from pretraining.errors import UserError

UNLABELLED = -100
IMAGE = {"bytes": Value("binary"), "path": Value("string")}  # as `datasets` stores images
SHARD = 2**20  # bytes of encoded images that one process works on at a time, unless one alone has more
IN_SHARD = 256  # images


@dataclass(frozen=True)
class Source:
    """N images in order, read from disk when they are asked for."""

    images: Dataset
    """One memory-mapped column: bytes, the path of a file, or a dictionary of both."""
    sizes: np.ndarray
    """(N,): bytes of each, or about as many."""
    labels: np.ndarray
    """(N,): the class of each, a number into `classes`; -100 where none is asked for."""
    classes: list[str]
    parts: list[tuple[str, int]]
    """The tables of the images, each with its number of rows; none: each image is a file."""
    first: int
    """How messages number a table's first row."""
    key: list[Any]
    """All that decides the images."""

    def __len__(self) -> int:
        return len(self.images)

    def place(self, row: int) -> str:
        """How messages name an image."""
        if not self.parts:
            return self.values(range(row, row + 1))[0]["path"]
        starts = [0, *accumulate(size for _, size in self.parts)]
        part = bisect_right(starts, row) - 1
        return f"{self.parts[part][0]}:{row - starts[part] + self.first}"

    def values(self, rows: range) -> list[Any]:
        """What the column holds in some rows."""
        return self.images[rows.start : rows.stop].column(0).to_pylist()

    def shards(self) -> list[range]:
        """Runs of rows: what one process works on at a time."""
        shards, start, size = [], 0, 0
        for row, more in enumerate(self.sizes.tolist()):
            if row > start and (size + more > SHARD or row - start == IN_SHARD):
                shards.append(range(start, row))
                start, size = row, 0
            size += more
        return [*shards, range(start, len(self))]


def state_of(path: str, state: os.stat_result) -> list[str | int]:
    """What changes when a file does, or the right to read it."""
    return [path, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def encoded(value: Any) -> bytes:
    """The bytes of an image file that a value holds or names, empty where it does neither; an OSError of reading it."""
    if isinstance(value, dict):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    return Path(value).read_bytes() if isinstance(value, str) else value or b""


def _classes(column: pa.ChunkedArray, feature: Any, place: Callable[[int], str]) -> tuple[np.ndarray, list[str]]:
    """Labels (N,) and the names that they number: those that `datasets` knows, or the distinct values, sorted."""
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(f"{place(row)} has no label: fill it, or delete the image")
    if isinstance(feature, ClassLabel):
        labels, names = column.to_numpy(), feature.names
        if len(outside := np.flatnonzero((labels < 0) | (labels >= len(names)))):
            row = int(outside[0])
            raise UserError(f"{place(row)} has label {labels[row]}, but its classes are 0 to {len(names) - 1}: mend it")
        return labels.astype(np.int64), names
    values = sorted(column.unique().to_pylist())
    numbers = pc.index_in(column, value_set=pa.array(values, column.type))
    return numbers.to_numpy().astype(np.int64), list(map(str, values))


def as_source(dataset: Dataset, columns: list[str], sizes: np.ndarray, *where: Any) -> Source:
    """A data set as a source; `columns` are the image's and, if labels are learnt, the label's."""
    images = dataset.select_columns(columns[:1]).with_format("arrow")
    source = Source(images, sizes, np.full(len(dataset), UNLABELLED), [], *where)
    for column in columns[1:]:
        labels, classes = _classes(dataset.data.column(column), dataset.features[column], source.place)
        source = replace(source, labels=labels, classes=classes)
    return source


def store_images(rows: Callable[[], Iterator[Row]], classes: list[str], code: str, key: list[Any]) -> Dataset:
    """Rows of "image", "label" (a number into `classes`, if there are any) and "characters", the image's bytes.

    Args:
        code, key: all that they depend on, as in `store`.
    """
    label = ClassLabel(names=classes) if classes else Value("int64")
    features = Features({"image": IMAGE, "label": label, "characters": Value("int64")})
    return store(rows, features, "images", [__file__, code], key)
