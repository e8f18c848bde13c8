"""Hash, size and sums of each image of a source, and its pixels where there is room: read once and cached."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from pretraining.data.arrays import open_arrays, write_arrays
from pretraining.data.cache import build_cached, read_meta
from pretraining.data.images.decode import Coloured, Unreadable, look
from pretraining.data.images.rows import Source, encoded
from pretraining.data.shards import in_order
from pretraining.data.stored import hash_bytes
from pretraining.errors import UserError, one_line

VERSION = 2  # of what lies on disk: raise it when the arrays change, and old caches are left alone
ARRAYS = {"hashes": "uint64", "sizes": "int32", "sums": "int64", "squares": "int64"}
LEVELS = np.arange(256)
FULL = "full"  # a file that tells all processes that the pixels need too much room


@dataclass(frozen=True)
class Contents:
    """What was read from the N encoded images of a source, C channels each."""

    hashes: np.ndarray
    """(N,): a hash of the encoded image, 64 bits."""
    sizes: np.ndarray
    """(N, 2): height and width; zeros where an image cannot be read."""
    sums: np.ndarray
    """(N, C): the sum of the pixels' values."""
    squares: np.ndarray
    """(N, C): the sum of their squares."""
    bad: list[tuple[str, str]]
    """Place and reason of each image that cannot be read."""
    transparent: list[int]
    """The row of each image whose transparency was dropped."""
    pixels: Path | None
    """The file of all pixels, one image after another; None: they would take more room than they may."""

    @classmethod
    def load(cls, folder: Path, channels: int) -> "Contents":
        meta = read_meta(folder)
        arrays = open_arrays(folder, ARRAYS)
        for name, width in {"sizes": 2, "sums": channels, "squares": channels}.items():
            arrays[name] = arrays[name].reshape(-1, width)
        bad = [(place, reason) for place, reason in meta["bad"]]
        pixels = folder / "pixels.bin" if meta["decoded"] else None
        return cls(**arrays, bad=bad, transparent=meta["transparent"], pixels=pixels)


def examine(source: Source, channels: int, folder: Path, shard: range) -> dict[str, Any]:
    """Of a shard's images the `ARRAYS`, the "bad" (row, reason), the "transparent" and the first "coloured" row.

    Unless `FULL` is there, the pixels go to a file in `folder`, so that one image at a time is in memory.
    """
    lists: dict[str, list] = {name: [] for name in (*ARRAYS, "bad", "transparent")}
    room_left = not (folder / FULL).exists()
    with _pixels_of(shard, folder).open("wb") as file:
        for row, value in zip(shard, source.values(shard), strict=True):
            hashed, size, histogram = 0, (0, 0), np.zeros((channels, len(LEVELS)), dtype=np.int64)
            try:
                data = encoded(value)
                pixels, has_alpha = look(data, channels)
            except Coloured:
                return {"coloured": row}
            except (Unreadable, OSError) as error:
                lists["bad"].append((row, one_line(error)))
            else:
                hashed, size = hash_bytes(data), pixels.shape[:2]
                levels = Image.fromarray(pixels if channels > 1 else pixels[..., 0]).histogram()
                histogram = np.array(levels).reshape(channels, -1)
                if has_alpha:
                    lists["transparent"].append(row)
                if room_left:
                    pixels.tofile(file)
            lists["hashes"].append(hashed)
            lists["sizes"].append(size)
            lists["sums"].append(histogram @ LEVELS)
            lists["squares"].append(histogram @ LEVELS**2)
    arrays: dict[str, Any] = {name: np.array(lists[name], dtype=kind) for name, kind in ARRAYS.items()}
    return arrays | {"bad": lists["bad"], "transparent": lists["transparent"], "coloured": None}


def _pixels_of(shard: range, folder: Path) -> Path:
    return folder / f"{shard.start}.pixels"


def examine_all(folder: Path, source: Source, channels: int, room: int, processes: int) -> dict[str, Any]:
    """Streams all images through `examine` into `folder`, their pixels too if they take at most `room` bytes."""
    bad: list[tuple[str, str]] = []
    transparent: list[int] = []
    total = 0
    work = partial(examine, source, channels, folder)
    with write_arrays(folder, ARRAYS) as append, (folder / "pixels.bin").open("wb") as pixels:
        for shard, arrays in in_order(work, source.shards(), processes, "reading images", "images"):
            if arrays["coloured"] is not None:
                raise UserError(
                    f"{source.place(arrays['coloured'])} has colours, but model.num_channels is 1: set it to 3, or "
                    "convert all images to grey"
                )
            append(arrays)
            bad += [(source.place(row), reason) for row, reason in arrays["bad"]]
            transparent += arrays["transparent"]
            total += int(arrays["sizes"].prod(axis=1, dtype=np.int64).sum()) * channels
            path = _pixels_of(shard, folder)
            if total <= room:
                with path.open("rb") as shard_pixels:
                    shutil.copyfileobj(shard_pixels, pixels)
            else:
                (folder / FULL).touch()
                pixels.truncate(0)
            path.unlink()
    (folder / FULL).unlink(missing_ok=True)
    return {"bad": bad, "transparent": transparent, "decoded": total <= room}


def find_contents(source: Source, channels: int, room: int, processes: int, cache: Path, is_builder: bool) -> Contents:
    """The contents of a source's images, from the cache if they are there.

    Args:
        room: bytes that the decoded pixels may take; if they need more, none are stored.
        processes: number of processes that read images; it changes no result.
        cache, is_builder: as in `build_cached`.

    Raises:
        UserError: `channels` is 1 and an image has colours.
    """

    def make(folder: Path) -> dict[str, Any]:
        return examine_all(folder, source, channels, room, processes)

    content = [VERSION, PIL.__version__, channels, room, source.key]
    return Contents.load(build_cached(cache, "images", content, make, is_builder), channels)
