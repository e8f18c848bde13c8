"""What is worked out once: folders in the cache, under a hash of all that decides their content."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from pretraining.files import check_writable, publish, writing_to

MARK = "complete.json"


def folder_name(kind: str, content: list[Any]) -> str:
    """A name for what `content` decides."""
    return f"{kind}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]}"


def check_cache(cache: Path) -> None:
    """Raises UserError where the cache cannot be written to; one that holds something may hold all that is needed."""
    if not (cache.is_dir() and any(cache.iterdir())):
        check_writable(cache, "cache")


def _make(folder: Path, kind: str, make: Callable[[Path], dict[str, Any]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what a deletion left that was cut short
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
        unfinished = Path(temporary, kind)
        unfinished.mkdir()
        meta = make(unfinished)
        (unfinished / MARK).write_text(json.dumps(meta))
        publish(unfinished, folder)


def build_cached(
    cache: Path, kind: str, content: list[Any], make: Callable[[Path], dict[str, Any]], is_builder: bool
) -> Path:
    """The folder for `content` in the cache, made if it is not there; it appears whole.

    Args:
        kind: what it is; the folder's name begins with it.
        content: all that decides what is in it.
        make: fills an empty folder, and returns what `read_meta` is to give.
        is_builder: whether this process makes it; the others wait.
    """
    folder = cache / folder_name(kind, content)
    if is_builder and not (folder / MARK).exists():
        check_writable(cache, "cache")
        lock = cache / f".{folder.name}.lock"
        with writing_to(cache, "cache"), FileLock(lock):  # of several runs or nodes that share the cache, one makes it
            try:
                if not (folder / MARK).exists():
                    _make(folder, kind, make)
            finally:
                lock.unlink(missing_ok=True)  # before it is free: FileLock sees that, and those who wait make another
    while not (folder / MARK).exists():
        time.sleep(0.2)
    return folder


def read_meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MARK).read_text())
