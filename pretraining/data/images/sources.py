"""The sources of images: folders, files, data sets of the Hub and scanned digits."""

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from pretraining.data.find import check_apart as check_files_apart
from pretraining.data.find import find, nearest
from pretraining.data.images.folders import check_apart, find_folder, load_folder, splits_in
from pretraining.data.images.rows import UNLABELLED, Source, as_source, store_images
from pretraining.data.images.settings import ImageSettings
from pretraining.data.images.tables import KNOWN, columns_of, load_files, load_hub
from pretraining.data.readers import Row
from pretraining.errors import UserError


def _load_digits(labelled: bool) -> Source:
    from sklearn.datasets import load_digits  # a second to import

    def rows() -> Iterator[Row]:
        digits = load_digits()
        for pixels, label in zip(digits.images, digits.target.tolist(), strict=True):
            grey = np.rint(pixels * (255 / 16)).astype(np.uint8)
            data = b"P5 %d %d 255\n" % grey.shape[::-1] + grey.tobytes()  # PGM: the bytes are the pixels
            yield {"image": {"bytes": data, "path": None}, "label": label, "characters": len(data)}

    key = ["digits", version("scikit-learn")]
    dataset = store_images(rows, [str(digit) for digit in range(10)], __file__, key)
    sizes = dataset.data.column("characters").to_numpy()
    return as_source(dataset, ["image", "label"] if labelled else ["image"], sizes, [("digits", len(dataset))], 0, key)


def _same_classes(source: Source, held_out: Source) -> Source:
    """The held-out images, their labels numbered as the training classes are."""
    number_of = {name: number for number, name in enumerate(source.classes)}
    for label in np.unique(held_out.labels).tolist():
        if (name := held_out.classes[label]) not in number_of:
            row = int(np.flatnonzero(held_out.labels == label)[0])
            raise UserError(
                f"{held_out.place(row)} is of class {name!r}, which no training image can be of"
                f"{nearest(name, number_of)}: give it one of the {len(number_of)} training classes, or take it away."
            )
    numbers = np.array([number_of.get(name, UNLABELLED) for name in held_out.classes])
    return replace(held_out, labels=numbers[held_out.labels], classes=source.classes)


def _load(settings: ImageSettings, labelled: bool) -> tuple[Source, Source | None]:
    """The images of a source, and the held-out ones that the settings name, each with classes of their own."""
    columns = columns_of(settings, labelled)
    if settings.source == "digits":
        return _load_digits(labelled), None
    if settings.source == "folder":
        assert settings.folder
        folder = find_folder(settings.folder, "folder")
        training, validation, others = splits_in(folder)
        if settings.validation_folder:
            others = [validation, *others] if validation else others
            validation = find_folder(settings.validation_folder, "validation_folder")
            others = [other for other in others if not os.path.samefile(other, validation)]
            check_apart(training, validation)
        source = load_folder(training, labelled)
        if training != folder:
            unread = f"; not read: {', '.join(others)}" if others else ""
            source.notes.append(f"splits: trained on {training}, held out: {validation or 'a share of it'}{unread}")
        return source, load_folder(validation, labelled) if validation else None
    if settings.source == "files":
        files = find(settings.files, "files", KNOWN)
        validation_files = find(settings.validation_files, "validation_files", KNOWN)
        check_files_apart(files, validation_files, "files")
        return load_files(files, columns), load_files(validation_files, columns) if validation_files else None
    train = load_hub(settings, columns, settings.split)
    return train, load_hub(settings, columns, settings.validation_split) if settings.validation_split else None


def load_sources(settings: ImageSettings, labelled: bool) -> tuple[Source, Source | None]:
    """The images of a source, and the held-out ones if the settings name any, with the same classes.

    Args:
        labelled: whether labels are learnt; else none is read.

    Raises:
        UserError: a mistake in the settings or the data.
    """
    source, held_out = _load(settings, labelled)
    if not labelled:
        return source, held_out
    used = np.unique(source.labels)
    if len(used) < 2:
        raise UserError(
            f"all {len(source):,} training images are of the class {source.classes[int(used[0])]!r}: there must be two "
            "classes, or none if the objective learns no labels."
        )
    return source, _same_classes(source, held_out) if held_out else None
