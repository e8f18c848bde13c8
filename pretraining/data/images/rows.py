"""Images in order, left encoded where they lie: what every source of images becomes."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
SHARD, IN_SHARD = 2**20, 256  # bytes and images on which one process works at a time; a larger image is alone


@dataclass(frozen=True)
class Source:
    """N images in order, read from disk when they are asked for."""

    images: Dataset
    """One memory-mapped column: bytes, the path of a file, or a dictionary of both."""
    sizes: np.ndarray
    """(N,): bytes of each, or about as many."""
    labels: np.ndarray
    """(N,): the class of each, a position in `classes`; -100 where no labels are learnt."""
    classes: list[str]
    parts: list[tuple[str, int]]
    """The tables that hold the images, each with its number of rows; empty: each image is a file."""
    first: int
    """The number of a table's first row in messages."""
    key: list[Any]
    """Everything on which the images depend."""
    notes: list[str] = field(default_factory=list)
    """What there is to tell about where they come from."""

    def __len__(self) -> int:
        return len(self.images)

    def place(self, row: int) -> str:
        """The name of an image in messages."""
        if not self.parts:
            return self.values(range(row, row + 1))[0]["path"]
        starts = [0, *accumulate(size for _, size in self.parts)]
        part = bisect_right(starts, row) - 1
        return f"{self.parts[part][0]}:{row - starts[part] + self.first}"

    def values(self, rows: range) -> list[Any]:
        """What the column holds in some rows."""
        return self.images[rows.start : rows.stop].column(0).to_pylist()

    def shards(self) -> list[range]:
        """Consecutive rows, on which one process works at a time."""
        shards, start, size = [], 0, 0
        for row, row_size in enumerate(self.sizes.tolist()):
            if row > start and (size + row_size > SHARD or row - start == IN_SHARD):
                shards.append(range(start, row))
                start, size = row, 0
            size += row_size
        return [*shards, range(start, len(self))]


def encoded(value: Any) -> bytes:
    """The bytes of the image file that a value holds or names; empty where it does neither."""
    if isinstance(value, dict):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    return Path(value).read_bytes() if isinstance(value, str) else value or b""


def _classes(column: pa.ChunkedArray, feature: Any, place: Callable[[int], str]) -> tuple[np.ndarray, list[str]]:
    """Labels (N,) and the names of the classes: those of a `ClassLabel`, or else the distinct values, sorted."""
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(f"{place(row)} has no label: fill it, or delete the image.")
    if isinstance(feature, ClassLabel):
        labels, names = column.to_numpy(), feature.names
        if len(outside := np.flatnonzero((labels < 0) | (labels >= len(names)))):
            row = int(outside[0])
            raise UserError(
                f"{place(row)} has label {labels[row]}, but its classes are 0 to {len(names) - 1}: mend it."
            )
        return labels.astype(np.int64), names
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
    values = sorted(column.unique().to_pylist())
    if values[0] == "" or (
        isinstance(values[0], int) and values[0] < 0
    ):  # -1 and -100 say "no label" nearly everywhere
        row = pc.index(column, pa.scalar(values[0], column.type)).as_py()
        raise UserError(f"{place(row)} has label {values[0]!r}, which is no class: give it one, or delete the image.")
    numbers = pc.index_in(column, value_set=pa.array(values, column.type))
    return numbers.to_numpy().astype(np.int64), list(map(str, values))


def as_source(dataset: Dataset, columns: list[str], sizes: np.ndarray, *where: Any) -> Source:
    """A data set as a source: the image's column, the label's if labels are learnt, and `parts`, `first` and `key`."""
    images = dataset.select_columns(columns[:1]).with_format("arrow")
    source = Source(images, sizes, np.full(len(dataset), UNLABELLED), [], *where)
    for column in columns[1:]:
        labels, classes = _classes(dataset.data.column(column), dataset.features[column], source.place)
        source = replace(source, labels=labels, classes=classes)
    return source


def store_images(rows: Callable[[], Iterator[Row]], classes: list[str], code: str, key: list[Any]) -> Dataset:
    """Stores rows of "image", "label" and "characters" (the number of bytes); `code` and `key` as in `store`."""
    label = ClassLabel(names=classes) if classes else Value("int64")
    features = Features({"image": IMAGE, "label": label, "characters": Value("int64")})
    return store(rows, features, "images", [__file__, code], key)
