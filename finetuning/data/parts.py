"""Where labelled tables come from: files and data sets, with their columns and the names of their classes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features
from datasets.features import LargeList, List

from finetuning.data.rows import Classes
from finetuning.data.settings import TableSettings
from pretraining.data import readers
from pretraining.data.find import check_apart, extension, find, identity, shown, state
from pretraining.data.readers import TABLES, Columns, Rows, column_names, tsv
from pretraining.errors import UserError, one_line

READERS: dict[str, Callable[[str, Columns], Rows]] = {**TABLES, ".tsv": tsv, ".tsv.gz": tsv}  # by extension


@dataclass(frozen=True)
class Part:
    """A file, or a split of a data set."""

    place: str
    names: list[str]
    """Its columns."""
    rows: Callable[[Columns], Rows]
    classes: Callable[[str], Classes]
    """The names of the class numbers in a column."""
    state: object
    """What changes when it does."""

    def has(self, column: str) -> bool:
        """Whether it has a column; a .csv without a header has its columns by number."""
        return column in self.names or column.isdecimal()


def _class_names(features: Features, column: str) -> Classes:
    feature = features[column]
    while isinstance(feature, List | LargeList):
        feature = feature.feature
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _classes_of_file(path: str, column: str) -> Classes:
    """The names that `datasets` has written into a parquet file beside a column of class numbers."""
    if extension(path) != ".parquet":
        return None
    with open(path, "rb") as opened, pq.ParquetFile(opened) as file:
        schema = file.schema_arrow
    readers.check_columns({column: "label_column"}, schema.names, shown(path))
    kind = schema.field(column).type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if not pa.types.is_integer(kind):
        return None
    # Other columns may be of types that `datasets` does not know.
    schema = pa.schema([schema.field(column)], schema.metadata)
    try:
        return _class_names(Features.from_arrow_schema(schema), column)
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(
            f"{shown(path)} has damaged metadata of `datasets` ({one_line(error)}): write it anew."
        ) from error


def _file(path: str) -> Part:
    reader = READERS[extension(path)]
    return Part(shown(path), column_names(path), partial(reader, path), partial(_classes_of_file, path), state([path]))


def _hub(settings: TableSettings, split: str) -> Part:
    dataset, place = readers.load_hub(settings.source, settings.subset, split, {}, ["pydocs", "files"])

    def rows(columns: Columns) -> Rows:
        readers.check_columns(columns, dataset.column_names, place)
        return readers.hub_rows(dataset, settings.source, split, columns)

    classes = partial(_class_names, dataset.features)
    return Part(place, dataset.column_names, rows, classes, dataset._fingerprint)


def find_parts(settings: TableSettings) -> dict[str, list[Part]]:
    """The files, or the data set's part, of each split that the settings name."""
    if settings.source != "files":
        splits = {"train": settings.split, "validation": settings.validation_split, "test": settings.test_split}
        return {name: [_hub(settings, split)] for name, split in splits.items() if split is not None}
    files = find(settings.files, "files", tuple(READERS))
    held_out = find(settings.validation_files, "validation_files", tuple(READERS))
    check_apart(files, held_out, "files")
    test = find(settings.test_files, "test_files", tuple(READERS))
    others = {identity(path) for path in files}
    for path in test:
        if identity(path) in others:
            raise UserError(f"{shown(path)} is in both data.files and data.test_files: take it out of one.")
    named = {"train": files, "validation": held_out, "test": test}
    return {name: list(map(_file, paths)) for name, paths in named.items() if paths}
