"""Readers of files and Hub data sets: each format gives rows, each with its place.

`datasets.load_dataset` reads text, JSON, CSV and parquet too, but is wrong in silence: its CSV makes NA missing and 007
the number 7, its JSON makes null of a key that a line lacks, its text ends lines at stray carriage returns, which puts
aligned files out of step. It reads no table with a column that is a map, and its errors name no row.
"""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from pretraining.data.find import extension, is_saved, nearest, shown
from pretraining.data.stored import CACHE
from pretraining.errors import UserError, one_line
from pretraining.files import check_writable

BATCH = 16  # rows read at a time; they can be whole books
HEAD = 20  # rows that are looked at to know the separator
BUFFER = 2**18  # bytes of a file read at a time, and looked at to know its encoding and its line ends

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]  # place, and the columns asked for
Columns = dict[str, str]  # the columns asked for, each with the setting of data that names it

# Each encoding by its byte-order mark; UTF-32's begins as UTF-16's does.
ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"": "utf-8-sig",
}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# The control characters that are no white space, and the mark of byte order that a joined file has in its midst.
CONTROL = re.compile("[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as `surrogateescape` gives it


# ---- texts and columns ----


def normalise(text: str) -> str:
    """The one form that all text has from reading on.

    Its normal form is NFC, control characters that are no white space are left out, and a line ends with a line feed.
    Form feeds, U+2028 and the like stay: they are white space, and end no line of a file.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", CONTROL.sub("", text))


def read(dataset: Dataset, columns: Iterable[str]) -> Iterator[Row]:
    """Some columns of all rows, few in memory at a time; far faster than iterating over the data set."""
    for batch in dataset.select_columns(list(columns)).with_format("arrow").iter(BATCH):
        yield from batch.to_pylist()


def texts(dataset: Dataset, column: str = "text") -> Iterator[str]:
    """One column's values."""
    return (row[column] for row in read(dataset, [column]))


def listed(names: Iterable[str]) -> str:
    """Names in one line of a message, the first of them if there are many."""
    names = [name if name.isprintable() else ascii(name) for name in names]
    return ", ".join(names[:20] + ["..."] * (len(names) > 20))


def check_columns(columns: Columns, names: list[str], place: str, is_header: bool = True) -> None:
    """Raises UserError where a column is not there, or twice.

    Args:
        is_header: whether `names` are surely names: the first row of a .csv or .tsv may be one of text.
    """
    for column, setting in columns.items():
        if column not in names:
            near = nearest(column, names)
            if is_header:
                mend = f"set data.{setting} to one of {listed(names)}" if names else "it has none at all"
            else:
                row = ", ".join(f"{name!r:.40}" for name in names)
                mend = (
                    f"its first row is {row}; set data.{setting} to one of these, or to its number if they are no names"
                )
            raise UserError(f"{place} has no column {column!r}{near}: {mend}.")
        if names.count(column) > 1:
            raise UserError(f"{place} has {names.count(column)} columns {column!r}: rename all but the one to read.")


def check_text(value: object, place: str, setting: str = "column") -> str:
    """The value's normal form, if it is text that can be stored; else a UserError."""
    try:
        # Some writers of parquet do not say that their bytes are text.
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} holds bytes that are not UTF-8 ({error}): convert them, or delete the row."
        ) from error
    if not isinstance(text, str):
        raise UserError(f"{place} holds {value!r:.40} instead of text: set data.{setting} to a column of strings.")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud83d"
        raise UserError(f"{place} holds half a character ({error}): mend or delete it.") from error
    if size >= 2**31:
        raise UserError(f"{place} is one document of {size} bytes, Arrow's limit is 2 GiB: cut it.")
    return normalise(text)


# ---- what each format gives ----


def _open(path: str) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.lower().endswith(".gz") else io.BufferedReader(io.FileIO(path), BUFFER)


