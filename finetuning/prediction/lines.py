"""The lines of a file of any size, each with its number; a bad one is told, and the others go on.

`pretraining.data.readers` ends at the first bad row, for training asks for whole data.
"""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pretraining.data.find import extension, nearest, shown, state
from pretraining.data.images.folders import images_in
from pretraining.data.readers import SEPARATORS, Row, is_filled, lines, listed, normalise, parse_csv, wrong_in
from pretraining.errors import UserError, one_line

CHARACTERS = 2**22  # of a block of lines, unless its last line brings more
BATCH = 64  # rows of a parquet file read at a time; they can be whole images

Raw = Any
"""What a format gives for a line before it is looked at: a line of text, cells, a row, or the reason why there is none.
"""


@dataclass(frozen=True)
class Line:
    """A line of the file, and what it holds; or why it is bad."""

    number: int
    row: Row
    error: str = ""


class Bad(UserError):
    """A line that cannot be predicted; the message says why."""


@dataclass(frozen=True)
class Source:
    """A file of lines."""

    name: str
    columns: list[str]
    raw: Callable[[list[str]], Iterator[tuple[int, Raw]]]
    """All lines with their numbers, not yet looked at, so that to pass over lines costs little; of a format that has
    its columns apart, some of them."""
    parse: Callable[[Raw], Row]
    """The columns of a line; raises Bad."""
    state: object
    """What changes when the file does."""
    folder: Path
    """Where the paths in it begin."""
    count: int | None = None
    """Lines, where that is known before they are read."""

    def place(self, number: int) -> str:
        return f"{self.name}, line {number}"

    def look(self, number: int, raw: Raw) -> Line:
        text = raw if isinstance(raw, str) else "".join(raw) if isinstance(raw, list) else ""
        if reason := wrong_in(text):
            return Line(number, {}, f"it {reason}")
        try:
            return Line(number, self.parse(raw))
        except Bad as error:
            return Line(number, {}, str(error))

    def blocks(self, columns: list[str], first: int, most: int) -> Iterator[list[Line]]:
        """The lines behind the first ones, in blocks of `most` lines, whose bounds the lines alone decide."""
        block: list[Line] = []
        weight = 0
        for number, raw in itertools.islice(self.raw(columns), first, None):
            block.append(self.look(number, raw))
            weight += size(raw)
            if len(block) == most or weight >= CHARACTERS:
                yield block
                block, weight = [], 0
        if block:
            yield block


def size(value: Any) -> int:
    """Characters and bytes in a value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(size, value.values()))
    return sum(map(size, value)) if isinstance(value, list | tuple) else 1


# ---- formats ----


def parse_json(line: Raw) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Bad(f"it is not JSON ({one_line(error)})") from error
    if not isinstance(row, dict):
        raise Bad(f"it is no object of JSON, but {line.strip():.40}")
    return row


def read_jsonl(path: str) -> Source:
    def raw(columns: list[str]) -> Iterator[tuple[int, Raw]]:
        return ((number, line) for number, line in enumerate(lines(path, strict=False), 1) if not line.isspace())

    columns: list[str] = []
    for _, line in raw([]):
        try:
            columns = list(parse_json(line))
            break
        except Bad:
            continue  # it is told where it is predicted
    return Source(shown(path), columns, raw, parse_json, state([path]), Path(path).parent)


def read_text(path: str) -> Source:
    return Source(
        shown(path),
        ["text"],
        lambda columns: enumerate(lines(path, strict=False), 1),
        lambda line: {"text": line.rstrip("\n")},
        state([path]),
        Path(path).parent,
    )


def csv_rows(path: str, asked: list[str]) -> Iterator[tuple[int, Raw]]:
    """Cells of each row, or the error of the csv module, which goes on behind the row."""
    rows, _ = parse_csv(path, asked, strict=False)
    while True:
        number = rows.line_num + 1  # where the row begins: cells in quotes may have lines of their own
        try:
            yield number, next(rows)
        except csv.Error as error:
            yield number, f"it is not CSV ({error}): mend its quotes"
        except StopIteration:
            return


def check_twice(names: list[str], place: str) -> None:
    """Raises UserError where two columns bear one name."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{place} has {names.count(twice[0])} columns {twice[0]!r}: rename all but one.")


def separator_of(path: str, asked: list[str]) -> str:
    return SEPARATORS[parse_csv(path, asked, strict=False)[1]]


def tsv_rows(path: str) -> Iterator[tuple[int, Raw]]:
    return ((number, line.rstrip("\n").split("\t")) for number, line in enumerate(lines(path, strict=False), 1))


