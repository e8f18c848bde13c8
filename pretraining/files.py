"""Files that are whole or not there, that others may read, and JSON that every program reads."""

import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretraining.errors import UserError

UMASK = os.umask(0)  # it can only be read by setting it
os.umask(UMASK)

SUMS = "SHA256SUMS"
REFERENCE = "reference.safetensors"  # in a run's folder

# Why a folder cannot be written to: no room, or no right.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


def _unwritable(folder: Path, setting: str, error: OSError) -> UserError:
    return UserError(
        f"{folder} cannot be written to ({error.strerror or error}): make room or mend its rights, or set {setting} to "
        "another folder."
    )


@contextmanager
def writing_to(folder: Path, setting: str) -> Iterator[None]:
    """Where what is done inside finds no room in the folder, or may not write there, it is a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise _unwritable(folder, setting, error) from error


def check_writable(folder: Path, setting: str) -> None:
    """Makes a folder, and writes to it; a UserError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
    except OSError as error:
        raise _unwritable(folder, setting, error) from error


def follow_umask(path: Path) -> None:
    """Gives a file, or a folder with all that is in it, the modes of the umask: safetensors writes for its owner."""
    for each in [path, *path.rglob("*")]:
        mode = each.stat().st_mode
        allowed = mode | (0o777 if each.is_dir() else 0o666) & ~UMASK
        if allowed != mode:
            each.chmod(allowed)


def sync(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk, where a power cut cannot undo it."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        _sync(each)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def publish(unfinished: Path, final: Path) -> None:
    """Renames what is complete.

    A rename can reach the disk before the bytes that it names: so these are waited for first, and then the rename.
    """
    follow_umask(unfinished)
    sync(unfinished)
    os.replace(unfinished, final)
    _sync(final.parent)


def write_text(path: Path, text: str) -> None:
    """A file with this text: a kill leaves the one before."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    publish(unfinished, path)


def hashes(folder: Path) -> dict[str, str]:
    """A hash of each file in a folder, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())

    def of(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to the other threads
        return {str(path.relative_to(folder)): digest for path, digest in zip(paths, pool.map(of, paths), strict=True)}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """SHA256SUMS, which `sha256sum --check` reads: the SHA-256 of each file in a folder, by its path there."""
    sums = folder / SUMS
    sums.unlink(missing_ok=True)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    sums.write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """What SHA256SUMS says: the SHA-256 of each file that was written into a folder; empty where there is none.

    Raises:
        UserError: it names what lies elsewhere.
    """
    path = folder / SUMS
    lines = path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []
    named = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in named:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{path} names {name!r}, which is no file of that folder: put back what training wrote.")
    return named


def changed(folder: Path, sums: dict[str, str]) -> list[str]:
    """The files of a folder that are missing, or others than their SHA-256 says."""
    return [name for name, digest in sums.items() if not (folder / name).is_file() or sha256(folder / name) != digest]


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON, in which what is infinite or not a number is null: it has no other word for it."""
    return json.dumps(without_nan(value), indent=indent, allow_nan=False)


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
