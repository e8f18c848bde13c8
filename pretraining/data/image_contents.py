"""What each image of a source holds, found once in several processes and cached: its pixels too where there is room."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from pretraining.data.cache import once, open_array, read_meta
from pretraining.data.image_rows import Source, encoded
from pretraining.data.parallel import in_order
from pretraining.data.pixels import Coloured, Unreadable, decode
from pretraining.data.stored import hash_bytes

VERSION = 1  # of what lies on disk: raise it when the arrays change, and old caches are left alone
ARRAYS = {"hashes": "uint64", "sizes": "int32", "sums": "int64", "squares": "int64"}
LEVELS = np.arange(256)


@dataclass(frozen=True)
class Contents:
    """What N encoded images hold."""

    hashes: np.ndarray
    """(N,): 64 bits of the encoded image."""
    sizes: np.ndarray
    """(N, 2): height and width; zeros where an image cannot be read."""
    sums: np.ndarray
    """(N, C): of the pixels' values, by channel."""
    squares: np.ndarray
    """(N, C): of the pixels' squared values, by channel."""
    bad: list[tuple[str, str]]
    """Place and reason of each image that cannot be read."""
    pixels: Path | None
    """The file of all pixels, one image after another; none: they need more room than they may take."""

    @classmethod
    def load(cls, folder: Path, channels: int) -> "Contents":
        meta = read_meta(folder)
        arrays = {name: open_array(folder / f"{name}.bin", kind) for name, kind in ARRAYS.items()}
        for name, width in {"sizes": 2, "sums": channels, "squares": channels}.items():
            arrays[name] = arrays[name].reshape(-1, width)
        bad = [(place, reason) for place, reason in meta["bad"]]
        return cls(**arrays, bad=bad, pixels=folder / "pixels.bin" if meta["decoded"] else None)


def examine(source: Source, channels: int, shard: range) -> dict[str, Any]:
    """The arrays of a shard's images, their "pixels", the "bad" ones (row, reason) and the first "coloured" row."""
    found: dict[str, list] = {name: [] for name in (*ARRAYS, "pixels", "bad")}
    for row, value in zip(shard, source.values(shard), strict=True):
        hashed, size, histogram = 0, (0, 0), np.zeros((channels, len(LEVELS)), dtype=np.int64)
        try:
            data = encoded(value)
            pixels = decode(data, channels)
        except Coloured:
            return {"coloured": row}
        except (Unreadable, OSError) as error:
            found["bad"].append((row, getattr(error, "strerror", None) or str(error)))
        else:
            hashed, size = hash_bytes(data), pixels.shape[:2]
            levels = Image.fromarray(pixels if channels > 1 else pixels[..., 0]).histogram()
            histogram = np.array(levels).reshape(channels, -1)
            found["pixels"].append(pixels.ravel())
        found["hashes"].append(hashed)
        found["sizes"].append(size)
        found["sums"].append(histogram @ LEVELS)
        found["squares"].append(histogram @ LEVELS**2)
    result: dict[str, Any] = {name: np.array(found[name], dtype=kind) for name, kind in ARRAYS.items()}
    result["pixels"] = np.concatenate(found["pixels"]) if found["pixels"] else np.empty(0, dtype=np.uint8)
    return result | {"bad": found["bad"], "coloured": None}


def write(folder: Path, source: Source, channels: int, room: int, processes: int) -> dict[str, Any]:
    """Streams all images through `examine` into `folder`, their pixels too if they take at most `room` bytes."""
    files = {name: (folder / f"{name}.bin").open("wb") for name in (*ARRAYS, "pixels")}
    bad: list[tuple[str, str]] = []
    total = 0
    work = partial(examine, source, channels)
    for _, part in in_order(work, source.shards(), processes, "reading images", "images"):
        if part["coloured"] is not None:
            raise ValueError(
                f"{source.place(part['coloured'])} has colours, but model.num_channels is 1: set it to 3, or convert "
                "all images to grey"
            )
        for name in ARRAYS:
            part[name].tofile(files[name])
        bad += [(source.place(row), reason) for row, reason in part["bad"]]
        before, total = total, total + len(part["pixels"])
        if total <= room:
            part["pixels"].tofile(files["pixels"])
        elif before <= room:
            files["pixels"].truncate(0)
    for file in files.values():
        file.close()
    return {"bad": bad, "decoded": total <= room}


def find_contents(source: Source, channels: int, room: int, processes: int, cache: Path, writer: bool) -> Contents:
    """What the images of a source hold, from the cache if it is there.

    Args:
        room: bytes that the decoded pixels may take; if they need more, none are kept.
        processes: how many read images; what they write is the same for any number.
        cache, writer: as in `once`.

    Raises:
        ValueError: `channels` is 1 and an image has colours.
    """

    def make(folder: Path) -> dict[str, Any]:
        return write(folder, source, channels, room, processes)

    content = [VERSION, PIL.__version__, channels, room, source.key]
    return Contents.load(once(cache, "images", content, make, writer), channels)