def cells(path: str, rows: Callable[[], Iterator[tuple[int, Raw]]], separator: str, asked: list[str]) -> Source:
    """A table of cells by the names in its first row; by number where that is how columns are asked for."""

    def filled() -> Iterator[tuple[int, Raw]]:
        return ((number, row) for number, row in rows() if isinstance(row, str) or is_filled(row))

    first: Raw = next(filled(), (0, []))[1]
    if isinstance(first, str):
        raise UserError(f"{shown(path)}, line 1: {first}.")
    header = [normalise(name).strip() for name in first]
    # A number is a name where all of the first row are; in any other row no cell is one, whatever it is equal to.
    has_numbers = all(name.isdecimal() for name in header) and set(asked) <= set(header)
    numbered = bool(asked) and all(name.isdecimal() for name in asked) and not has_numbers
    names = [str(number) for number in range(1, len(header) + 1)] if numbered else header
    check_twice(names, shown(path))

    def parse(row: Raw) -> Row:
        if isinstance(row, str):
            raise Bad(row)
        if len(row) != len(names):
            raise Bad(f"it has {len(row)} cells instead of {len(names)}, separated by {separator}")
        return dict(zip(names, row, strict=True))

    def behind_header(columns: list[str]) -> Iterator[tuple[int, Raw]]:
        return itertools.islice(filled(), 0 if numbered else 1, None)

    return Source(shown(path), names, behind_header, parse, state([path]), Path(path).parent)


def read_parquet(path: str) -> Source:
    """A .parquet file."""
    name = shown(path)

    def unreadable(error: Exception) -> UserError:
        return UserError(f"{name} is no parquet file that can be read ({one_line(error)}): write it anew.")

    try:
        with open(path, "rb") as opened, pq.ParquetFile(opened) as file:
            names, count = file.schema_arrow.names, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise unreadable(error) from error
    check_twice(names, name)

    def raw(columns: list[str]) -> Iterator[tuple[int, Raw]]:
        number = 0
        try:
            with open(path, "rb") as opened, pq.ParquetFile(opened) as file:
                for batch in file.iter_batches(BATCH, columns=columns):
                    for row in rows_of(batch):
                        number += 1
                        yield number, row
        except (OSError, pa.ArrowException) as error:
            raise unreadable(error) from error

    def parse(row: Raw) -> Row:
        if isinstance(row, str):
            raise Bad(row)
        return row

    return Source(name, names, raw, parse, state([path]), Path(path).parent, count)


def rows_of(batch: pa.RecordBatch) -> list[Raw]:
    """The rows of Arrow's batch; of one that is no UTF-8 the reason."""
    try:
        return batch.to_pylist(maps_as_pydicts="lossy")
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [f"it is not UTF-8 ({error})"]
        return [row for at in range(len(batch)) for row in rows_of(batch.slice(at, 1))]


def read_folder(path: str) -> Source:
    """A folder of images, and of those in the folders below it."""
    folder = os.path.normpath(path)
    paths = [entry.path for entry in images_in(folder)]
    if not paths:
        raise UserError(f"{folder} holds no images: fill it, or name another folder.")
    return Source(
        folder,
        ["image"],
        lambda columns: enumerate((os.path.relpath(each, folder) for each in paths), 1),
        lambda each: {"image": each},
        state(paths),
        Path(folder),
        len(paths),
    )


READERS: dict[str, Callable[[str, list[str]], Source]] = {
    ".txt": lambda path, asked: read_text(path),
    ".jsonl": lambda path, asked: read_jsonl(path),
    ".csv": lambda path, asked: cells(path, partial(csv_rows, path, asked), separator_of(path, asked), asked),
    ".tsv": lambda path, asked: cells(path, partial(tsv_rows, path), "tabs", asked),
}
READERS |= {f"{end}.gz": read for end, read in READERS.items()}
READERS[".parquet"] = lambda path, asked: read_parquet(path)


def open_source(path: str, asked: list[str]) -> Source:
    """The lines of FILE.

    Args:
        asked: the columns that the command names.

    Raises:
        UserError: there is no such file, or it is of another kind.
    """
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        return read_folder(path)
    if not os.path.isfile(path):
        folder, name = os.path.split(path)
        near = nearest(name, os.listdir(folder or ".") if os.path.isdir(folder or ".") else [])
        raise UserError(f"there is no file {path!r}, seen from {os.getcwd()}: name one that is there{near}.")
    end = extension(path)
    if end not in READERS:
        raise UserError(f"{shown(path)} has an unknown extension: it must be one of {', '.join(READERS)}, or a folder.")
    return READERS[end](path, asked)


def check_kept(source: Source, kept: list[str], written: list[str]) -> None:
    """Raises UserError where a column that shall be kept is not there, or has the name of one that is written."""
    for name in kept:
        if name not in source.columns:
            raise UserError(
                f"--keep_columns: {source.name} has no column {name!r}: it has {listed(source.columns) or 'none'}."
            )
        if name in written:
            raise UserError(f"--keep_columns names {name!r}, which is a column of the predictions: rename it in FILE.")
