"""Odd images: forms of files, folders and tables, each with the pixels that transformers' own readers make of it."""

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image, PngImagePlugin
from transformers.image_utils import load_image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from pretraining.data.images.corpus import prepare_images
from pretraining.data.images.settings import ImageSettings
from tests.odd.case import Case

PROCESSOR = ViTImageProcessorPil(do_convert_rgb=True, do_resize=False, do_rescale=False, do_normalize=False)
Shown = tuple[str, str]  # the class, and the size with a hash of the pixels


def shown(label: str, pixels: np.ndarray) -> Shown:
    return label, f"{pixels.shape[0]}x{pixels.shape[1]} {zlib.crc32(pixels.tobytes()):08x}"


def piped(label: str, data: bytes) -> Shown:
    """What a `pipeline()` with the saved processor shows the model."""
    pixels = PROCESSOR(load_image(Image.open(io.BytesIO(data))))["pixel_values"][0]
    return shown(label, np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def read(data: dict[str, Any]) -> list[Shown]:
    """All images of a run on these settings, sorted; what is told is printed."""
    source = {"source": "files" if "files" in data else "folder"} | data
    prepared = prepare_images(ImageSettings(**source), 3, True, Path("../prepared"), is_builder=True)
    print(*prepared.lines, sep="\n")
    return sorted(
        shown(images.classes[images.labels[number]], images.image(number))
        for images in (prepared.train, prepared.validation)
        for number in range(len(images))
    )


def noise(seed: int, *shape: int, high: int = 256) -> np.ndarray:
    return (
        np.random.default_rng(seed).integers(0, high, shape or (6, 5, 3)).astype(np.uint8 if high == 256 else np.uint16)
    )


def file(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


CAT, DOG, EEL = (file(noise(seed)) for seed in range(3))
PLAIN = {"cat/1.png": CAT, "dog/2.png": DOG, "dog/3.png": EEL}
RIGHT = sorted([piped("cat", CAT), piped("dog", DOG), piped("dog", EEL)])


def put(folder: Path, files: dict[str, bytes], **data: Any) -> dict[str, Any]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return {"folder": str(folder)} | data


def folder_case(name: str, more: dict[str, bytes], right: list[Shown] | None = None, **expected: Any) -> Case:
    """The plain folder of two classes with more files in it."""
    files = PLAIN | more
    if "error" not in expected:
        expected["right"] = sorted(RIGHT + (right or []))
    return Case(name, lambda folder: put(folder, files), **expected)


def linked(links: dict[str, str]) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        data = put(folder, PLAIN)
        for name, target in links.items():
            (folder / name).symlink_to(target)
        return data

    return write


def piped_file(folder: Path) -> dict[str, Any]:
    data = put(folder, PLAIN)
    os.mkfifo(folder / "cat/x.png")
    return data


def misnamed(folder: Path) -> dict[str, Any]:
    data = put(folder, PLAIN)
    Path(os.fsdecode(os.fsencode(folder) + b"/dog/caf\xe9.png")).write_bytes(EEL)
    return data


def layout(name: str, files: dict[str, bytes], **expected: Any) -> Case:
    return Case(name, lambda folder: put(folder, files), **expected)


def under(*splits: str) -> dict[str, bytes]:
    """In each split a class of cats and one of dogs."""
    return {
        f"{split}/{label}/{n}.png": file(noise(100 + 6 * i + n))
        for i, split in enumerate(splits)
        for n, label in enumerate(("cat", "dog") * 3)
    }


def of_splits(count: int) -> list[Shown]:
    return sorted(piped(label, file(noise(100 + n))) for n, label in enumerate(("cat", "dog") * 3 * count))


# ---- forms of an image ----

RGB = Image.fromarray(noise(10))
RGBA = Image.fromarray(noise(11, 6, 5, 4))
PALETTE = RGB.quantize(8)
GREY = RGB.convert("L")
COMMENT = PngImagePlugin.PngInfo()
COMMENT.add_text("prompt", "a cat " * 400_000, zip=True)
ALPHA = "transparent: 1 images, .*cat/form"
TOO_DEEP = r"cat/form\.\w+ cannot be read \(its pixels go from \d+ to \d+, .* convert it to 8 bits\)"


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file(RGB, kind, exif=exif)


FORMS: dict[str, tuple[bytes, str | None]] = {
    "transparent png": (file(RGBA), ALPHA),
    "transparent webp": (file(RGBA, "WEBP", lossless=True), ALPHA),
    "transparent tiff": (file(RGBA, "TIFF"), ALPHA),
    "transparent animated png": (file(RGBA, save_all=True, append_images=[RGBA.rotate(180)]), ALPHA),
    "opaque rgba png": (file(RGB.convert("RGBA")), None),
    "grey and alpha png": (file(RGBA.convert("LA")), ALPHA),
    "palette with shades of alpha png": (file(PALETTE, transparency=bytes([0, 90, 255])), ALPHA),
    "palette with one transparent colour png": (file(PALETTE, transparency=1), None),
    "palette with one transparent colour gif": (file(PALETTE, "GIF", transparency=1), None),
    "grey with one transparent level png": (file(GREY, transparency=GREY.getpixel((0, 0))), None),
    "colours with one transparent png": (file(RGB, transparency=RGB.getpixel((0, 0))), None),
    "palette png": (file(PALETTE), None),
    "8 bits in 16 png": (file(noise(12, 6, 5).astype(np.uint16)), None),
    "bilevel png": (file(RGB.convert("1")), None),
    "bilevel group 4 tiff": (file(RGB.convert("1"), "TIFF", compression="group4"), None),
    "cmyk tiff": (file(RGB.convert("CMYK"), "TIFF"), None),
    "cmyk jpeg": (file(RGB.convert("CMYK"), "JPEG"), None),
    "grey jpeg": (file(GREY, "JPEG"), None),
    "lab tiff": (file(Image.fromarray(noise(13), "LAB"), "TIFF"), None),
    "animated gif": (file(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]), None),
    "animated webp": (file(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)], lossless=True), None),
    "two pages tiff": (file(RGB, "TIFF", save_all=True, append_images=[RGB.rotate(180)]), None),
    **{
        f"turned {n} {kind}": (turned(kind.upper(), n), None)
        for n in range(2, 9)
        for kind in ("jpeg", "png", "webp", "tiff")
    },
}
DEEP: dict[str, bytes] = {
    "16 bits grey png": file(noise(14, 6, 5, high=65536)),
    "12 bits in 16 png": file(noise(15, 6, 5, high=4096)),
    "16 bits grey tiff": file(noise(14, 6, 5, high=65536), "TIFF"),
    "32 bits grey tiff": file(noise(14, 6, 5, high=65536).astype(np.int32), "TIFF"),
}
HALF = file(noise(16, 64, 64, 3), "JPEG")
BAD: dict[str, tuple[bytes, str]] = {
    "cut off jpeg": (HALF[: len(HALF) // 2], "truncated"),
    "empty png": (b"", "no image of a known format"),
    "html png": (b"<html>404</html>", "no image of a known format"),
    "git lfs pointer png": (b"version https://git-lfs.github.com/spec/v1\n", "no image of a known format"),
    "floating-point tiff": (file(RGB.convert("F"), "TIFF"), "floating-point"),
}

# ---- tables ----

LABELS = [10, 9, 10, 2]
PICTURES = [file(noise(seed)) for seed in range(20, 24)]
TABLE = sorted(piped(str(label), picture) for label, picture in zip(LABELS, PICTURES, strict=True))
NAMED = sorted(piped("ab"[n % 2], picture) for n, picture in enumerate(PICTURES))
STRUCT = pa.array([{"bytes": picture, "path": None} for picture in PICTURES])
BINARY = pa.array(PICTURES)
NUMBERS = pa.array(LABELS)
NAMES = pa.array(["a", "b", "a", "b"])
NO_UTF8 = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a", b"b", b"\xff", b"b"]).buffers())
OTHERS = {
    "map": pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
    "duration": pa.array([1] * 4, pa.duration("s")),
    "view": NAMES.cast(pa.string_view()),
}


def table(name: str, image: pa.Array, label: pa.Array, more: dict[str, Any] | None = None, **expected: Any) -> Case:
    def write(folder: Path) -> dict[str, Any]:
        pq.write_table(pa.table({"image": image, "label": label} | (more or {})), folder / "t.parquet")
        return {"files": [str(folder / "t.parquet")]}

    return Case(name, write, **expected)


def save(where: Path, splits: bool, names: tuple[str, ...] = ("a", "b"), **data: str) -> dict[str, Any]:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    labels = [names.index(name) for name in "abab"]
    dataset = Dataset.from_dict({"image": STRUCT.to_pylist(), "label": labels}, features=features)
    (DatasetDict(train=dataset) if splits else dataset).save_to_disk(where / "saved")
    return {name: [str(where / value)] if name == "files" else str(where / value) for name, value in data.items()}


CASES: list[Case] = [
    *(
        folder_case(name, {f"cat/form.{name.split()[-1]}": data}, [piped("cat", data)], told=told)
        for name, (data, told) in FORMS.items()
    ),
    *(folder_case(name, {f"cat/form.{name.split()[-1]}": data}, error=TOO_DEEP) for name, data in DEEP.items()),
    *(
        folder_case(name, {f"cat/form.{name.split()[-1]}": data}, error=rf"cat/form\.\w+ cannot be read \(.*{reason}")
        for name, (data, reason) in BAD.items()
    ),
    # Pillow alone, and so a pipeline, refuses this one; the pixels are whole.
    folder_case("a long comment", {"cat/form.png": file(RGB, pnginfo=COMMENT)}, [shown("cat", np.asarray(RGB))]),
    # folders
    folder_case(
        "what systems leave",
        dict.fromkeys(
            [
                *(
                    "@eaDir/cat/1.png/SYNOPHOTO_THUMB_M.jpg",
                    "cat/@eaDir/1.png/SYNOFILE_THUMB_S.png",
                    "__MACOSX/cat/._1.png",
                ),
                *(
                    ".thumbnails/1.png",
                    "cat/.thumbnails/1.png",
                    "cat/._1.png",
                    ".DS_Store",
                    "cat/.DS_Store",
                    "cat/Thumbs.db",
                ),
                *("#recycle/old.png", "$RECYCLE.BIN/old.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "desktop.ini"),
            ],
            DOG,
        ),
    ),
    folder_case("upper case extensions", {"cat/IMG_4.JPG": file(RGB, "JPEG")}, [piped("cat", file(RGB, "JPEG"))]),
    folder_case("an extension that lies", {"cat/4.jpg": file(RGB, "WEBP")}, [piped("cat", file(RGB, "WEBP"))]),
    folder_case("names in other scripts", {"고양이/산.png": file(RGB)}, [piped("고양이", file(RGB))]),
    folder_case("text among images", {"cat/notes.txt": b"x"}, error=r"cat/notes\.txt has an unknown extension"),
    folder_case("an image beside the classes", {"x.png": EEL}, error=r"x\.png lies beside the folders"),
    folder_case("a class without images", {"eel/.DS_Store": b"x"}, error="eel holds no image"),
    layout("one class", {"cat/1.png": CAT, "cat/2.png": DOG}, error="all 2 training images are of the class 'cat'"),
    Case(
        "a link to the folder above", linked({"dog/loop": ".."}), error="dog/loop is a link to a folder that it lies in"
    ),
    Case("a link to its own folder", linked({"loop": "."}), error="loop is a link to a folder that it lies in"),
    Case(
        "links to one another",
        linked({"cat/x": "../dog", "dog/y": "../cat"}),
        error="is a link to a folder that it lies in",
    ),
    Case("a link to itself", linked({"cat/x.png": "x.png"}), error=r"cat/x\.png cannot be read"),
    Case("a link to nothing", linked({"cat/x.png": "gone.png"}), error=r"cat/x\.png cannot be read"),
    Case("one file by two paths", linked({"dog/again.png": "2.png"}), right=RIGHT, told="1 duplicates"),
    Case("a name in no UTF-8", misnamed, error=r"dog/caf\\xe9\.png is a name in no UTF-8"),
    folder_case("a name of two lines", {"cat/x\ny.png": CAT}, error=r"cat/x\\ny\.png is a name .* of several lines"),
    Case("a pipe", piped_file, error=r"cat/x\.png is a pipe or a device: take it away"),
    Case("a link to a device", linked({"cat/x.png": "/dev/zero"}), error=r"cat/x\.png is a pipe or a device"),
    folder_case("a table beside the classes", {"labels.csv": b"x"}, error=r"labels\.csv lies .*\): take it away\.$"),
    layout("an archive", {"images.zip": b"PK"}, error=r"images\.zip is no image, .*: unpack it, or name others"),
    layout(
        "a folder above the splits",
        {f"data/{path}": data for path, data in under("train", "val").items()},
        error=r"holds splits: name it in data\.folder",
    ),
    layout("train and val", under("train", "val"), right=of_splits(2), told=r"trained on .*/train, held out: .*/val\n"),
    layout(
        "train, val and test",
        under("train", "val", "test"),
        right=of_splits(2),
        told=r"held out: .*/val; not read: .*/test\n",
    ),
    layout("Training and Testing", under("Training", "Testing"), right=of_splits(2), told=r"held out: .*/Testing\n"),
    layout("train2017 and val2017", under("train2017", "val2017"), right=of_splits(2), told=r"held out: .*/val2017\n"),
    layout(
        "seg_train and seg_test", under("seg_train", "seg_test"), right=of_splits(2), told=r"held out: .*/seg_test\n"
    ),
    layout("train_set and dev", under("train_set", "dev"), right=of_splits(2), told=r"held out: .*/dev\n"),
    layout("train alone", under("train"), right=of_splits(1), told=r"trained on .*/train, held out: a share of it\n"),
    layout(
        "an image beside the splits", under("train", "val") | {"x.png": EEL}, error=r"x\.png lies beside the splits"
    ),
    layout(
        "a note beside the splits",
        under("train", "val") | {"README.md": b"x"},
        right=of_splits(2),
        told=r"held out: .*/val\n",
    ),
    layout(
        "numbered classes of trains",
        {"train 1/1.png": CAT, "train 2/2.png": DOG, "train 2/3.png": EEL},
        right=sorted([piped("train 1", CAT), piped("train 2", DOG), piped("train 2", EEL)]),
    ),
    layout("val and test alone", under("val", "test"), error="holds 'val', 'test' and no 'train'"),
    layout(
        "splits and another folder", under("train", "val", "masks"), error="masks lies beside the splits 'train', 'val'"
    ),
    layout(
        "splits within classes",
        {"cat/train/1.png": CAT, "cat/val/2.png": DOG, "dog/train/3.png": EEL},
        error="cat holds splits: .* put the splits above the classes",
    ),
    layout(
        "splits without classes",
        {"train/1.png": CAT, "train/2.png": DOG, "val/3.png": EEL},
        error="train has files but no classes",
    ),
    layout(
        "a class that is called train",
        {"train/1.png": CAT, "car/2.png": DOG, "plane/3.png": EEL},
        right=[piped("car", DOG), piped("plane", EEL), piped("train", CAT)],
    ),
    # tables
    table("numbers", BINARY, NUMBERS, right=TABLE),
    table("names", STRUCT, NAMES, right=NAMED),
    table("labels of -1", BINARY, pa.array([0, 1, -1, 1]), error=r"t\.parquet:3 has label -1"),
    table("labels of -100", BINARY, pa.array([0, 1, -100, 1], pa.int8()), error=r"t\.parquet:3 has label -100"),
    table("an empty label", BINARY, pa.array(["a", "b", "", "b"]), error=r"t\.parquet:3 has label ''"),
    table("no label", BINARY, pa.array([0, 1, None, 1]), error=r"t\.parquet:3 has no label"),
    table("a label of no UTF-8", BINARY, NO_UTF8, error=r"t\.parquet.* UTF-8"),
    table("floating-point labels", BINARY, pa.array([0.0, 1.0, 0.0, 1.0]), error="which is no class"),
    table(
        "a class that is all copies",
        pa.array([*PICTURES[:3], PICTURES[0]]),
        pa.array(["a", "a", "a", "b"]),
        error="All [12] images that are left to train on are of the class 'a'",
    ),
    Case(
        "a class of no image",
        lambda folder: save(folder, False, files="saved/*.arrow", names=("a", "never", "b")),
        right=NAMED,
        told="classes without a training image: never\n",
    ),
    table("one label", BINARY, pa.array([1, 1, 1, 1]), error="all 4 training images are of the class '1'"),
    table("labels of uint64", BINARY, pa.array(LABELS, pa.uint64()), right=TABLE),
    table("labels in a dictionary", BINARY, NAMES.dictionary_encode(), right=NAMED),
    table("labels in a string view", BINARY, NAMES.cast(pa.string_view()), right=NAMED),
    table("images in a binary view", BINARY.cast(pa.binary_view()), NAMES, right=NAMED),
    table("images in a dictionary", BINARY.dictionary_encode(), NAMES, right=NAMED),
    table("images of large binaries", BINARY.cast(pa.large_binary()), NAMES, right=NAMED),
    table("a struct of bytes alone", pa.array([{"bytes": picture} for picture in PICTURES]), NAMES, right=NAMED),
    table(
        "a struct of more",
        pa.array([{"bytes": picture, "path": None, "id": 1} for picture in PICTURES]),
        NAMES,
        right=NAMED,
    ),
    table(
        "images as lists of pixels",
        pa.array([[1, 2]] * 4),
        NAMES,
        error=r"t\.parquet holds list<.*> in 'image', which is no image.* among image, label",
    ),
    table("images of null", pa.nulls(4), NAMES, error=r"t\.parquet holds null in 'image', which is no image"),
    table("a row without an image", pa.array([*PICTURES[:3], None]), NAMES, error=r"t\.parquet:4 cannot be read"),
    table(
        "paths that lead nowhere", pa.array(["gone.png"] * 4), NAMES, error=r"t\.parquet:1 cannot be read \(.*gone\.png"
    ),
    table("columns that nobody asked for", BINARY, NAMES, OTHERS, right=NAMED),
    Case(
        "a table of another kind", lambda folder: save(folder, False, files="saved/*.json"), error="unknown extension"
    ),
    Case("saved to disk", lambda folder: save(folder, False, files="saved/*.arrow"), right=NAMED),
    Case(
        "saved to disk, as a folder",
        lambda folder: save(folder, False, folder="saved"),
        error=r"written by save_to_disk: set data\.source to files",
    ),
    Case(
        "splits saved to disk, as a folder",
        lambda folder: save(folder, True, folder="saved"),
        error=r"saved/train/\*\.arrow",
    ),
]
