"""The docstrings of Python's own library, each labelled with the package that it comes from."""

import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from finetuning.data import rows as table_rows
from finetuning.data.columns import Found
from finetuning.data.rows import FEATURES, text_row
from pretraining.data.readers import Row
from pretraining.data.stored import store
from pretraining.data.text import sources
from pretraining.data.text.sources import read_docstrings

PACKAGES = 12
SHORTEST = 20  # characters of a docstring that says something
# Some installations lack these: distributions pack them apart, or Python 3.12 and 3.13 have removed them.
MISSING = {
    "asynchat", "asyncore", "cgi", "cgitb", "chunk", "crypt", "distutils", "ensurepip", "idlelib", "imghdr", "imp",
    "lib2to3", "mailcap", "msilib", "nntplib", "pipes", "pydoc_data", "smtpd", "sndhdr", "sunau", "telnetlib", "test",
    "tkinter", "turtle", "turtledemo", "uu", "venv", "xdrlib",
}  # fmt: skip
PUBLIC = {name for name in sys.stdlib_module_names if not name.startswith("_")} - MISSING


def read_pydocs(root: Path) -> list[tuple[str, str, str]]:
    """Place, docstring and package: of the packages with the most docstrings that every installation has.

    A docstring counts from `SHORTEST` characters on. Of two packages that have as many, the first by name is taken.
    """
    docstrings: list[tuple[str, str, str]] = []
    for module, new in read_docstrings(root):
        package = module.partition(".")[0]
        if package in PUBLIC:
            texts = enumerate(text.strip() for text in new)
            docstrings += [(f"{module}:{number}", text, package) for number, text in texts if len(text) >= SHORTEST]
    counts = Counter(package for _, _, package in docstrings)
    packages = sorted(counts, key=lambda package: (-counts[package], package))[:PACKAGES]
    return [row for row in docstrings if row[2] in packages]


def load_pydocs() -> Dataset:
    """The docstrings in the form of labelled texts; they are read again only if Python changed."""
    root = sysconfig.get_path("stdlib")
    found = Found({"text": "text", "label": "label"}, {"text": "text_column", "label": "label_column"})

    def rows() -> Iterator[Row]:
        for name, text, package in read_pydocs(Path(root)):
            yield text_row(name, {"text": text, "label": package}, found, None)

    code = [__file__, table_rows.__file__, sources.__file__]
    return store(rows, FEATURES["text"], "docstrings", code, "pydocs-package", root, sys.version)
