"""The images of a run: in which split each one is, which are left out, and their pixels."""

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

NAMED = 20  # classes that one line names


def choose(labels: np.ndarray, hashes: np.ndarray, count: int) -> np.ndarray:
    """`count` of the images (N,) to train on, as many of each class while it has any: bool (N,).

    A hash of the content decides, so that order does not matter and a smaller choice is part of a larger one.
    """
    drawn = draws.hash_key(draws.SUBSET, hashes)
    order = np.lexsort((drawn, labels))
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)  # within its class, from 0
    rank[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.lexsort((drawn, rank))[:count]] = True
    return chosen


@lru_cache(maxsize=8)
def _open(path: str) -> np.ndarray:
    """The array in a file, which each process opens for itself."""
    # A plain array over the memory map is sliced ten times faster than the map itself.
    return np.asarray(open_array(Path(path), "uint8"))


@dataclass(frozen=True)
class Images:
    """N images of a split. The large parts stay on disk, so that a copy for another process is small."""

    name: str
    """A hash of the encoded images, their order, labels, classes and channels, the same on every machine."""
    labels: np.ndarray
    """(N,) int64: the class of each, a position in `classes`; -100 where no labels are learnt."""
    sizes: np.ndarray
    """(N, 2) int64: height and width of each, turned as its EXIF orientation says."""
    classes: list[str]
    channels: int
    source: Source
    rows: np.ndarray
    """(N,): the row of each in the source."""
    pixels: str | None
    """The file of the decoded pixels; None: each image is decoded when it is asked for."""
    starts: np.ndarray
    """(N,): the position in that file at which each image begins."""

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
        """The name of an image in messages: its file, or its table and row."""
        return self.source.place(int(self.rows[number]))

    def image(self, number: int) -> np.ndarray:
        """An image's pixels, read-only: uint8 (height, width, channels).

        Raises:
            UserError: the image has changed since it was prepared.
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
        raise UserError(f"{self.place(number)} has changed since it was prepared ({reason}): restart the run.")


@dataclass(frozen=True)
class PreparedImages:
    """The images of a run."""

    train: Images
    validation: Images
    mean: np.ndarray
    """(channels,) float64: the mean of all training images' pixels, from 0 to 1."""
    std: np.ndarray
    """(channels,) float64: the std of the same; 1 for a channel that never changes, so that one may divide by it."""
    lines: list[str]
    """What there is to tell about the splits."""


