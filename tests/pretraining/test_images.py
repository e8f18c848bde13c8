"""Images: every source and form gives the same pixels, nothing leaks, each mistake gets one sentence."""

import io
import os
import pickle
import shutil
from collections import Counter
from mmap import mmap
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from mistakes import one_sentence
from PIL import Image
from sklearn.datasets import load_digits

from pretraining.data import readers
from pretraining.data.images import contents, rows
from pretraining.data.images.corpus import Images, PreparedImages, choose, prepare_images
from pretraining.data.images.decode import Coloured, Unreadable, decode
from pretraining.data.images.settings import ImageSettings
from pretraining.data.stored import hash_bytes

SIZES = [(5, 7), (8, 8), (12, 3), (16, 20)]


pytestmark = pytest.mark.usefixtures("here")


def picture(seed: int, channels: int = 3, size: tuple[int, int] | None = None) -> np.ndarray:
    """Noise (height, width, channels)."""
    height, width = size or SIZES[seed % len(SIZES)]
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def file_of(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image.squeeze())
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(name: str, data: bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(data)
    return name


def make_folder(name: str, classes: dict[str, list[int]]) -> str:
    """A folder of classes, each with the pictures of some seeds."""
    for label, seeds in classes.items():
        for seed in seeds:
            put(f"{name}/{label}/{seed:03}.png", file_of(picture(seed)))
    return name


def make_table(name: str, seeds: list[int], labels: list | None = None, feature: object = None, **form) -> str:
    """A .parquet or .arrow file of pictures, as `datasets` writes it."""
    images = [{"bytes": file_of(picture(seed)), "path": f"{seed}.png"} for seed in seeds]
    labels = [seed % 2 for seed in seeds] if labels is None else labels
    features = Features({"image": datasets.Image(), "label": feature or Value("int64")})
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
    if name.endswith(".parquet"):
        dataset.to_parquet(name)
    else:
        dataset.save_to_disk("saved")
        shutil.move("saved/data-00000-of-00001.arrow", name)
    return name


def load(channels: int = 3, labelled: bool = True, **settings) -> PreparedImages:
    return prepare_images(ImageSettings(**settings), channels, labelled, Path("../kept"), is_builder=True)


def tables(*files: str, **settings) -> PreparedImages:
    return load(source="files", files=list(files), **settings)


def folders(folder: str, **settings) -> PreparedImages:
    return load(source="folder", folder=folder, **settings)


def pixels(images: Images) -> list[bytes]:
    return [images.image(number).tobytes() for number in range(len(images))]


def everything(prepared: PreparedImages) -> list[tuple[bytes, str]]:
    """Pixels and class of all images, sorted."""
    return sorted(
        (content, images.classes[label])
        for images in (prepared.train, prepared.validation)
        for content, label in zip(pixels(images), images.labels.tolist(), strict=True)
    )


# ---- pixels ----


def test_every_form_of_a_colour_image_gives_its_pixels():
    image = Image.fromarray(picture(3))
    for kind, options in {"PNG": {}, "BMP": {}, "TIFF": {}, "PPM": {}, "WEBP": {"lossless": True}}.items():
        assert (decode(file_of(image, kind, **options), 3) == np.asarray(image)).all(), kind
    for kind in ("JPEG", "JPEG2000", "AVIF"):
        data = file_of(image, kind)
        assert (decode(data, 3) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all(), kind


def test_one_channel_is_for_grey_however_it_is_stored():
    grey = picture(3, 1)
    as_rgb = np.repeat(grey, 3, axis=2)
    for data in (file_of(grey), file_of(as_rgb), file_of(Image.fromarray(as_rgb).convert("CMYK"), "TIFF")):
        found = decode(data, 1)
        assert found.shape == grey.shape and (found == grey).all()
    as_rgb[2, 3, 1] ^= 1
    with pytest.raises(Coloured):
        decode(file_of(as_rgb), 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_what_is_cut_off_is_unreadable(kind: str):
    data = file_of(picture(3), kind)
    for share in (0, 0.1, 0.5, 0.9):
        with pytest.raises(Unreadable):
            decode(data[: int(len(data) * share)], 3)


def test_what_is_no_image_of_ours_is_unreadable(monkeypatch: pytest.MonkeyPatch):
    for data in (b"", b"%PDF-1.4 text", file_of(Image.new("F", (3, 3)), "TIFF")):
        with pytest.raises(Unreadable):
            decode(data, 3)
    with pytest.raises(Unreadable, match=r"from 0 to 70000.*convert it to 8 bits"):
        decode(file_of(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF"), 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Unreadable, match="decompression bomb"):
        decode(file_of(picture(3)), 3)


# ---- what is read ----


def test_digits_are_those_of_scikit_learn():
    prepared = load(channels=1)
    digits = load_digits()
    expected = sorted(
        (np.rint(pixels / 16 * 255).astype(np.uint8).tobytes(), str(label))
        for pixels, label in zip(digits.images, digits.target, strict=True)
    )
    assert everything(prepared) == expected
    assert prepared.train.classes == [str(digit) for digit in range(10)]
    assert 0.03 < len(prepared.validation) / 1797 < 0.07
    assert digits.target[int(prepared.train.place(5).removeprefix("digits:"))] == prepared.train.labels[5]
    assert "10 classes" in prepared.lines[0] and "8 x 8" in prepared.lines[0]


def test_a_folder_of_classes():
    make_folder("data", {"dog": [0, 1, 2], "ant/deep": [3, 4], "ant": [5], "Ωmega": [6]})
    put("data/.DS_Store", b"x")
    put("data/dog/Thumbs.db", b"x")
    Path("data/.git").mkdir()
    prepared = folders("data", validation_fraction=0.3)
    assert prepared.train.classes == ["ant", "dog", "Ωmega"]
    class_of = {0: "dog", 1: "dog", 2: "dog", 3: "ant", 4: "ant", 5: "ant", 6: "Ωmega"}
    assert everything(prepared) == sorted((picture(seed).tobytes(), name) for seed, name in class_of.items())
    for images in (prepared.train, prepared.validation):
        for number in range(len(images)):
            seed = int(Path(images.place(number)).stem)
            assert images.image(number).tobytes() == picture(seed).tobytes()
            assert images.sizes[number].tolist() == list(SIZES[seed % 4])


def test_a_flat_folder_where_no_label_is_learnt():
    for seed in range(4):
        put(f"data/{seed}.png", file_of(picture(seed)))
    put("data/more/4.png", file_of(picture(4)))
    prepared = folders("data", labelled=False, validation_fraction=0.3)
    assert sorted(pixels(prepared.train) + pixels(prepared.validation)) == sorted(
        picture(seed).tobytes() for seed in range(5)
    )
    assert set(prepared.train.labels) == {-100} and prepared.train.classes == []
    assert "classes" not in prepared.lines[0]


@pytest.mark.parametrize("end", ["parquet", "arrow"])
def test_tables_as_datasets_writes_them(end: str):
    feature = ClassLabel(names=["even", "odd", "never"])
    make_table(f"a.{end}", [0, 1, 2, 3], feature=feature)
    make_table(f"[b].{end}", [4, 5], feature=feature)
    prepared = tables(f"a.{end}", f"[b].{end}", validation_fraction=1e-9)
    assert prepared.train.classes == ["even", "odd", "never"]
    assert everything(prepared) == sorted((picture(n).tobytes(), ["even", "odd"][n % 2]) for n in range(6))
    places = [f"a.{end}:{row}" for row in (1, 2, 3, 4)] + [f"[b].{end}:{row}" for row in (1, 2)]
    for images in (prepared.train, prepared.validation):
        for number in range(len(images)):
            seed = places.index(images.place(number))
            assert images.image(number).tobytes() == picture(seed).tobytes()


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_that_a_table_names_is_read_again_once_it_changed(nested: bool):
    paths = [put(f"pictures/{seed}.png", file_of(picture(seed))) for seed in range(6)]
    column = pa.array([{"bytes": None, "path": path} for path in paths]) if nested else pa.array(paths)
    pq.write_table(pa.table({"image": column, "label": pa.array([0, 1] * 3)}), "named.parquet")
    put(paths[0], b"no image")
    with one_sentence("named.parquet:1 cannot be read"):
        tables("named.parquet", validation_fraction=0.3)
    put(paths[0], file_of(picture(9)))
    found = tables("named.parquet", validation_fraction=0.3)
    pictures = [part.image(number) for part in (found.train, found.validation) for number in range(len(part))]
    assert len(pictures) == 6 and any(np.array_equal(each, np.asarray(picture(9))) for each in pictures)


def test_columns_of_bytes_and_of_paths():
    paths = [put(f"pictures/{seed}.png", file_of(picture(seed))) for seed in range(4)]
    kinds = {
        "bytes": pa.array([Path(path).read_bytes() for path in paths]),
        "large": pa.array([Path(path).read_bytes() for path in paths], pa.large_binary()),
        "path": pa.array(paths),
        "large path": pa.array(paths, pa.large_string()),
        "both": pa.array([{"bytes": None, "path": path} for path in paths]),
    }
    names = pa.array(["cat", "dog", "cat", "dog"])
    pq.write_table(pa.table({**kinds, "kind": names}), "a.parquet")
    for column in kinds:
        for megabytes in (0, 4096):
            options = {"column": column, "label_column": "kind", "decoded_megabytes": megabytes}
            assert everything(tables("a.parquet", **options)) == sorted(
                (picture(seed).tobytes(), ["cat", "dog"][seed % 2]) for seed in range(4)
            )


@pytest.mark.parametrize(
    "labels, classes",
    [
        (["b", "a", "ö", "a"], ["a", "b", "ö"]),
        ([10, 9, 9, 10], ["9", "10"]),
        ([True, False, True, False], ["False", "True"]),
    ],
)
def test_classes_are_the_distinct_labels(labels: list, classes: list[str]):
    kind = {str: "string", int: "int32", bool: "bool"}[type(labels[0])]
    prepared = tables(make_table("a.parquet", [0, 1, 2, 3], labels, Value(kind)))
    assert prepared.train.classes == prepared.validation.classes == classes
    assert everything(prepared) == sorted((picture(n).tobytes(), str(label)) for n, label in enumerate(labels))


def test_held_out_labels_are_those_of_the_training_classes():
    """The same names under other numbers."""
    make_table("a.parquet", [0, 1, 2], [0, 1, 2], ClassLabel(names=["x", "y", "z"]))
    make_table("b.parquet", [3, 4], [0, 1], ClassLabel(names=["z", "x"]))
    make_table("c.parquet", [3, 4], ["z", "y"], Value("string"))
    held = tables("a.parquet", validation_files=["b.parquet"]).validation
    assert held.labels.tolist() == [2, 0] and held.classes == ["x", "y", "z"]
    assert tables("a.parquet", validation_files=["c.parquet"]).validation.labels.tolist() == [2, 1]


def test_a_hub_data_set_equals_its_files(here: Path):
    """Hub names cannot be reached from here; `load_dataset` takes a folder of the same layout."""
    Path("hub").mkdir()
    feature = ClassLabel(names=["even", "odd"])
    make_table("hub/train.parquet", [0, 1, 2, 3], feature=feature)
    make_table("hub/validation.parquet", [4, 5], feature=feature)
    hub = load(source=str(here / "hub"), validation_split="validation")
    local = tables("hub/train.parquet", validation_files=["hub/validation.parquet"])
    for split in ("train", "validation"):
        assert getattr(hub, split).name == getattr(local, split).name
        assert pixels(getattr(hub, split)) == pixels(getattr(local, split))
    assert hub.train.place(1).endswith(":train:1") and local.train.place(1) == "hub/train.parquet:2"


# ---- how they are kept ----


@pytest.mark.parametrize("source", ["folder", "files"])
def test_decoded_and_encoded_images_are_equal(source: str):
    if source == "folder":
        options = {"source": source, "folder": make_folder("data", {"a": [0, 1, 2], "b": [3, 4, 5]})}
    else:
        options = {"source": source, "files": [make_table("a.parquet", list(range(6)))]}
    decoded, encoded = load(**options), load(**options, decoded_megabytes=0)
    assert decoded.train.pixels and not encoded.train.pixels
    assert "kept decoded" in decoded.lines[0] and "kept encoded" in encoded.lines[0]
    for split in ("train", "validation"):
        one, other = getattr(decoded, split), getattr(encoded, split)
        assert one.name == other.name and pixels(one) == pixels(other) and len(one)
        assert [one.image(n).shape for n in range(len(one))] == [other.image(n).shape for n in range(len(one))]
    assert (decoded.mean == encoded.mean).all() and (decoded.std == encoded.std).all()


def test_pixels_that_take_too_much_room_leave_no_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "IN_SHARD", 1)
    seeds = list(range(3, 40, 4))
    for seed in seeds:
        put(f"data/{seed}.png", file_of(picture(seed, size=(300, 300))))
    prepared = folders("data", labelled=False, decoded_megabytes=1)
    assert not prepared.train.pixels
    (file,) = Path("../kept").glob("images-*/pixels.bin")
    assert file.stat().st_size == 0
    assert sorted(pixels(prepared.train) + pixels(prepared.validation)) == sorted(
        picture(seed, size=(300, 300)).tobytes() for seed in seeds
    )


@pytest.mark.parametrize("decoded_megabytes", [0, 4096])
def test_images_go_to_other_processes_small_and_whole(decoded_megabytes: int):
    make_table("a.parquet", list(range(40)))
    images = tables("a.parquet", decoded_megabytes=decoded_megabytes).train
    before = pixels(images)
    copy = pickle.dumps(images)
    assert len(copy) < 20_000 and pixels(pickle.loads(copy)) == before
    if images.pixels:
        owner = images.image(0)
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, mmap)  # nothing was read into memory


@pytest.mark.parametrize("decoded_megabytes", [0, 4096])
def test_the_number_of_processes_changes_nothing(decoded_megabytes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "IN_SHARD", 5)
    make_table("a.parquet", list(range(40)))
    found, kept, names = [], [], ["pixels", *contents.ARRAYS]
    for processes in (1, 3):
        shutil.rmtree("../kept", ignore_errors=True)
        found.append(tables("a.parquet", processes=processes, decoded_megabytes=decoded_megabytes))
        (folder,) = Path("../kept").glob("images-*")
        kept.append([(folder / f"{name}.bin").read_bytes() for name in names])
    one, other = found
    assert kept[0] == kept[1] and all(kept[0][1:]) and bool(kept[0][0]) == bool(decoded_megabytes)
    assert one.train.name == other.train.name and one.lines == other.lines
    assert (one.mean == other.mean).all() and (one.std == other.std).all()


def test_what_is_cached_is_not_read_again(monkeypatch: pytest.MonkeyPatch):
    make_folder("data", {"a": [0, 1, 2], "b": [3, 4, 5]})
    before = folders("data")

    def fail(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(contents, "look", fail)
        again = prepare_images(ImageSettings("folder", "data"), 3, True, Path("../kept"), is_builder=False)
        unlabelled = prepare_images(ImageSettings("folder", "data"), 3, False, Path("../kept"), is_builder=False)
    assert pixels(again.train) == pixels(before.train) == pixels(unlabelled.train)
    assert again.train.name == before.train.name != unlabelled.train.name
    put("data/b/005.png", file_of(picture(6)))
    changed = folders("data")
    assert (picture(6).tobytes(), "b") in everything(changed) and len(everything(changed)) == 6


def test_each_number_of_channels_is_kept_apart():
    grey, colour = load(channels=1), load(channels=3)
    assert grey.train.name != colour.train.name and (grey.mean == colour.mean).all() and colour.mean.shape == (3,)
    assert (np.repeat(grey.train.image(7), 3, axis=2) == colour.train.image(7)).all()


def test_the_name_is_the_content():
    def name(classes: dict[str, list[int]], folder: str, channels: int = 3) -> str:
        return folders(make_folder(folder, classes), validation_fraction=1e-9, channels=channels).train.name

    classes = {"a": [0, 1, 2], "b": [3, 4, 5]}
    assert name(classes, "one") == name(classes, "two")
    others = [{"a": [0, 1, 2], "c": [3, 4, 5]}, {"a": [0, 1, 2, 3], "b": [4, 5]}, {"a": [0, 1], "b": [3, 4, 5]}]
    assert len({name(other, f"other{n}") for n, other in enumerate([*others, classes])}) == 4


def test_files_that_change_while_a_run_reads_them():
    make_folder("data", {"a": [0, 1, 2], "b": [3, 4, 5]})
    images = folders("data", decoded_megabytes=0).train
    put(images.place(1), file_of(picture(0, size=(2, 2))))
    with pytest.raises(ValueError, match=f"{images.place(1)} has changed .*2 x 2"):
        images.image(1)
    os.remove(images.place(2))
    with pytest.raises(ValueError, match=f"{images.place(2)} has changed .*No such file"):
        images.image(2)


# ---- statistics ----


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std_are_those_of_all_training_pixels(channels: int):
    for seed in range(12):
        put(f"data/{seed}.png", file_of(picture(seed, channels)))
    prepared = folders("data", labelled=False, channels=channels, validation_fraction=0.3)
    assert len(prepared.validation)
    values = [prepared.train.image(n).reshape(-1, channels) for n in range(len(prepared.train))]
    values = np.concatenate(values) / 255
    np.testing.assert_allclose(prepared.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(prepared.std, values.std(axis=0), rtol=1e-12)


def test_a_channel_that_never_changes_can_be_divided_by():
    for seed in range(4):
        content = picture(seed)
        content[..., 1] = 51
        put(f"data/{seed}.png", file_of(content))
    prepared = folders("data", labelled=False)
    assert prepared.mean[1] == 0.2 and prepared.std[1] == 1 and 0 < prepared.std[0] < 1


# ---- what is held out, and left out ----


def test_equal_images_never_straddle_the_split():
    make_table("a.parquet", [n % 60 for n in range(180)])
    prepared = tables("a.parquet", validation_fraction=0.3)
    train, held = pixels(prepared.train), pixels(prepared.validation)
    assert sorted(train + held) == sorted(picture(seed).tobytes() for seed in range(60))
    assert 0.1 < len(held) / 60 < 0.5
    assert "120 duplicates" in prepared.lines[0] and "another label" not in prepared.lines[0]
    less = tables(make_table("b.parquet", list(range(30))), validation_fraction=0.3)
    assert set(pixels(less.validation)) <= set(held) and set(pixels(less.train)) <= set(train)


def test_the_hash_decides_the_split():
    make_table("a.parquet", list(range(60)))
    held = set(pixels(tables("a.parquet", validation_fraction=0.3).validation))
    low = {n for n in range(60) if hash_bytes(file_of(picture(n))) < 0.3 * 2**64}
    assert held == {picture(n).tobytes() for n in low}


def test_duplicates_under_another_label_are_told():
    make_table("a.parquet", [0, 1, 2, 3, 0, 1], ["x", "y", "x", "y", "x", "x"], Value("string"))
    prepared = tables("a.parquet")
    assert "2 duplicates, 1 of these with another label" in prepared.lines[0]
    assert (picture(1).tobytes(), "y") in everything(prepared)


def test_held_out_images_never_leak():
    """A held-out split that is named stays whole, or scores on it would not compare."""
    make_table("a.parquet", [0, 1, 2, 3, 4, 0, 4])
    make_table("b.parquet", [0, 5, 0])
    prepared = tables("a.parquet", validation_files=["b.parquet"])
    assert pixels(prepared.train) == [picture(n).tobytes() for n in (1, 2, 3, 4)]
    assert pixels(prepared.validation) == [picture(n).tobytes() for n in (0, 5, 0)]
    assert "2 also held out, 1 duplicates" in prepared.lines[0] and "left out" not in prepared.lines[1]
    make_folder("train", {"0": [0, 1], "1": [2]})
    make_folder("held", {"1": [0, 5]})
    prepared = folders("train", validation_folder="held")
    assert pixels(prepared.train) == [picture(n).tobytes() for n in (1, 2)]
    assert prepared.validation.labels.tolist() == [1, 1]


def test_examples_are_drawn_evenly_and_nested():
    make_table("a.parquet", list(range(60)), [0] * 40 + [1] * 15 + [2] * 5)
    everyone = tables("a.parquet")
    sizes = Counter(everyone.train.labels.tolist())
    seen: set[bytes] = set()
    for count in (3, 10, 30, len(everyone.train)):
        some = tables("a.parquet", examples=count)
        found = Counter(some.train.labels.tolist())
        assert len(some.train) == sum(found.values()) == count
        assert seen <= (seen := set(pixels(some.train)))
        level = max(found.values())
        assert all(found[label] >= min(level - 1, sizes[label]) for label in sizes)
        assert pixels(some.validation) == pixels(everyone.validation)
        assert count == len(everyone.train) or "not drawn" in some.lines[0]
    assert not np.allclose(tables("a.parquet", examples=10).mean, everyone.mean, rtol=1e-9)


def test_examples_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    labels, hashes = rng.integers(0, 5, 1000), rng.integers(0, 2**63, 1000).astype(np.uint64)
    order = rng.permutation(1000)
    chosen = choose(labels, hashes, 103)
    assert (choose(labels[order], hashes[order], 103) == chosen[order]).all()
    assert sorted(np.bincount(labels[chosen])) == [20, 20, 21, 21, 21]


def test_bad_images_are_left_out_counted_and_listed():
    make_folder("data", {"a": [0, 1, 2], "b": [3, 4, 5]})
    half = file_of(picture(3, size=(64, 64)), "JPEG")
    put("data/b/half.jpg", half[: len(half) // 2])
    put("data/a/text.png", b"no image")
    mistake(
        "data/a/text.png cannot be read (it is no image of a known format), nor can 1 more: mend or delete them, or "
        "set data.skip_bad_images to 2",
        source="folder", folder="data", skip_bad_images=1,
    )  # fmt: skip
    for options in ({}, {"decoded_megabytes": 0}):
        prepared = folders("data", skip_bad_images=2, **options)
        assert len(everything(prepared)) == 6 and "2 unreadable" in prepared.lines[0]
        assert any("data/b/half.jpg (" in line and "truncated" in line for line in prepared.lines)
        assert any("data/a/text.png (it is no" in line for line in prepared.lines)
    os.remove("data/a/text.png")
    mistake("data/b/half.jpg cannot be read (", "mend or delete it", source="folder", folder="data")


def test_rows_without_an_image_are_bad():
    images: list = [{"bytes": file_of(picture(seed)), "path": None} for seed in range(4)]
    images[1:1] = [None, {"bytes": None, "path": "gone.png"}]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 1, 0, 1, 0]}), "a.parquet")
    mistake("a.parquet:2 cannot be read", "nor can 1 more", files=["a.parquet"])
    prepared = tables("a.parquet", skip_bad_images=2)
    assert any("a.parquet:3 (" in line and "No such file or directory: 'gone.png'" in line for line in prepared.lines)
    assert len(everything(prepared)) == 4


# ---- mistakes ----


def mistake(*parts: str, channels: int = 3, labelled: bool = True, **settings) -> None:
    with one_sentence(*parts):
        load(channels, labelled, **{"source": "files", **settings})


@pytest.mark.parametrize("processes", [1, 2])
def test_colours_where_one_channel_is_asked_for(processes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "IN_SHARD", 1)
    for seed in range(3):
        put(f"data/{seed}.png", file_of(picture(seed, 1 if seed < 2 else 3)))
    parts = ("data/2.png has colours, but model.num_channels is 1: set it to 3",)
    mistake(*parts, source="folder", folder="data", labelled=False, channels=1, processes=processes)
    assert not list(Path("../kept").glob("images-*"))
    mistake("model.num_channels is 4", source="digits", channels=4)


def test_folders_that_are_not_there_or_hold_other_things():
    make_folder("images", {"a": [0, 1], "b": [2, 3]})
    folder = {"source": "folder"}
    mistake("no folder 'imags' in data.folder", "did you mean 'images'", **folder, folder="imags")
    mistake("no folder 'no/where' in data.validation_folder", **folder, folder="images", validation_folder="no/where")
    mistake("images/a/000.png in data.folder is a file", **folder, folder="images/a/000.png")
    mistake("images/a has files but no classes", **folder, folder="images/a")
    mistake("are in one another", **folder, folder="images", validation_folder="images/../images/a")
    put("images/c.png", file_of(picture(9)))
    mistake("images/c.png lies beside the folders of the classes (2)", **folder, folder="images")
    os.remove("images/c.png")
    put("images/b/notes.docx", b"")
    mistake("images/b/notes.docx has an unknown extension", ".jpeg", **folder, folder="images")
    os.remove("images/b/notes.docx")
    Path("images/empty").mkdir()
    mistake("images/empty holds no image: fill it, or delete it", **folder, folder="images")
    mistake("images/empty holds no images: fill it", **folder, folder="images/empty")
    mistake("images/empty holds no images", **folder, folder="images/empty", labelled=False)


def test_a_folder_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch):
    make_folder("images", {"a": [0, 1], "b": [2, 3]})
    scandir = os.scandir

    def refuse(folder: str):
        if folder.endswith("b"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    mistake("images/b cannot be read (Permission denied): mend its rights", source="folder", folder="images")


def test_splits_are_those_of_the_folders():
    make_folder("root/train", {"a": [0, 1], "b": [2]})
    make_folder("root/val", {"b": [3], "a": [4]})
    make_folder("root/test", {"a": [5]})
    make_folder("own", {"a": [6]})
    for labelled in (True, False):
        prepared = folders("root", labelled=labelled)
        assert sorted(pixels(prepared.train)) == sorted(picture(n).tobytes() for n in (0, 1, 2))
        assert sorted(pixels(prepared.validation)) == sorted(picture(n).tobytes() for n in (3, 4))
        assert prepared.lines[0] == "splits: trained on root/train, held out: root/val; not read: root/test"
    named = folders("root", validation_folder="root/test")
    assert pixels(named.validation) == [picture(5).tobytes()]
    assert named.lines[0].endswith("held out: root/test; not read: root/val")
    assert pixels(folders("root", validation_folder="own").validation) == [picture(6).tobytes()]


def test_one_class_is_nothing_to_learn():
    make_folder("images", {"a": [0, 1]})
    mistake("all 2 training images are of the class 'a'", source="folder", folder="images")
    make_table("a.parquet", [0, 1, 2], [1, 1, 1], ClassLabel(names=["x", "y"]))
    mistake("all 3 training images are of the class 'y'", files=["a.parquet"])
    assert len(tables("a.parquet", labelled=False).train) == 2


def test_held_out_classes_must_be_trained():
    make_folder("train", {"cat": [0, 1], "dog": [2, 3]})
    make_folder("held", {"cat": [4], "dogs": [5]})
    mistake(
        "held/dogs/005.png is of class 'dogs', which no training image can be of (did you mean 'dog'?)",
        source="folder", folder="train", validation_folder="held",
    )  # fmt: skip


def test_labels_that_are_none():
    feature = ClassLabel(names=["x", "y"])
    table = make_table("a.parquet", [0, 1, 2], [0, 1, -1], feature)
    mistake("a.parquet:3 has label -1, but its classes are 0 to 1", files=[table])
    rows = pq.read_table(table).to_pylist()
    rows[1]["label"] = 2
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(table)), "b.parquet")
    mistake("b.parquet:2 has label 2, but its classes are 0 to 1", files=["b.parquet"])
    mistake("c.parquet:2 has no label", files=[make_table("c.parquet", [0, 1], [1, None])])
    mistake(
        "holds float", "set data.label_column", files=[make_table("d.parquet", [0, 1], [0.5, 1.5], Value("float32"))]
    )


def test_columns_that_are_not_there_or_hold_no_images():
    table = make_table("a.parquet", [0, 1])
    mistake("a.parquet has no column 'imag' (did you mean 'image'?): set data.column to", files=[table], column="imag")
    mistake("no column 'labels' (did you mean 'label'?): set data.label_column", files=[table], label_column="labels")
    mistake("a.parquet holds int64 in 'label', which is no image: set data.column to", files=[table], column="label")
    assert tables(table, label_column="labels", labelled=False).train.classes == []


def test_tables_that_do_not_fit_together():
    make_table("a.parquet", [0, 1], feature=ClassLabel(names=["x", "y"]))
    make_table("b.parquet", [2, 3], feature=ClassLabel(names=["y", "x"]))
    mistake("b.parquet holds ClassLabel", "in 'label' but a.parquet", files=["*.parquet"])


def test_tables_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch):
    for name in ("a.parquet", "a.arrow"):
        put(name, b"no table at all")
        mistake(f"{name} is no ", "write it anew", files=[name])
    put("a.zip", b"")
    mistake("a.zip in data.files has an unknown extension", ".parquet, .arrow", files=["a.zip"])
    empty = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(empty, "e.parquet")
    mistake("e.parquet holds no images", files=["e.parquet"])
    mistake(
        "a.parquet is in both data.files and data.validation_files", files=["a.parquet"], validation_files=["a.parquet"]
    )

    def offline(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(readers, "load_dataset", offline)
    mistake("'digit'", "did you mean 'digits'", "no network", "'folder'", source="digit")


def test_nothing_to_train_or_to_judge_on():
    make_table("a.parquet", [0, 1])
    make_table("b.parquet", [1, 0, 2])
    mistake("Not one image is left to train on", files=["a.parquet"], validation_files=["b.parquet"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "look", None)  # nothing is read in vain
        mistake("Nothing is held out", "data.validation_files", files=["a.parquet"], validation_fraction=0)
    mistake("data.examples is 5, but there are 2 images", files=["b.parquet"], examples=5)


def test_settings_that_contradict_one_another():
    mistake("data names a folder: set it to folder", source="digits", folder="x")
    mistake("data.files is empty")
    mistake("data.folder is empty", source="folder")
    mistake("data.validation_fraction is 1", validation_fraction=1, files=["a.parquet"])
