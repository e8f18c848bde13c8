"""Folders of images: which files are images, and which folders are classes."""

import hashlib
import json
import os
from collections.abc import Iterator

from pretraining.data.find import nearest
from pretraining.data.images.decode import FORMATS
from pretraining.data.images.rows import Source, as_source, state_of, store_images
from pretraining.data.readers import Row
from pretraining.errors import UserError

EXTENSIONS = {extension for extensions in FORMATS.values() for extension in extensions}
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}  # Windows leaves these; those of other systems begin with a dot


def _entries(folder: str) -> list[os.DirEntry]:
    """What a person put into a folder, sorted by name."""
    with os.scandir(folder) as scan:
        entries = [entry for entry in scan if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_FILES]
    return sorted(entries, key=lambda entry: entry.name)


def images_in(folder: str) -> Iterator[os.DirEntry]:
    """The images in a folder and in those below it, in order; a UserError where a file has another extension."""
    for entry in _entries(folder):
        if entry.is_dir():
            yield from images_in(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            yield entry
        else:
            choice = ", ".join(sorted(EXTENSIONS))
            raise UserError(f"{entry.path} has an unknown extension: convert it to one of {choice}, or take it away.")


def find_folder(folder: str, setting: str) -> str:
    """The folder that a setting names; a UserError where there is none."""
    folder = os.path.normpath(os.path.expanduser(folder))
    if os.path.isfile(folder):
        raise UserError(f"{folder} in data.{setting} is a file: name the folder that holds the images.")
    if not os.path.isdir(folder):
        parent, name = os.path.split(folder)
        near = nearest(name, os.listdir(parent or ".") if os.path.isdir(parent or ".") else [])
        raise UserError(
            f"no folder {folder!r} in data.{setting}, seen from {os.getcwd()}: set one that is there{near}."
        )
    return folder


def classes_in(folder: str) -> list[str]:
    """The names of the folders in a folder, sorted; a UserError where there are none, or one holds no image."""
    entries = _entries(folder)
    classes = [entry.name for entry in entries if entry.is_dir()]
    beside = [entry.path for entry in entries if not entry.is_dir()]
    if beside and classes:
        raise UserError(
            f"{beside[0]} lies beside the folders of the classes ({len(classes)}): put it into one, or take it away."
        )
    if beside:
        raise UserError(f"{folder} has files but no classes: put the images of each class into a folder of its own.")
    for name in classes:
        if not any(True for _ in images_in(os.path.join(folder, name))):
            raise UserError(f"{os.path.join(folder, name)} holds no image: fill it, or delete it.")
    return classes


def check_apart(folder: str, validation_folder: str) -> None:
    """Raises UserError where one of the two folders lies in the other."""
    real = [os.path.realpath(each) for each in (folder, validation_folder)]
    if os.path.commonpath(real) in real:
        raise UserError(
            f"data.folder {folder} and data.validation_folder {validation_folder} are in one another: part them."
        )


def load_folder(folder: str, labelled: bool) -> Source:
    classes = classes_in(folder) if labelled else []
    digest = hashlib.sha256()

    def entries() -> Iterator[tuple[str, int, os.stat_result]]:
        for label, name in enumerate(classes or [""]):
            for entry in images_in(os.path.join(folder, name) if name else folder):
                try:
                    yield entry.path, label, entry.stat()
                except OSError as error:
                    raise UserError(f"{entry.path} cannot be read ({error.strerror}): mend or delete it.") from error

    def rows() -> Iterator[Row]:
        for path, label, state in entries():
            yield {"image": {"bytes": None, "path": path}, "label": label, "characters": state.st_size}

    for path, _, state in entries():
        digest.update(json.dumps(state_of(path, state)).encode())
    if digest.digest() == hashlib.sha256().digest():
        raise UserError(f"{folder} holds no images: fill it, or name another folder.")
    key = [os.path.abspath(folder), digest.hexdigest()]
    dataset = store_images(rows, classes, __file__, [*key, classes])
    columns = ["image", "label"] if labelled else ["image"]
    return as_source(dataset, columns, dataset.data.column("characters").to_numpy(), [], 0, key)
