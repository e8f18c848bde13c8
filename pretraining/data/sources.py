"""Text sources: files, Hub data sets and Python's own documentation, as documents and as sentences."""

import ast
import csv
import difflib
import glob
import gzip
import hashlib
import inspect
import itertools
import json
import os
import re
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencex
from datasets import Dataset, DatasetDict, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from pretraining.settings import TextSettings

FEATURES = Features({"name": Value("string"), "text": Value("string")})
BATCH = 100  # documents held in memory at a time; they can be whole books
WINDOW = 2000  # characters; longer paragraphs go to the sentence splitter in pieces
TESTS = {"test", "tests", "idle_test"}  # folders of the standard library

Rows = Iterable[tuple[str, object]]  # name and text


def texts(dataset: Dataset, column: str = "text") -> Iterator[str]:
    """One column's values, few in memory at a time; far faster than iterating over `dataset[column]`."""
    for batch in dataset.select_columns(column).with_format("arrow").iter(BATCH):
        for value in batch[column]:
            yield value.as_py()


def fingerprint(dataset: Dataset) -> str:
    """A hash of the documents' text and order, the same on every machine, whatever the files are called."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts(dataset):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))  # else "ab" + "c" would equal "a" + "bc"
        digest.update(data)
    return digest.hexdigest()


def hold_out(dataset: Dataset, fraction: float, column: str = "text") -> DatasetDict:
    """Hold out the documents whose hash falls into the lowest `fraction` of all possible hashes.

    The hash of `column` alone decides: equal documents never straddle the split, and a document keeps its
    side when others come or go. Where two documents differ, each side gets at least one; with a single
    document, or only equal ones, or `fraction` 0, validation is empty.
    """

    def number(value: str) -> int:
        return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")

    hashes = np.fromiter(map(number, texts(dataset, column)), dtype=np.uint64, count=len(dataset))
    held = hashes < fraction * 2.0**64
    if fraction > 0 and not held.any():
        held = hashes == hashes.min()
    if held.all():
        held = hashes != hashes.max()
    sides = {"train": ~held, "validation": held}
    return DatasetDict({name: dataset.select(np.flatnonzero(side)) for name, side in sides.items()})


def sentences(text: str, language: str) -> list[list[str]]:
    """The sentences of each paragraph; whitespace becomes single spaces, what is empty is dropped.

    Args:
        text: paragraphs with blank lines between them.
        language: ISO 639-1 code, e.g. "ko"; one that sentencex does not know is treated as English.
    """
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    split = ([s for s in map(str.strip, _split(paragraph, language)) if s] for paragraph in paragraphs)
    return [paragraph for paragraph in split if paragraph]


def _split(paragraph: str, language: str) -> Iterator[str]:
    # sentencex compares each sentence end with each quotation of its input: quadratic, minutes for a book of
    # dialogue without blank lines. So it sees one window at a time, and the last sentence of a window, which
    # may be cut, once more with the next.
    rest = ""
    for start in range(0, len(paragraph), WINDOW):
        *whole, rest = sentencex.segment(language, rest + paragraph[start : start + WINDOW])
        yield from whole
        if len(rest) > WINDOW:  # no sentence: a table, or a list
            head, _, tail = rest.rpartition(" ")
            yield head or tail
            rest = tail if head else ""
    yield rest


def _nearest(name: str, names: list[str]) -> str:
    return "".join(f" (did you mean {near!r}?)" for near in difflib.get_close_matches(name, names, n=1))


def _check_column(column: str, columns: list[str], place: str) -> None:
    if column not in columns:
        near = _nearest(column, columns)
        raise ValueError(f"{place} has no column {column!r}{near}: set column to one of {', '.join(columns)}")


def _lines(path: str) -> Iterator[str]:
    """The lines of a UTF-8 file, plain or .gz, each with its line end, which becomes a line feed."""
    offset = 0
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            for raw in file:
                try:
                    line = raw.decode().replace("\r\n", "\n")
                except UnicodeDecodeError as error:
                    at = f"byte {offset + error.start} (0x{raw[error.start]:02x})"
                    raise ValueError(f"{path} is not UTF-8 at {at}: convert it to UTF-8") from error
                yield line if offset else line.removeprefix("\ufeff")
                offset += len(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}): check its rights, or write it anew") from error


def _txt(path: str, settings: TextSettings) -> Rows:
    if settings.document == "file":
        yield path, "".join(_lines(path))
    elif settings.document == "line":
        for number, line in enumerate(_lines(path), 1):
            yield f"{path}:{number}", line
    else:
        for _, block in itertools.groupby(enumerate(_lines(path), 1), key=lambda row: row[1].isspace()):
            numbers, lines = zip(*block, strict=True)
            yield f"{path}:{numbers[0]}", "".join(lines)


def _jsonl(path: str, settings: TextSettings) -> Rows:
    for number, line in enumerate(_lines(path), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}): mend or delete it") from error
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {number} is no object: write {{"{settings.column}": "..."}}')
        _check_column(settings.column, list(row), f"{path}, line {number}")
        yield f"{path}:{number}", row[settings.column]


def _csv(path: str, settings: TextSettings) -> Rows:
    csv.field_size_limit(2**31 - 1)  # by default 128 KiB, less than a book
    rows = csv.reader(_lines(path), strict=True)
    try:
        header = next(rows, [])
        _check_column(settings.column, header, path)
        for number, row in enumerate(rows, 2):
            if len(row) not in (0, len(header)):  # 0: a blank line
                cells = f"{len(row)} cells instead of {len(header)}"
                raise ValueError(f"{path}, row {number} has {cells}: put text with commas into quotes")
            yield f"{path}:{number}", row[header.index(settings.column)] if row else None
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num} is not CSV ({error}): mend its quotes") from error


def _parquet(path: str, settings: TextSettings) -> Rows:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is no parquet file ({error}): write it anew") from error
    with file:
        _check_column(settings.column, file.schema_arrow.names, path)
        batches = file.iter_batches(BATCH, columns=[settings.column])
        values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
        for number, value in enumerate(values, 1):
            yield f"{path}:{number}", value.as_py()


READERS: dict[str, Callable[[str, TextSettings], Rows]] = {
    **dict.fromkeys((".txt", ".txt.gz"), _txt),
    **dict.fromkeys((".jsonl", ".jsonl.gz"), _jsonl),
    **dict.fromkeys((".csv", ".csv.gz"), _csv),
    ".parquet": _parquet,
}


def _extension(path: str) -> str:
    root, end = os.path.splitext(path.lower())
    return os.path.splitext(root)[1] + end if end == ".gz" else end


def _find(patterns: list[str], setting: str) -> list[str]:
    """The files that paths and globs name, each once; those of a glob are sorted."""
    found: dict[str, None] = {}
    for pattern in map(os.path.expanduser, patterns):
        if os.path.isdir(pattern):
            raise ValueError(f"{pattern} in {setting} is a folder: name its files, e.g. {pattern}/*.txt")
        # A path that exists may itself contain a bracket or a star.
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        matches = [os.path.normpath(match) for match in matches if os.path.isfile(match)]
        if not matches:
            folder, name = os.path.split(pattern)
            near = _nearest(name, os.listdir(folder or ".") if os.path.isdir(folder or ".") else [])
            place = f"{setting}, seen from {os.getcwd()}"
            raise ValueError(f"no file matches {pattern!r} in {place}: set a path or glob that does{near}")
        found.update(dict.fromkeys(matches))
    for file in found:
        if _extension(file) not in READERS:
            known = ", ".join(READERS)
            raise ValueError(f"{file} in {setting} has an unknown extension: convert it to one of {known}")
    return list(found)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module, its classes and its functions, in order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler):
            yield from _docstrings(child)


def _pydocs(root: Path) -> Rows:
    """A document for each module under `root` and each topic of `pydoc_data.topics`; nothing is imported."""
    seen = {""}  # a docstring that comes again (copied, vendored) counts once
    for folder, folders, files in os.walk(root):
        # Tests document nothing; site-packages, dist-packages and config-3.x are no identifiers.
        folders[:] = sorted(f for f in folders if f.isidentifier() and f not in TESTS)
        for path in sorted(Path(folder, file) for file in files if file.endswith(".py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            with warnings.catch_warnings(action="ignore"):  # of invalid escapes
                tree = ast.parse(path.read_bytes())
            documents = {name: list(_docstrings(tree))}
            if name == "pydoc_data.topics":
                topics = next(ast.literal_eval(node) for node in ast.walk(tree) if isinstance(node, ast.Dict))
                documents = {f"{name}:{topic}": [inspect.cleandoc(text)] for topic, text in topics.items()}
            for document, parts in documents.items():
                fresh = [part for part in dict.fromkeys(parts) if part not in seen]
                seen.update(fresh)
                yield document, "\n\n".join(fresh)


def _documents(rows: Rows, place: str) -> Iterator[dict[str, str]]:
    """Rows as documents; blank and missing text is left out, and an error if nothing else is there."""
    empty = True
    for name, value in rows:
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{name} holds {value!r:.40} instead of text: set column to a column of strings")
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud83d"
            raise ValueError(f"{name} holds half a character ({error}): mend or delete it") from error
        if size >= 2**31:
            raise ValueError(f"{name} is one document of {size} bytes, Arrow's limit is 2 GiB: cut it")
        if text := value.strip():
            empty = False
            yield {"name": name, "text": text}
    if empty:
        raise ValueError(f"{place} holds no text: fill it, or leave it out")


def _store(documents: Callable[[], Iterator[dict[str, str]]], *key: object) -> Dataset:
    """Stream documents into an Arrow file in the cache of `datasets`; `key` is all that they depend on."""
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=16)  # they depend on this code as well
    digest.update(repr(key).encode())
    name = digest.hexdigest()
    try:
        return Dataset.from_generator(documents, features=FEATURES, fingerprint=name, writer_batch_size=BATCH)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise ValueError(str(error.__cause__)) from error
        raise


def _load_pydocs() -> Dataset:
    root = sysconfig.get_path("stdlib")
    place = f"the standard library in {root}"
    return _store(lambda: _documents(_pydocs(Path(root)), place), "pydocs", root, sys.version)


def _load_files(files: list[str], settings: TextSettings) -> Dataset:
    def documents() -> Iterator[dict[str, str]]:
        for path in files:
            yield from _documents(READERS[_extension(path)](path, settings), path)

    stats = [(os.path.abspath(file), os.path.getsize(file), os.stat(file).st_mtime_ns) for file in files]
    return _store(documents, files, stats, settings.column, settings.document)


def _load_hub(settings: TextSettings, split: str) -> Dataset:
    source, column = settings.source, settings.column
    place = f"data set {source!r}, subset {settings.subset!r}, split {split!r}"
    try:
        dataset = load_dataset(source, settings.subset, split=split)
    except Exception as error:  # there are dozens, of the Hub's client, of fsspec and of datasets itself
        reason, near = " ".join(str(error).split()), _nearest(source, ["pydocs", "files"])
        raise ValueError(
            f"cannot load {place} ({reason}): set source to 'pydocs', 'files', a folder or a Hub name{near}"
        ) from error
    _check_column(column, dataset.column_names, place)

    def documents() -> Iterator[dict[str, str]]:
        rows = ((f"{source}:{split}:{number}", text) for number, text in enumerate(texts(dataset, column)))
        return _documents(rows, place)

    return _store(documents, source, split, column, dataset._fingerprint)


def load_text(settings: TextSettings) -> DatasetDict:
    """Load the documents, streamed into the cache of `datasets`; they are read again only if they changed.

    Returns:
        Splits "train" and "validation", columns "name" (a file, file:row, data set:split:row or module) and
        "text" (paragraphs with blank lines between them; never blank). A held-out split that the settings
        name is taken as it is. Otherwise `hold_out` makes one, from the documents' text (`pydocs`: from their
        names, so that a module keeps its side from one Python to the next); it is empty where there is one
        document only, and the caller decides whether that will do.

    Raises:
        ValueError: one sentence on what is wrong with the settings or the data, where, and what to do.
    """
    source, fraction = settings.source, settings.validation_fraction
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction is {fraction}: set it to at least 0 and less than 1")
    if source != "files" and (settings.files or settings.validation_files):
        raise ValueError(f"source is {source!r} but files are named: set source to 'files', or name none")
    validation = None
    if source == "pydocs":
        return hold_out(_load_pydocs(), fraction, column="name")
    if source == "files":
        if not settings.files:
            raise ValueError("source is 'files' but files is empty: name them there")
        files, held = _find(settings.files, "files"), _find(settings.validation_files, "validation_files")
        if both := set(map(os.path.realpath, files)) & set(map(os.path.realpath, held)):
            raise ValueError(f"{min(both)} is in both files and validation_files: take it out of one")
        train = _load_files(files, settings)
        validation = _load_files(held, settings) if held else None
    else:
        train = _load_hub(settings, settings.split)
        validation = _load_hub(settings, settings.validation_split) if settings.validation_split else None
    if validation is None:
        return hold_out(train, fraction)
    return DatasetDict({"train": train, "validation": validation})
