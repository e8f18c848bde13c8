"""Tables with a column of images: files and data sets of the Hub."""

import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets.table import MemoryMappedTable

from pretraining.data import readers
from pretraining.data.find import extension, state, state_of
from pretraining.data.images.rows import IMAGE, Source, as_source
from pretraining.data.images.settings import ImageSettings
from pretraining.data.readers import TABLES, Columns, Row, check_columns
from pretraining.data.stored import store
from pretraining.errors import UserError, one_line

KNOWN = (".parquet", ".arrow")
ASSUMED = 2**16  # bytes; the size of an image file that a table only names


def columns_of(settings: ImageSettings, labelled: bool) -> Columns:
    """The image's column and, if labels are learnt, the label's, each with the setting that names it."""
    return {settings.column: "column"} | ({settings.label_column: "label_column"} if labelled else {})


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type as `datasets` stores its values: no view, no dictionary, and an image as its bytes and its path."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_struct(kind) and set(IMAGE) & {field.name for field in kind}:
        return pa.struct(Features(IMAGE).arrow_schema)
    views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return views.get(kind, kind)


def _check(features: Features, columns: Columns, names: list[str], place: str) -> None:
    """Raises UserError where one of the columns, out of `names`, does not hold images or classes."""
    image, *label = (features.arrow_schema.field(column).type for column in columns)
    parts = {field.name for field in image} if pa.types.is_struct(image) else set()
    plain = pa.types.is_binary(image) or pa.types.is_large_binary(image) or _is_text(image)
    if not plain and not set(IMAGE) <= parts:
        raise UserError(
            f"{place} holds {image} in {next(iter(columns))!r}, which is no image: set data.column to one of encoded "
            f"images (bytes, or the paths of files) among {', '.join(names)}."
        )
    for kind in label:
        if not (pa.types.is_integer(kind) or _is_text(kind) or pa.types.is_boolean(kind)):
            raise UserError(
                f"{place} holds {kind} in {list(columns)[1]!r}, which is no class: set data.label_column to one of "
                f"whole numbers or names among {', '.join(names)}."
            )


def _sizes(column: pa.ChunkedArray) -> np.ndarray:
    """Bytes of each image in a column (N,); `ASSUMED` for an image that is a file."""
    if _is_text(column.type):
        return np.full(len(column), ASSUMED)
    content = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    # If all images are files, the type of the bytes may be null, which has no length.
    return pc.fill_null(pc.binary_length(content.cast(pa.large_binary())), ASSUMED).to_numpy()


def _open(path: str, columns: Columns) -> tuple[Features, Dataset | None]:
    """The columns' features, and a table's rows if they can be memory-mapped (Arrow, not parquet)."""
    try:
        table = None if extension(path) == ".parquet" else MemoryMappedTable.from_file(path)
        schema = pq.read_schema(path) if table is None else table.schema
        check_columns(columns, schema.names, path)
        if table is None:
            # What other columns hold never matters; some types are none of `datasets`.
            fields = [schema.field(column).with_type(_plain(schema.field(column).type)) for column in columns]
            dataset, features = None, Features.from_arrow_schema(pa.schema(fields, schema.metadata))
        else:
            dataset = Dataset(table.select(list(columns)))
            features = dataset.features
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        kind = "parquet file" if extension(path) == ".parquet" else "Arrow stream of `datasets`"
        raise UserError(f"{path} is no {kind} that can be read ({one_line(error)}): write it anew.") from error
    _check(features, columns, schema.names, path)
    return features, dataset


def _stored(path: str, columns: Columns, features: Features) -> Dataset:
    """The rows of a parquet file, copied to an Arrow file in the cache of `datasets`, which can be memory-mapped."""

    def rows() -> Iterator[Row]:
        for _, row in TABLES[".parquet"](path, columns):
            value = row[image]
            content = value.get("bytes") if isinstance(value, dict) else value
            yield row | {"characters": len(content or b"")}

    image = next(iter(columns))
    stored_features = Features({column: features[column] for column in columns} | {"characters": Value("int64")})
    return store(rows, stored_features, "images", [__file__, readers.__file__], state([path]), columns)


def state_of_files(column: pa.ChunkedArray) -> str:
    """A hash of the state of all files that a column of images names."""
    digest = hashlib.sha256()
    for chunk in column.chunks:
        if pa.types.is_struct(chunk.type):
            paths = pc.struct_field(chunk, "path").filter(pc.is_null(pc.struct_field(chunk, "bytes")))
        elif _is_text(chunk.type):
            paths = chunk
        else:  # bytes alone
            continue
        for path in paths.to_pylist():
            exists = path is not None and os.path.exists(path)
            digest.update(json.dumps(state_of(path, os.stat(path)) if exists else [path]).encode())
    return digest.hexdigest()


def load_files(files: list[str], columns: Columns) -> Source:
    opened = {path: _open(path, columns) for path in files}
    first, (expected, _) = next(iter(opened.items()))
    for path, (features, _) in opened.items():
        for column, setting in columns.items():
            if features[column] != expected[column]:
                raise UserError(
                    f"{path} holds {features[column]} in {column!r} but {first} {expected[column]}: make them "
                    f"alike, or set {setting} to another column."
                )
    datasets = [
        (_stored(path, columns, features) if dataset is None else dataset).select_columns(list(columns))
        for path, (features, dataset) in opened.items()
    ]
    for path, dataset in zip(files, datasets, strict=True):
        if not len(dataset):
            raise UserError(f"{path} holds no images: fill it, or leave it out.")
    parts = [(path, len(dataset)) for path, dataset in zip(files, datasets, strict=True)]
    dataset, image = concatenate_datasets(datasets), next(iter(columns))
    sizes = _sizes(dataset.data.column(image))
    key = [os.getcwd(), state(files), image, state_of_files(dataset.data.column(image))]
    return as_source(dataset, list(columns), sizes, parts, 1, key)


def load_hub(settings: ImageSettings, columns: Columns, split: str) -> Source:
    others = ["digits", "folder", "files"]
    dataset, place = readers.load_hub(settings.source, settings.subset, split, columns, others)
    _check(dataset.features, columns, dataset.column_names, place)
    if not len(dataset):
        raise UserError(f"{place} holds no images: name another.")
    sizes = _sizes(dataset.data.column(settings.column))
    parts = [(f"{settings.source}:{split}", len(dataset))]
    return as_source(dataset, list(columns), sizes, parts, 0, [dataset._fingerprint, settings.column])
