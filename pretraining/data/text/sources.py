"""Text sources: files, Hub data sets and Python's own documentation, read into one form on disk."""

import ast
import inspect
import itertools
import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

from datasets import Dataset, Features, Value

from pretraining.data import readers
from pretraining.data.find import check_apart, extension, find, shown, state
from pretraining.data.readers import TABLES, check_text, lines
from pretraining.data.stored import hash_text, store
from pretraining.data.text.settings import TextSource
from pretraining.errors import UserError

# The hash and the length are taken while a document is stored, so that no later start has to read the text for them.
FEATURES = Features(
    {"name": Value("string"), "text": Value("string"), "hash": Value("uint64"), "characters": Value("int64")}
)
TESTS = {"test", "tests", "idle_test"}  # folders of the standard library
TXT = (".txt", ".txt.gz")
KNOWN = (*TXT, *TABLES)  # extensions

Rows = Iterable[tuple[str, object]]  # name and text
Document = dict[str, str | int]


def _txt(path: str, document: str) -> Rows:
    name = shown(path)
    if document == "file":
        yield name, "".join(lines(path))
    elif document == "line":
        for number, line in enumerate(lines(path), 1):
            yield f"{name}:{number}", line
    else:
        for _, block in itertools.groupby(enumerate(lines(path), 1), key=lambda row: row[1].isspace()):
            numbers, document_lines = zip(*block, strict=True)
            yield f"{name}:{numbers[0]}", "".join(document_lines)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module, its classes and its functions, in order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler):
            yield from _docstrings(child)


def read_docstrings(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The new docstrings of each module under `root`, and each topic of `pydoc_data.topics`; nothing is imported."""
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
            for document, docstrings in documents.items():
                new = [docstring for docstring in dict.fromkeys(docstrings) if docstring not in seen]
                seen.update(new)
                yield document, new


def _pydocs(root: Path) -> Rows:
    """A document for each module under `root` and each topic of `pydoc_data.topics`."""
    return ((name, "\n\n".join(docstrings)) for name, docstrings in read_docstrings(root))


def as_documents(rows: Rows, place: str) -> Generator[Document, None, int]:
    """Rows as documents, and the number of those left out as blank or missing; an error if nothing else is there."""
    empty, blank = True, 0
    for name, value in rows:
        text = "" if value is None else check_text(value, name).strip()
        blank += not text
        if text:
            empty = False
            yield {"name": name, "text": text, "hash": hash_text(text), "characters": len(text)}
    if empty:
        raise UserError(f"{place} holds no text: fill it, or leave it out.")
    return blank


def _tell_blank(blank: int) -> Iterator[str]:
    if blank:
        yield f"{blank:,} rows hold no text, and are left out"


def _store(documents: Callable[[], Iterator[Document | str]], *key: object) -> Dataset:
    return store(documents, FEATURES, "documents", [__file__, readers.__file__], *key)


def _load_pydocs() -> Dataset:
    root = sysconfig.get_path("stdlib")
    place = f"the standard library in {root}"
    return _store(lambda: as_documents(_pydocs(Path(root)), place), "pydocs", root, sys.version)


def _load_files(files: list[str], settings: TextSource) -> Dataset:
    def rows(path: str) -> Rows:
        if extension(path) in TXT:
            return _txt(path, settings.document)
        table = TABLES[extension(path)](path, {settings.column: "column"})
        return ((name, row[settings.column]) for name, row in table)

    def documents() -> Iterator[Document | str]:
        blank = 0
        for path in files:
            left_out = yield from as_documents(rows(path), shown(path))
            blank += left_out if extension(path) in TABLES else 0  # blank lines of a text are no rows
        yield from _tell_blank(blank)

    return _store(documents, files, state(files), settings.column, settings.document)


def _load_hub(settings: TextSource, split: str) -> Dataset:
    source, column = settings.source, settings.column
    dataset, place = readers.load_hub(source, settings.subset, split, {column: "column"}, ["pydocs", "files"])

    def documents() -> Iterator[Document | str]:
        rows = ((name, row[column]) for name, row in readers.hub_rows(dataset, source, split, [column]))
        blank = yield from as_documents(rows, place)
        yield from _tell_blank(blank)

    return _store(documents, source, split, column, dataset._fingerprint)


def load_source(settings: TextSource) -> tuple[Dataset, Dataset | None]:
    """Load a source's documents, streamed into the cache of `datasets`; they are read again only if they changed.

    Returns:
        The documents, and those that the settings name as held out, if they name any. Columns are "name" (a file,
        file:row, data set:split:row or module), "text" (paragraphs with blank lines between them; never blank),
        "hash" of the text and its "characters".

    Raises:
        UserError: the settings or the data are wrong.
    """
    source = settings.source
    if source != "files" and (settings.files or settings.validation_files):
        raise UserError(f"data.source is {source!r} but files are named: set data.source to 'files', or name none.")
    if source == "pydocs":
        return _load_pydocs(), None
    if source == "files":
        if not settings.files:
            raise UserError("data.source is 'files' but data.files is empty: name them there.")
        files = find(settings.files, "files", KNOWN)
        held_out = find(settings.validation_files, "validation_files", KNOWN)
        check_apart(files, held_out, "files")
        return _load_files(files, settings), _load_files(held_out, settings) if held_out else None
    held_out_split = settings.validation_split
    return _load_hub(settings, settings.split), _load_hub(settings, held_out_split) if held_out_split else None