def statistics(contents: Contents, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std (channels,) of the pixels of some images, from 0 to 1."""
    # Python's whole numbers keep the sums exact, whatever the order and number of the images.
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
            f"data.skip_bad_images to {len(bad)}."
        )


def _split(
    settings: ImageSettings, labels: np.ndarray, contents: Contents, held_out: Contents | None
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The rows to train on, the held-out rows, and the number of other rows for each reason to leave them out.

    `labels` (N,) and `contents` are the source's; `held_out` are the contents of held-out images that settings name.
    """
    rows = np.flatnonzero(contents.sizes[:, 0])  # those that could be read
    hashes, labels = contents.hashes[rows], labels[rows]
    first = first_equal(hashes)
    repeated = first != np.arange(len(rows))
    left_out = {"unreadable": len(contents.bad)}
    if held_out:
        held_out_rows = np.flatnonzero(held_out.sizes[:, 0])
        in_validation = np.isin(hashes, held_out.hashes[held_out_rows])
        left_out["also held out"] = int(in_validation.sum())
        repeated &= ~in_validation
    else:
        in_validation = is_held_out(hashes, settings.validation_fraction) if len(rows) else np.zeros(0, dtype=bool)
        held_out_rows = rows[in_validation & ~repeated]
    left_out["duplicates"] = int(repeated.sum())
    left_out["of these with another label"] = int((repeated & (labels != labels[first])).sum())
    train = np.flatnonzero(~in_validation & ~repeated)
    if settings.examples > len(train):
        raise UserError(
            f"data.examples is {settings.examples:,}, but there are {len(train):,} images to train on: lower it, or "
            "set it to 0 for all."
        )
    if settings.examples:
        left_out["not drawn"] = len(train) - settings.examples
        train = train[choose(labels[train], hashes[train], settings.examples)]
    return rows[train], held_out_rows, left_out


def _check_held_out(settings: ImageSettings, count: int, total: int) -> None:
    """Raises UserError where none of `total` images is held out."""
    if not count:
        name = {"folder": "validation_folder", "files": "validation_files"}.get(settings.source, "validation_split")
        raise UserError(
            f"Nothing is held out for evaluation ({total:,} images in all): set data.validation_fraction"
            + ("." if settings.source == "digits" else f", or name data.{name}.")
        )


def _check_train(labels: np.ndarray, classes: list[str], total: int) -> list[str]:
    """The names of the classes without a training image; a UserError where there is no image, or but one class."""
    if not len(labels):
        raise UserError(f"Not one image is left to train on, of {total:,} that can be read: name other held-out ones.")
    untrained = sorted(set(range(len(classes))) - set(labels.tolist()))
    if classes and len(classes) - len(untrained) < 2:
        raise UserError(
            f"All {len(labels):,} images that are left to train on are of the class {classes[labels[0]]!r}: those of "
            "others are held out, unreadable or copies of these; add some, or name the held-out images."
        )
    return [classes[number] for number in untrained]


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
    """The images of a source in two splits, without duplicates; each is read once, and then cached.

    Images are equal if their files are, byte for byte. Held-out images that the settings name are all used, so that
    scores on them compare, and training images equal to one of them are left out. If none are named, the hash of a file
    decides its split.

    Args:
        channels: 3 (RGB) or 1 (grey).
        labelled: whether labels are learnt.

    Raises:
        UserError: a mistake in the settings or the data.
    """
    if channels not in (1, 3):
        raise UserError(f"model.num_channels is {channels}: images have 3 (RGB) or 1 (grey).")
    source, held_out = load_sources(settings, labelled)
    _check_held_out(settings, 1 if held_out or settings.validation_fraction else 0, len(source))
    room, processes = settings.decoded_megabytes * 2**20, count_processes(settings.processes)
    contents = find_contents(source, channels, room, processes, cache, is_builder)
    held_out_contents = find_contents(held_out, channels, room, processes, cache, is_builder) if held_out else None
    both = [contents, held_out_contents] if held_out_contents else [contents]
    sources = [source, held_out] if held_out else [source]
    _check_bad(both, settings.skip_bad_images)
    rows, held_out_rows, left_out = _split(settings, source.labels, contents, held_out_contents)
    total = sum(len(each.hashes) - len(each.bad) for each in both)
    untrained = _check_train(source.labels[rows], source.classes, total)
    _check_held_out(settings, len(held_out_rows), total)
    train = Images.of(source, contents, rows, channels)
    validation = Images.of(held_out or source, held_out_contents or contents, held_out_rows, channels)
    alpha = [each.place(row) for each, of in zip(sources, both, strict=True) for row in of.transparent[:1]]
    transparent = sum(len(each.transparent) for each in both)
    lines = [
        *source.notes,
        _describe("train", train, left_out),
        _describe("validation", validation, {"unreadable": len(held_out_contents.bad) if held_out_contents else 0}),
        *(f"unreadable and left out: {place} ({reason})" for each in both for place, reason in each.bad),
    ]
    if untrained:
        more = f" and {len(untrained) - NAMED:,} more" if len(untrained) > NAMED else ""
        lines.append(f"classes without a training image: {', '.join(untrained[:NAMED])}{more}")
    if transparent:
        lines.append(
            f"transparent: {transparent:,} images, {alpha[0]} the first; what lies under it shows, as in `pipeline()`"
        )
    return PreparedImages(train, validation, *statistics(contents, rows), lines)
