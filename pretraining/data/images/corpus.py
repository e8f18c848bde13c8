"""The images of a run: which of a source's are in which split, what is left out, and their pixels."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pretraining.data import draws
from pretraining.data.arrays import open_array
from pretraining.data.images.contents import Contents, find_contents
from pretraining.data.images.decode import Coloured, Unreadable, decode
from pretraining.data.images.rows import Source, encoded
from pretraining.data.images.settings import ImageSettings
from pretraining.data.images.sources import load_sources
from pretraining.data.shards import count_processes
from pretraining.data.split import first_equal, is_held_out
from pretraining.errors import UserError


def choose(labels: np.ndarray, hashes: np.ndarray, count: int) -> np.ndarray:
    """Which of the images (N,) are the `count` to train on, bool (N,): as many of each class, while it has any.

    The content alone decides, so they are the same in any order, and the first 100 are among the first 1,000.
    """
    drawn = draws.hash_key(draws.SUBSET, hashes)
    order = np.lexsort((drawn, labels))
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    turn = np.empty(len(labels), dtype=np.int64)
    turn[order] = np.arange(len(labels)) - np.repeat(starts, sizes)  # 0 for the first of each class
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.lexsort((drawn, turn))[:count]] = True
    return chosen


@lru_cache(maxsize=8)
def _open(path: str) -> np.ndarray:
    """The array in a file, which each process opens for itself; a plain view of the map is cut up ten times faster."""
    return np.asarray(open_array(Path(path), "uint8"))


@dataclass(frozen=True)
class Images:
    """N images of a split; what is large lies on disk, so that a copy for another process is small."""

    name: str
    """A hash of the encoded images, their order, labels, classes and channels, the same on every machine."""
    labels: np.ndarray
    """(N,) int64: the class of each, a number into `classes`; -100 where none is asked for."""
    sizes: np.ndarray
    """(N, 2) int64: height and width of each as it is seen, by its EXIF orientation."""
    classes: list[str]
    channels: int
    source: Source
    rows: np.ndarray
    """(N,): the row of each in the source."""
    pixels: str | None
    """The file of the decoded pixels; none: each image is decoded when it is asked for."""
    starts: np.ndarray
    """(N,): where the pixels of each begin in it."""

    @classmethod
    def of(cls, source: Source, contents: Contents, rows: np.ndarray, channels: int) -> "Images":
        """Some rows of a source."""
        labels, sizes = source.labels[rows], contents.sizes[rows].astype(np.int64)
        digest = hashlib.sha256(json.dumps([source.classes, channels]).encode())
        for array in (contents.hashes[rows], labels):
            digest.update(array.tobytes())
        ends = (contents.sizes.prod(axis=1, dtype=np.int64) * channels).cumsum()
        starts = np.concatenate([[0], ends])[rows]
        pixels = str(contents.pixels) if contents.pixels else None
        return cls(digest.hexdigest()[:24], labels, sizes, source.classes, channels, source, rows, pixels, starts)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, number: int) -> str:
        """How messages name an image: its file, or its table and row."""
        return self.source.place(int(self.rows[number]))

    def image(self, number: int) -> np.ndarray:
        """An image's pixels, uint8 (height, width, channels), not to be written to.

        Raises:
            UserError: its file is no longer what it was when it was prepared.
        """
        shape = (*self.sizes[number].tolist(), self.channels)
        if self.pixels:
            start = int(self.starts[number])
            return _open(self.pixels)[start : start + shape[0] * shape[1] * shape[2]].reshape(shape)
        row = int(self.rows[number])
        try:
            pixels = decode(encoded(self.source.values(range(row, row + 1))[0]), self.channels)
            if pixels.shape == shape:
                return pixels
            reason = f"it is {pixels.shape[0]} x {pixels.shape[1]} and was {shape[0]} x {shape[1]}"
        except (Coloured, Unreadable, OSError) as error:
            reason = str(error) or "it has colours now"
        raise UserError(f"{self.place(number)} has changed since it was prepared ({reason}): restart the run")


@dataclass(frozen=True)
class PreparedImages:
    """The images of a run."""

    train: Images
    validation: Images
    mean: np.ndarray
    """(channels,) float64: of all pixels of all training images, from 0 to 1."""
    std: np.ndarray
    """(channels,) float64: their standard deviation; 1 where a channel never changes, so that one may divide by it."""
    lines: list[str]
    """What was found."""


def statistics(contents: Contents, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (channels,) of some images' pixels, from 0 to 1; whole numbers until the last."""
    count = int(contents.sizes[rows].prod(axis=1, dtype=np.int64).sum())
    sums, squares = (array[rows].sum(axis=0).tolist() for array in (contents.sums, contents.squares))
    mean = np.array([total / (255 * count) for total in sums])
    spread = [count * square - total**2 for total, square in zip(sums, squares, strict=True)]
    return mean, np.array([value**0.5 / (255 * count) if value else 1.0 for value in spread])


