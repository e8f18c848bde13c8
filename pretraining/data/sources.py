"""Text sources: files, Hub data sets and Python's own documentation, read into one form on disk."""

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
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value, load_dataset
from filelock import FileLock
from tqdm import tqdm

from pretraining.data.settings import TextSource

# The hash and the length are taken while a document is stored, so that no later start has to read the text for them.
FEATURES = Features(
    {"name": Value("string"), "text": Value("string"), "hash": Value("uint64"), "characters": Value("int64")}
)
CHARACTERS = 2**22  # of documents held in memory at a time, unless one alone has more
OVERHEAD = 100  # characters that a document counts beyond its own: many short ones are work too
BATCH = 16  # documents read at a time; they can be whole books
TESTS = {"test", "tests", "idle_test"}  # folders of the standard library

Rows = Iterable[tuple[str, object]]  # name and text


def texts(dataset: Dataset, column: str = "text") -> Iterator[str]:
    """One column's values, few in memory at a time; far faster than iterating over `dataset[column]`."""
    for batch in dataset.select_columns(column).with_format("arrow").iter(BATCH):
        for value in batch[column]:
            yield value.as_py()


def hash_text(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


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


def _txt(path: str, settings: TextSource) -> Rows:
    if settings.document == "file":
        yield path, "".join(_lines(path))
    elif settings.document == "line":
        for number, line in enumerate(_lines(path), 1):
            yield f"{path}:{number}", line
    else:
        for _, block in itertools.groupby(enumerate(_lines(path), 1), key=lambda row: row[1].isspace()):
            numbers, lines = zip(*block, strict=True)
            yield f"{path}:{numbers[0]}", "".join(lines)


def _jsonl(path: str, settings: TextSource) -> Rows:
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


def _csv(path: str, settings: TextSource) -> Rows:
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


def _parquet(path: str, settings: TextSource) -> Rows:
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


READERS: dict[str, Callable[[str, TextSource], Rows]] = {
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


def as_documents(rows: Rows, place: str) -> Iterator[dict[str, str | int]]:
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
            yield {"name": name, "text": text, "hash": hash_text(text), "characters": len(text)}
    if empty:
        raise ValueError(f"{place} holds no text: fill it, or leave it out")


def _store(documents: Callable[[], Iterator[dict[str, str | int]]], *key: object) -> Dataset:
    """Stream documents into an Arrow file in the cache of `datasets`; `key` is all that they depend on.

    `Dataset.from_generator` would count the documents of a batch, not their characters: a hundred books are much
    memory while writing, and a hundred lines so little that the index of the batches becomes much while reading.
    """
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=16)  # they depend on this code as well
    digest.update(repr(key).encode())
    path = Path(datasets.config.HF_DATASETS_CACHE, "keel", f"{digest.hexdigest()}.arrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # of the processes on this machine, one reads
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            rows = tqdm(documents(), "reading", unit=" documents", disable=None, leave=False)
            try:
                with pa.ipc.new_stream(unfinished, FEATURES.arrow_schema) as file:
                    for batch in _batches(rows):
                        file.write_batch(pa.RecordBatch.from_pylist(batch, FEATURES.arrow_schema))
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
    return Dataset.from_file(str(path))


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Documents in lists of at most `CHARACTERS`, or of one document."""
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


def _load_pydocs() -> Dataset:
    root = sysconfig.get_path("stdlib")
    place = f"the standard library in {root}"
    return _store(lambda: as_documents(_pydocs(Path(root)), place), "pydocs", root, sys.version)


def _load_files(files: list[str], settings: TextSource) -> Dataset:
    def documents() -> Iterator[dict[str, str | int]]:
        for path in files:
            yield from as_documents(READERS[_extension(path)](path, settings), path)

    stats = [(os.path.abspath(file), os.path.getsize(file), os.stat(file).st_mtime_ns) for file in files]
    return _store(documents, files, stats, settings.column, settings.document)


def _load_hub(settings: TextSource, split: str) -> Dataset:
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

    def documents() -> Iterator[dict[str, str | int]]:
        rows = ((f"{source}:{split}:{number}", text) for number, text in enumerate(texts(dataset, column)))
        return as_documents(rows, place)

    return _store(documents, source, split, column, dataset._fingerprint)


def load_source(settings: TextSource) -> tuple[Dataset, Dataset | None]:
    """Load a source's documents, streamed into the cache of `datasets`; they are read again only if they changed.

    Returns:
        The documents, and those that the settings name as held out, if they name any. Columns are "name" (a file,
        file:row, data set:split:row or module), "text" (paragraphs with blank lines between them; never blank),
        "hash" of the text and its "characters".

    Raises:
        ValueError: one sentence on what is wrong with the settings or the data, where, and what to do.
    """
    source = settings.source
    if source != "files" and (settings.files or settings.validation_files):
        raise ValueError(f"source is {source!r} but files are named: set source to 'files', or name none")
    if source == "pydocs":
        return _load_pydocs(), None
    if source == "files":
        if not settings.files:
            raise ValueError("source is 'files' but files is empty: name them there")
        files, held = _find(settings.files, "files"), _find(settings.validation_files, "validation_files")
        if both := set(map(os.path.realpath, files)) & set(map(os.path.realpath, held)):
            raise ValueError(f"{min(both)} is in both files and validation_files: take it out of one")
        return _load_files(files, settings), _load_files(held, settings) if held else None
    held_out = settings.validation_split
    return _load_hub(settings, settings.split), _load_hub(settings, held_out) if held_out else None
