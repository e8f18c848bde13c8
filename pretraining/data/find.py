"""The files that settings name, by paths and globs: each once, and readable."""

import difflib
import fnmatch
import glob
import os
import stat
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from pretraining.errors import UserError, tell

SAVED = ("dataset_info.json", "dataset_dict.json")  # either is in what `save_to_disk` has written


def is_saved(folder: str) -> bool:
    """Whether it is a folder of `save_to_disk`."""
    return any(os.path.exists(os.path.join(folder, file)) for file in SAVED)


def shown(path: str) -> str:
    """A path that can be printed and stored, in one line, whatever bytes it is made of."""
    name = os.fsencode(path).decode(errors="backslashreplace")
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def nearest(name: str, names: Iterable[str]) -> str:
    """What a message adds: the name that was meant, if one is like it, or looks the same in another normal form."""
    names = list(names)
    for other in names:
        if other != name and unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name):
            return f" (but {other!a}, which looks the same in another normal form of Unicode)"
    return "".join(f" (did you mean {near!r}?)" for near in difflib.get_close_matches(name, names, n=1))


def extension(path: str) -> str:
    root, end = os.path.splitext(path.lower())
    return os.path.splitext(root)[1] + end if end == ".gz" else end


def identity(path: str) -> tuple[int, int]:
    """What all paths of one file or folder have in common."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _raise(error: OSError) -> None:
    raise error


def _folders(top: str, again: list[str]) -> Iterator[str]:
    """The folders from `top` down, each once, those behind links last; paths to one that was there go to `again`."""
    seen: set[tuple[int, int]] = set()
    tops = deque([top])
    while tops:
        for folder, below, _ in os.walk(tops.popleft(), onerror=_raise):
            below[:] = sorted(name for name in below if not name.startswith("."))
            if (state := identity(folder)) in seen:
                again.append(folder)
                below.clear()
                continue
            seen.add(state)
            tops += filter(os.path.islink, (os.path.join(folder, name) for name in below))
            yield folder


def _matches(folder: str, parts: list[str], again: list[str]) -> Iterator[str]:
    """What the parts of a glob match below a folder.

    `glob.glob` passes over folders that may not be read, and goes round a loop of links forty times, both in silence.
    """
    part, *rest = parts
    if part == "**":
        for each in _folders(folder or ".", again):
            yield from _matches(each, rest or ["*"], again)
        return
    names = [part]
    if glob.has_magic(part) and not os.path.lexists(os.path.join(folder, part)):
        names = fnmatch.filter(sorted(os.listdir(folder or ".")), part)
        names = [name for name in names if part.startswith(".") or not name.startswith(".")]
    for path in (os.path.join(folder, name) for name in names):
        try:
            state = os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path) and not rest:  # a link to nothing
                raise
            continue
        if not rest:
            yield path
        elif stat.S_ISDIR(state.st_mode):
            yield from _matches(path, rest, again)


def find(patterns: list[str], setting: str, known: Iterable[str] | None = None, repeats: bool = False) -> list[str]:
    """The files that paths and globs name, each once; those of a glob are sorted.

    Args:
        setting: the setting of data that they stand in, for messages.
        repeats: a file counts once for each pattern that names it.

    Raises:
        UserError: a pattern names a folder, no file or one that may not be read, or a file's extension is not among the
            `known` ones.
    """
    files: dict[object, str] = {}
    again: list[str] = []  # paths that lead where others lead
    for number, pattern in enumerate(map(os.path.expanduser, patterns)):
        name = shown(pattern)
        if os.path.exists(pattern) and not os.path.isfile(pattern) and not os.path.isdir(pattern):
            raise UserError(f"{name} in data.{setting} is a pipe or a device: write what it gives into a file.")
        if os.path.isdir(pattern):
            mend = f"set data.source to {name}" if is_saved(pattern) else f"name its files, as in {name}/*.txt"
            raise UserError(f"{name} in data.{setting} is a folder: {mend}.")
        try:
            # A path that exists may itself contain a bracket or a star.
            is_file = os.path.isfile(pattern)
            matches = [pattern] if is_file else list(_matches("", list(Path(pattern).parts) or [""], again))
            matches = sorted({os.path.normpath(path) for path in matches if os.path.isfile(path)})
            folder, name = os.path.split(pattern)
            near = "" if matches or not os.path.isdir(folder or ".") else nearest(name, os.listdir(folder or "."))
            for path in matches:
                with open(path, "rb"):  # raises where it may not be read
                    pass
                key = (number, *identity(path)) if repeats else identity(path)
                if files.setdefault(key, path) != path:
                    again.append(path)
        except OSError as error:
            place = shown(str(error.filename))
            raise UserError(
                f"{place} in data.{setting} cannot be read ({error.strerror}): mend its rights or its link, or leave "
                "it out."
            ) from error
        if not matches:
            place = f"data.{setting}, seen from {os.getcwd()}"
            raise UserError(f"no file matches {pattern!r} in {place}: set a path or glob that does{near}.")
    for file in files.values():
        if known is not None and extension(file) not in known:
            choice = ", ".join(known)
            raise UserError(f"{shown(file)} in data.{setting} has an unknown extension: convert it to one of {choice}.")
    if again:
        paths = shown(again[0]) + (f" and {len(again) - 1:,} others" if len(again) > 1 else "")
        tell(f"data.{setting}: these paths lead to files that others lead to, which are read once: {paths}")
    return list(files.values())


def check_apart(files: list[str], held_out: list[str], setting: str) -> None:
    identities = set(map(identity, held_out))
    for file in files:
        if identity(file) in identities:
            both = f"data.{setting} and data.validation_{setting}"
            raise UserError(f"{shown(file)} is in both {both}: take it out of one.")


def state_of(path: str, found: os.stat_result) -> tuple[str, int, int, int]:
    """What changes when a file, or the right to read it, does.

    The time of its last change cannot be set, as that of its text can.
    """
    return path, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def state(files: Iterable[str]) -> list[tuple[str, int, int, int]]:
    """The `state_of` each file."""
    return [state_of(os.path.abspath(file), os.stat(file)) for file in files]