def _first_bad_byte(path: str, encoding: str) -> str:
    """The place of the first byte that the encoding has no character for: its line and its number in the file."""
    decoder = codecs.getincrementaldecoder(encoding.removesuffix("-sig"))()
    position, number = 0, 1
    with _open(path) as file:
        while True:
            pending = len(decoder.getstate()[0])
            block = file.read1(BUFFER)
            try:
                number += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                number += error.object[: error.start].decode(encoding, "ignore").count("\n")
                byte = error.object[error.start]
                return f"line {number}, byte {position - pending + error.start} (0x{byte:02x})"
            position += len(block)


def wrong_in(line: str) -> str:
    """Why a line is no text of UTF-8, as the end of a sentence; empty: it is."""
    if "\0" in line:
        return (
            "holds a NUL, as UTF-16 without a byte-order mark and files that are no text do: convert it to UTF-8, or "
            "delete the NUL"
        )
    if "\x1b$" in line:
        return "is ISO 2022, as in Japanese mail: convert it to UTF-8"
    if byte := ESCAPED.search(line):
        return f"is not UTF-8 (it has the byte 0x{ord(byte[0]) - 0xDC00:02x}): convert it to UTF-8"
    return ""


def lines(path: str, every_end: bool = False, strict: bool = True) -> Iterator[str]:
    """The lines of a file, plain or .gz, each with its line end, which becomes a line feed.

    UTF-8, or what a byte-order mark says. A carriage return ends a line only before a line feed, or in a file that has
    no line feeds: within a line it is white space, or two files that are aligned would slip against one another.

    Args:
        every_end: whether a carriage return ends a line wherever it is.
        strict: whether a line that is no text is an error; else it is given as it is, for `wrong_in`.
    """
    name, number, encoding = shown(path), 0, "utf-8"
    try:
        with _open(path) as file:
            head = file.peek(BUFFER)
            encoding = next(encoding for mark, encoding in ENCODINGS.items() if head.startswith(mark))
            start = head.decode(encoding, "ignore")
            newline = None if every_end or ("\r" in start and "\n" not in start) else "\n"
            # Bytes that are not UTF-8 can be told line by line, but not units of two bytes that are not UTF-16.
            errors = "surrogateescape" if not strict and encoding.startswith("utf-8") else "strict"
            for number, line in enumerate(io.TextIOWrapper(file, encoding, errors, newline), 1):
                if strict and (reason := wrong_in(line)):
                    raise UserError(f"{name}, line {number} {reason}.")
                line = line.lstrip("\ufeff")  # the mark of another file, which this one was joined from
                yield f"{line[:-2]}\n" if line.endswith("\r\n") else line
    except UnicodeDecodeError as error:
        place = _first_bad_byte(path, encoding)
        kind = encoding.upper().removesuffix("-SIG")
        raise UserError(f"{name} is not {kind} at {place}: convert it to UTF-8, or unpack it.") from error
    except (OSError, EOFError, zlib.error) as error:
        after = f" after line {number}" if number else ""
        raise UserError(f"{name} cannot be read{after} ({error}): check its rights, or write it anew.") from error


def _jsonl(path: str, columns: Columns) -> Rows:
    name, is_first = shown(path), True
    for number, line in enumerate(lines(path), 1):
        if line.isspace():
            continue
        place = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise UserError(f"{place} is JSON nested too deeply to be read: mend or delete it.") from error
        except ValueError as error:
            raise UserError(
                f"{place} is not JSON ({error}): write one object on each line, mend this one or delete it."
            ) from error
        if not isinstance(row, dict):
            example = ", ".join(f'"{column}": "..."' for column in columns)
            raise UserError(f"{place} is no object: write one on each line{f', as {{{example}}}' if example else ''}.")
        if is_first:
            check_columns(columns, list(row), place)
            is_first = False
        for column in columns:
            if column not in row:
                raise UserError(
                    f"{place} has no key {column!r}, which the first line has, but {listed(row) or 'none'}: "
                    f"write its {column!r}, if only as null, or delete the line."
                )
        yield f"{name}:{number}", row


def is_filled(row: list[str]) -> bool:
    """Whether it is no blank line, which has no cells, or one of white space."""
    return len(row) > 1 or bool("".join(row).strip())


