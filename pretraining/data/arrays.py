"""Named arrays in a folder, a file for each: written shard by shard, opened memory-mapped."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def write_arrays(
    folder: Path, types: dict[str, str], offsets: Collection[str] = ()
) -> Iterator[Callable[[dict[str, np.ndarray]], None]]:
    """Gives a function that appends the next part of every array; at the end of the context the files are complete.

    Args:
        types: the dtype of each array.
        offsets: arrays that are given as lengths, and become the places where things of these lengths begin: 0 first,
            the sum of all lengths last.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in types}
        ends = dict.fromkeys(offsets, 0)
        for name in offsets:
            np.zeros(1, dtype=types[name]).tofile(files[name])

        def append(arrays: dict[str, np.ndarray]) -> None:
            for name, file in files.items():
                array = arrays[name]
                if name in ends:
                    array = ends[name] + array.cumsum()
                    ends[name] += int(arrays[name].sum())
                array.astype(types[name], copy=False).tofile(file)

        yield append


def open_array(path: Path, kind: str) -> np.ndarray:
    """Memory-mapped, which an empty file cannot be."""
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, dtype=kind)


def open_arrays(folder: Path, types: dict[str, str]) -> dict[str, np.ndarray]:
    """What `write_arrays` has written; every array is flat."""
    return {name: open_array(folder / f"{name}.bin", kind) for name, kind in types.items()}