def _check_bad(contents: list[Contents], skipped: int) -> None:
    bad = [image for each in contents for image in each.bad]
    if len(bad) > skipped:
        (place, reason), others = bad[0], f", nor can {len(bad) - 1:,} more" if len(bad) > 1 else ""
        raise UserError(
            f"{place} cannot be read ({reason}){others}: mend or delete {'them' if others else 'it'}, or set "
            f"data.skip_bad_images to {len(bad)}"
        )


def _parted(
    settings: ImageSettings, labels: np.ndarray, contents: Contents, held: Contents | None
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The rows to train on, those held out, and how many others there are for each reason to leave them out.

    Args:
        labels: of the source's images (N,).
        held: what the images hold that are named as held out.
    """
    rows = np.flatnonzero(contents.sizes[:, 0])
    hashes, labels = contents.hashes[rows], labels[rows]
    first = first_equal(hashes)
    repeated = first != np.arange(len(rows))
    left_out = {"unreadable": len(contents.bad)}
    if held:
        held_rows = np.flatnonzero(held.sizes[:, 0])
        aside = np.isin(hashes, held.hashes[held_rows])
        left_out["also held out"] = int(aside.sum())
        repeated &= ~aside
    else:
        aside = is_held_out(hashes, settings.validation_fraction) if len(rows) else np.zeros(0, dtype=bool)
        held_rows = rows[aside & ~repeated]
    left_out["duplicates"] = int(repeated.sum())
    left_out["of these with another label"] = int((repeated & (labels != labels[first])).sum())
    train = np.flatnonzero(~aside & ~repeated)
    if settings.examples > len(train):
        raise UserError(
            f"data.examples is {settings.examples:,}, but there are {len(train):,} images to train on: lower it, or "
            "set it to 0 for all"
        )
    if settings.examples:
        left_out["not drawn"] = len(train) - settings.examples
        train = train[choose(labels[train], hashes[train], settings.examples)]
    return rows[train], held_rows, left_out


def _check(settings: ImageSettings, contents: list[Contents], train: np.ndarray, held: np.ndarray) -> None:
    """Raises UserError where nothing is left of a split."""
    total = sum(len(each.hashes) - len(each.bad) for each in contents)
    if not len(train):
        raise UserError(f"Not one image is left to train on, of {total:,} that can be read: name other held-out ones.")
    if not len(held):
        name = {"folder": "validation_folder", "files": "validation_files"}.get(settings.source, "validation_split")
        raise UserError(
            f"Nothing is held out for evaluation ({total:,} images in all): set data.validation_fraction"
            + ("." if settings.source == "digits" else f", or name data.{name}.")
        )


def _describe(split: str, images: Images, left_out: dict[str, int]) -> str:
    low, high = images.sizes.min(axis=0), images.sizes.max(axis=0)
    size = " to ".join(dict.fromkeys(f"{height} x {width}" for height, width in (low, high)))
    line = f"{split}: {len(images):,} images, {size}, kept {'decoded' if images.pixels else 'encoded'}"
    if images.classes:
        counts = np.bincount(images.labels, minlength=len(images.classes))
        line += f"; {len(images.classes):,} classes of {counts.min():,} to {counts.max():,}"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
    return f"{line}; left out: {reasons}" if reasons else line


def prepare_images(
    settings: ImageSettings, channels: int, labelled: bool, cache: Path, is_builder: bool
) -> PreparedImages:
    """The images of a source in two splits, each read once and then cached, without those that repeat others.

    Images are equal if their files are, byte for byte. A held-out split that is named stays as it is, so that scores
    on it compare, and training images that are in it too are left out. Otherwise the hash of a file decides its side.

    Args:
        channels: 3 (RGB) or 1 (grey).
        labelled: whether labels are learnt.
        cache, is_builder: as in `build_cached`.

    Raises:
        UserError: one sentence on what is wrong with the settings or the data, where, and what to do.
    """
    if channels not in (1, 3):
        raise UserError(f"model.num_channels is {channels}: images have 3 (RGB) or 1 (grey)")
    source, held = load_sources(settings, labelled)
    room, processes = settings.decoded_megabytes * 2**20, count_processes(settings.processes)
    contents = find_contents(source, channels, room, processes, cache, is_builder)
    held_contents = find_contents(held, channels, room, processes, cache, is_builder) if held else None
    both = [contents, held_contents] if held_contents else [contents]
    _check_bad(both, settings.skip_bad_images)
    rows, held_rows, left_out = _parted(settings, source.labels, contents, held_contents)
    _check(settings, both, rows, held_rows)
    train = Images.of(source, contents, rows, channels)
    validation = Images.of(held or source, held_contents or contents, held_rows, channels)
    lines = [
        _describe("train", train, left_out),
        _describe("validation", validation, {"unreadable": len(held_contents.bad) if held_contents else 0}),
        *(f"unreadable and left out: {place} ({reason})" for each in both for place, reason in each.bad),
    ]
    return PreparedImages(train, validation, *statistics(contents, rows), lines)