def _by_header(path: str, rows: Iterable[list[str]], columns: Columns, separator: str, numbered: bool = False) -> Rows:
    """The cells of a .csv or .tsv by the names in its first row, or where `columns` are none of these by number.

    Args:
        separator: the word for what stands between the cells.
        numbered: whether `columns` are numbers, counted from 1, whatever the first row holds.
    """
    name = shown(path)
    cells: Iterator[tuple[int, list[str]]]
    cells = ((number, row) for number, row in enumerate(rows, 1) if is_filled(row))
    number, first = next(cells, (0, []))
    if not first:
        return
    header = first if set(columns) <= set(first) else [normalise(name).strip() for name in first]
    # A table of numbers may have numbers for names; in any other, a number is none, whatever cell is equal to it.
    has_names = set(columns) <= set(header) and all(name.isdecimal() for name in header)
    if numbered or (all(column.isdecimal() for column in columns) and not has_names):
        cells = itertools.chain([(number, first)], cells)
        header, numbered = [str(column) for column in range(1, len(header) + 1)], True
    check_columns(columns, header, f"{name}, separated by {separator},", numbered)
    for number, row in cells:
        if len(row) != len(header):
            raise UserError(
                f"{name}, row {number} has {len(row)} cells instead of {len(header)}, separated by {separator}: put "
                f"text with {separator} into quotes if it is a .csv, or take them out."
            )
        yield f"{name}:{number}", {column: row[header.index(column)] for column in columns}


def parse_csv(path: str, columns: Iterable[str], strict: bool = True) -> tuple[Any, str]:
    """The reader of a .csv file's rows, and what stands between the cells.

    Cells stand between what a first line `sep=;` says, as Excel writes it, or what gives all columns asked for. Else
    between what gives the most cells, and the same number in each of the first rows.

    Args:
        strict: as for `lines`.
    """
    csv.field_size_limit(2**31 - 1)  # by default 128 KiB, less than a book
    stated = re.fullmatch('"?sep=([,;\t|])"?\\s*', next(lines(path, True, strict), ""), re.IGNORECASE)

    def parse(separator: str) -> Any:
        rows = lines(path, True, strict)
        if stated:
            rows = itertools.chain(["\n"], itertools.islice(rows, 1, None))
        return csv.reader(rows, delimiter=separator, strict=True)

    def fit(separator: str) -> tuple[bool, bool, int]:
        header: list[str] = []
        counts: set[int] = set()
        with contextlib.suppress(csv.Error):  # of another separator, or told below
            for row in itertools.islice(filter(is_filled, parse(separator)), HEAD):
                header = header or row
                counts.add(len(row))
        if len(header) < 2:
            return False, False, len(header)
        names = {each for name in header for each in (name, normalise(name).strip())}
        return set(columns) <= names, len(counts) == 1, len(header)

    separator = stated[1] if stated else max(SEPARATORS, key=fit)  # the first of equals
    return parse(separator), separator


def _csv(path: str, columns: Columns) -> Rows:
    rows, separator = parse_csv(path, columns)
    try:
        yield from _by_header(path, rows, columns, SEPARATORS[separator])
    except csv.Error as error:
        raise UserError(f"{shown(path)}, line {rows.line_num} is not CSV ({error}): mend its quotes.") from error


def tsv(path: str, columns: Columns) -> Rows:
    """Cells stand between tabs, and quotes are text. If no column is asked for, there are two, "1" and "2"."""

    def rows() -> Iterator[list[str]]:
        return (line.rstrip("\n").split("\t") if line != "\n" else [] for line in lines(path))

    if columns:
        return _by_header(path, rows(), columns, "tabs")
    first = next(filter(is_filled, rows()), None)
    if first is None:
        return iter(())
    if len(first) != 2:
        raise UserError(
            f"{shown(path)} has {len(first)} cells in its first row, separated by tabs, and not source and target "
            "alone: set data.columns to the two columns' names in that row, or if it is a pair to their numbers, as in "
            "[2, 4]."
        )
    return _by_header(path, rows(), {"1": "columns", "2": "columns"}, "tabs", numbered=True)


