"""Readers of files and Hub data sets: each format gives rows, each with its place."""

import csv
import difflib
import glob
import gzip
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

from pretraining.errors import UserError, one_line

BATCH = 16  # rows read at a time; they can be whole books

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]  # place, and the columns asked for
Columns = dict[str, str]  # the columns asked for, each with the setting of data that names it


def read(dataset: Dataset, columns: Iterable[str]) -> Iterator[Row]:
    """Some columns of all rows, few in memory at a time; far faster than iterating over the data set."""
    for batch in dataset.select_columns(list(columns)).with_format("arrow").iter(BATCH):
        yield from batch.to_pylist()


def texts(dataset: Dataset, column: str = "text") -> Iterator[str]:
    """One column's values."""
    return (row[column] for row in read(dataset, [column]))


def nearest(name: str, names: Iterable[str]) -> str:
    return "".join(f" (did you mean {near!r}?)" for near in difflib.get_close_matches(name, names, n=1))


def check_columns(columns: Columns, names: list[str], place: str) -> None:
    for column, setting in columns.items():
        if column not in names:
            near = nearest(column, names)
            raise UserError(f"{place} has no column {column!r}{near}: set data.{setting} to one of {', '.join(names)}.")


def check_text(value: object, place: str, setting: str = "column") -> str:
    """The value, if it is text that can be stored; else a UserError."""
    if not isinstance(value, str):
        raise UserError(f"{place} holds {value!r:.40} instead of text: set data.{setting} to a column of strings.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud83d"
        raise UserError(f"{place} holds half a character ({error}): mend or delete it.") from error
    if size >= 2**31:
        raise UserError(f"{place} is one document of {size} bytes, Arrow's limit is 2 GiB: cut it.")
    return value


def lines(path: str) -> Iterator[str]:
    """The lines of a UTF-8 file, plain or .gz, each with its line end, which becomes a line feed."""
    offset = 0
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            for raw in file:
                try:
                    line = raw.decode().replace("\r\n", "\n")
                except UnicodeDecodeError as error:
                    at = f"byte {offset + error.start} (0x{raw[error.start]:02x})"
                    raise UserError(f"{path} is not UTF-8 at {at}: convert it to UTF-8.") from error
                yield line if offset else line.removeprefix("\ufeff")
                offset += len(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): check its rights, or write it anew.") from error


def _jsonl(path: str, columns: Columns) -> Rows:
    for number, line in enumerate(lines(path), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}): mend or delete it.") from error
        if not isinstance(row, dict):
            example = ", ".join(f'"{column}": "..."' for column in columns)
            raise UserError(f"{path}, line {number} is no object: write {{{example}}}.")
        check_columns(columns, list(row), f"{path}, line {number}")
        yield f"{path}:{number}", row


def _csv(path: str, columns: Columns) -> Rows:
    csv.field_size_limit(2**31 - 1)  # by default 128 KiB, less than a book
    rows = csv.reader(lines(path), strict=True)
    try:
        header = next(rows, [])
        check_columns(columns, header, path)
        for number, row in enumerate(rows, 2):
            if not row:  # a blank line
                continue
            if len(row) != len(header):
                cells = f"{len(row)} cells instead of {len(header)}"
                raise UserError(f"{path}, row {number} has {cells}: put text with commas into quotes.")
            yield f"{path}:{number}", {column: row[header.index(column)] for column in columns}
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num} is not CSV ({error}): mend its quotes.") from error


def _parquet(path: str, columns: Columns) -> Rows:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is no parquet file ({error}): write it anew.") from error
    with file:
        check_columns(columns, file.schema_arrow.names, path)
        batches = file.iter_batches(BATCH, columns=list(columns))
        for number, row in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1):
            yield f"{path}:{number}", row


TABLES: dict[str, Callable[[str, Columns], Rows]] = {
    **dict.fromkeys((".jsonl", ".jsonl.gz"), _jsonl),
    **dict.fromkeys((".csv", ".csv.gz"), _csv),
    ".parquet": _parquet,
}


def extension(path: str) -> str:
    root, end = os.path.splitext(path.lower())
    return os.path.splitext(root)[1] + end if end == ".gz" else end


def find(patterns: list[str], setting: str, known: Iterable[str] | None = None) -> list[str]:
    """The files that paths and globs name, each once; those of a glob are sorted.

    Args:
        setting: the setting of data that they stand in, for messages.

    Raises:
        UserError: a pattern names a folder or no file, or a file's extension is not among the `known` ones.
    """
    files: dict[str, None] = {}
    for pattern in map(os.path.expanduser, patterns):
        if os.path.isdir(pattern):
            raise UserError(f"{pattern} in data.{setting} is a folder: name its files, as in {pattern}/*.txt.")
        # A path that exists may itself contain a bracket or a star.
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        matches = [os.path.normpath(match) for match in matches if os.path.isfile(match)]
        if not matches:
            folder, name = os.path.split(pattern)
            near = nearest(name, os.listdir(folder or ".") if os.path.isdir(folder or ".") else [])
            place = f"data.{setting}, seen from {os.getcwd()}"
            raise UserError(f"no file matches {pattern!r} in {place}: set a path or glob that does{near}.")
        files.update(dict.fromkeys(matches))
    if known is not None:
        for file in files:
            if extension(file) not in known:
                choice = ", ".join(known)
                raise UserError(f"{file} in data.{setting} has an unknown extension: convert it to one of {choice}.")
    return list(files)


def check_apart(files: list[str], held_out: list[str], setting: str) -> None:
    if both := set(map(os.path.realpath, files)) & set(map(os.path.realpath, held_out)):
        raise UserError(f"{min(both)} is in both data.{setting} and data.validation_{setting}: take it out of one.")


def state(files: Iterable[str]) -> list[tuple[str, int, int]]:
    """What changes when a file does."""
    return [(os.path.abspath(file), os.path.getsize(file), os.stat(file).st_mtime_ns) for file in files]


def load_hub(source: str, subset: str | None, split: str, columns: Columns, others: list[str]) -> tuple[Dataset, str]:
    """A data set of the Hub, and how messages name it.

    Args:
        others: the sources that are none of the Hub, for the message.
    """
    place = f"data set {source!r}, subset {subset!r}, split {split!r}"
    try:
        dataset = load_dataset(source, subset, split=split)
    except Exception as error:  # there are dozens, of the Hub's client, of fsspec and of datasets itself
        near = nearest(source, others)
        raise UserError(
            f"cannot load {place} ({one_line(error)}): "
            f"set data.source to {', '.join(map(repr, others))}, a data set's folder or a Hub name{near}."
        ) from error
    check_columns(columns, dataset.column_names, place)
    return dataset, place


def hub_rows(dataset: Dataset, source: str, split: str, columns: Iterable[str]) -> Rows:
    for number, row in enumerate(read(dataset, columns)):
        yield f"{source}:{split}:{number}", row
