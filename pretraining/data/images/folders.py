"""Folders of images: which files are images, and which folders are classes or splits.

It is ours where `datasets` has "imagefolder", for that loses images and labels in silence: all labels where one folder
is deeper than the others, all other classes where one is called "train", all other images where one file is called
"dog_test_3.png", and every folder that is a link.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pretraining.data.find import SAVED, nearest, shown, state_of
from pretraining.data.images.decode import FORMATS
from pretraining.data.images.rows import Source, as_source, store_images
from pretraining.data.readers import Row
from pretraining.errors import UserError

EXTENSIONS = {extension for extensions in FORMATS.values() for extension in extensions}
# What Windows, macOS, Synology, QNAP and Linux leave in folders, in lower case; their other names begin with a dot.
SYSTEM_NAMES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("icon\r", "__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "lost+found"),
}
UNSPEAKABLE = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are no UTF-8
# Names of splits, the first ones preferred where a folder holds several.
TRAINING = ("train", "training")
HELD_OUT = ("validation", "valid", "val", "dev", "eval", "evaluation", "holdout", "test", "testing")


def _leads_back(link: str) -> bool:
    """Whether a link leads to a folder that it lies in, by whatever way."""
    target = Path(link).resolve()
    return any(target in (above.resolve(), *above.resolve().parents) for above in Path(link).absolute().parents)


def _entries(folder: str) -> list[os.DirEntry]:
    """What a person put into a folder, sorted by name."""
    entries = []
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
                    continue
                if entry.is_dir() and entry.is_symlink() and _leads_back(entry.path):
                    raise UserError(f"{entry.path} is a link to a folder that it lies in: delete it.")
                if UNSPEAKABLE.search(entry.name):  # it can be neither stored nor told in one line
                    raise UserError(f"{shown(entry.path)} is a name in no UTF-8, or of several lines: rename it.")
                if not (entry.is_file() or entry.is_dir()) and os.path.exists(entry.path):
                    raise UserError(f"{entry.path} is a pipe or a device: take it away.")
                entries.append(entry)
    except OSError as error:
        path = error.filename or folder
        raise UserError(f"{path} cannot be read ({error.strerror}): mend its rights, or take it away.") from error
    return sorted(entries, key=lambda entry: entry.name)


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def images_in(folder: str) -> Iterator[os.DirEntry]:
    """The images in a folder and in those below it, in order; a UserError where a file has another extension."""
    for entry in _entries(folder):
        if entry.is_dir():
            yield from images_in(entry.path)
        elif _is_image(entry.name):
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
    for mark, files in zip(SAVED, ("*.arrow", "train/*.arrow"), strict=True):
        if os.path.exists(os.path.join(folder, mark)):
            raise UserError(
                f"{folder} in data.{setting} was written by save_to_disk: set data.source to files, and data.files to "
                f"[{folder}/{files}]."
            )
    return folder


def _split_of(name: str) -> str | None:
    """The split that a folder's name speaks of: "val" of "val", "Val_set" and "images-val2017"; None: of none."""
    words = [word.removesuffix("set") for word in re.findall("[a-z]+", name.lower())]
    return next((word for word in words if word in TRAINING + HELD_OUT), None)


def _parts(folder: str) -> tuple[list[str], list[str], list[str]]:
    """The folders whose names speak of training, those whose names speak of held-out images, and all other images."""
    train, held_out, others = [], [], []
    for entry in _entries(folder):
        split = _split_of(entry.name)
        if not entry.is_dir():
            others += [entry.path] if _is_image(entry.name) else []
        elif split in TRAINING:
            train.append(entry.path)
        elif split in HELD_OUT:
            held_out.append(entry.path)
        else:
            others.append(entry.path)
    return train, sorted(held_out, key=lambda path: HELD_OUT.index(_split_of(os.path.basename(path)))), others


def splits_in(folder: str) -> tuple[str, str | None, list[str]]:
    """The folders of training and of held-out images in a folder, and those of no use; or it itself, without splits.

    All of a folder's folders are splits, or none is: a class may be called "train", but not beside "val" and "car".

    Raises:
        UserError: there are held-out images alone, or images besides the splits.
    """
    train, held_out, others = _parts(folder)
    plain = [path for path in (*train, *held_out) if os.path.basename(path).lower() in TRAINING + HELD_OUT]
    names = ", ".join(repr(os.path.basename(path)) for path in (*train, *held_out))
    if others and set(train) & set(plain) and set(held_out) & set(plain):
        raise UserError(
            f"{others[0]} lies beside the splits {names}: name the folders to read in data.folder and "
            "data.validation_folder."
        )
    # "train 1" and "train 2" alone are classes; "train" alone is none.
    if others or not ((train and held_out) or plain):
        return folder, None, []
    if not train:
        raise UserError(f"{folder} holds {names} and no 'train': name the training images in data.folder.")
    return train[0], held_out[0] if held_out else None, [*train[1:], *held_out[1:]]


def classes_in(folder: str) -> list[str]:
    """The names of the folders in a folder, sorted; a UserError where there are none, or one holds no image."""
    entries = _entries(folder)
    classes = [entry.name for entry in entries if entry.is_dir()]
    beside = [entry.path for entry in entries if not entry.is_dir()]
    if beside and classes:
        mend = "put it into one, or take it away" if _is_image(beside[0]) else "take it away"
        raise UserError(f"{beside[0]} lies beside the folders of the classes ({len(classes)}): {mend}.")
    if beside and not _is_image(beside[0]):
        raise UserError(f"{beside[0]} is no image, and {folder} has no folders of classes: unpack it, or name others.")
    if beside:
        raise UserError(f"{folder} has files but no classes: put the images of each class into a folder of its own.")
    for name in classes:
        path = os.path.join(folder, name)
        train, held_out, others = _parts(path)
        if train and held_out and not others:
            raise UserError(
                f"{path} holds splits: name it in data.folder, or if it is a class, put the splits above the classes, "
                f"as in train/{name}."
            )
        if not any(True for _ in images_in(path)):
            raise UserError(f"{path} holds no image: fill it, or delete it.")
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