def _rows(batches: Iterable[pa.Table | pa.RecordBatch], place: str, first: int) -> Rows:
    """The rows of Arrow's batches, numbered from `first`."""
    number = first
    for batch in batches:
        try:
            rows = batch.to_pylist(maps_as_pydicts="lossy")  # of equal keys the last counts, as in JSON
        except UnicodeDecodeError:
            rows = None
        for at in range(len(batch)):
            try:
                row = rows[at] if rows else batch.slice(at, 1).to_pylist(maps_as_pydicts="lossy")[0]
            except UnicodeDecodeError as error:
                raise UserError(f"{place}:{number} is not UTF-8 ({error}): convert it, or delete the row.") from error
            yield f"{place}:{number}", row
            number += 1


def _parquet(path: str, columns: Columns) -> Rows:
    name, place = shown(path), ""
    try:
        # Arrow opens no name that is not UTF-8.
        with open(path, "rb") as opened, pq.ParquetFile(opened) as file:
            check_columns(columns, file.schema_arrow.names, name)
            for place, row in _rows(file.iter_batches(BATCH, columns=list(columns)), name, 1):
                yield place, row
    except (OSError, pa.ArrowException) as error:
        after = f" after {place}" if place else ""
        raise UserError(
            f"{name} is no parquet file that can be read{after} ({one_line(error)}): write it anew."
        ) from error


TABLES: dict[str, Callable[[str, Columns], Rows]] = {
    **dict.fromkeys((".jsonl", ".jsonl.gz"), _jsonl),
    **dict.fromkeys((".csv", ".csv.gz"), _csv),
    ".parquet": _parquet,
}


def column_names(path: str) -> list[str]:
    """The names of a table's columns: what the first row of a .csv or .tsv holds, the keys of a .jsonl's first object.

    None where the file is empty.
    """
    end = extension(path)
    if end == ".parquet":
        try:
            with open(path, "rb") as opened, pq.ParquetFile(opened) as file:
                return file.schema_arrow.names
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{shown(path)} is no parquet file that can be read ({one_line(error)}): write it anew."
            ) from error
    if end.startswith(".jsonl"):
        return list(next(_jsonl(path, {}), ("", {}))[1])
    if end.startswith(".csv"):
        rows, _ = parse_csv(path, [])
    else:
        rows = (line.rstrip("\n").split("\t") for line in lines(path))
    try:
        header: list[str] = next(filter(is_filled, rows), [])
    except csv.Error as error:
        raise UserError(f"{shown(path)}, line {rows.line_num} is not CSV ({error}): mend its quotes.") from error
    return [normalise(name).strip() for name in header]


# ---- data sets ----


def _load(source: str, subset: str | None, split: str) -> Dataset:
    if not is_saved(source):
        return load_dataset(source, subset, split=split)
    saved = load_from_disk(source)
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    if subset or split not in splits:
        raise ValueError(f"what save_to_disk wrote has no subsets, and here the splits {', '.join(splits)}")
    return splits[split]


def load_hub(source: str, subset: str | None, split: str, columns: Columns, others: list[str]) -> tuple[Dataset, str]:
    """A data set of the Hub, and how messages name it.

    Args:
        others: the sources that are none of the Hub, for the message.
    """
    source = os.path.expanduser(source)
    place = f"data set {source!r}, subset {subset!r}, split {split!r}"
    try:
        dataset = _load(source, subset, split)
    except Exception as error:  # there are dozens, of the Hub's client, of fsspec and of datasets itself
        check_writable(Path(datasets.config.HF_DATASETS_CACHE), CACHE)
        if "datasets dtype" in str(error):
            raise UserError(
                f"{place} has a column of a type that `datasets` does not know ({one_line(error)}): name its parquet "
                "files in data.files, where columns that are not asked for do not matter."
            ) from error
        near = nearest(source, others)
        raise UserError(
            f"cannot load {place} ({one_line(error)}): "
            f"set data.source to {', '.join(map(repr, others))}, a data set's folder or a Hub name{near}."
        ) from error
    check_columns(columns, dataset.column_names, place)
    return dataset, place


def hub_rows(dataset: Dataset, source: str, split: str, columns: Iterable[str]) -> Rows:
    batches = dataset.select_columns(list(columns)).with_format("arrow").iter(BATCH)
    return _rows(batches, f"{source}:{split}", 0)
