"""What is stored once: by one process, anew when a file changes, and where it can be written."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Features, Value
from mistakes import one_sentence, refused

from pretraining.data.cache import MARK, build_cached, check_cache
from pretraining.data.stored import store
from pretraining.data.text.documents import load_text
from pretraining.data.text.settings import TextSettings

FEATURES = Features({"text": Value("string"), "characters": Value("int64")})


def build(cache: Path, size: int = 1) -> Path:
    def make(folder: Path) -> dict[str, Any]:
        (folder / "data").write_bytes(bytes(size))
        return {}

    return build_cached(cache, "text", [size], make, True)


def store_one(cache: Path, size: int = 1) -> None:
    datasets.config.HF_DATASETS_CACHE = cache
    store(lambda: [{"text": "x" * size, "characters": size}], FEATURES, "rows", [], size)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_of_two_that_need_a_folder_one_makes_it(tmp_path: Path):
    made: list[Path] = []

    def make(folder: Path) -> dict[str, Any]:
        made.append(folder)
        time.sleep(0.2)
        return {}

    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: build_cached(tmp_path, "text", [1], make, True), range(2)))
    assert len(folders) == len(made) == 1 and list(tmp_path.iterdir()) == list(folders)


def test_what_a_deletion_left_is_made_anew(tmp_path: Path):
    folder = build(tmp_path)
    (folder / MARK).unlink()
    assert (build(tmp_path) / MARK).exists()


@pytest.mark.parametrize("write, setting", [(build, "set cache to"), (store_one, "HF_DATASETS_CACHE")])
def test_a_cache_that_cannot_be_written_to(
    write: Callable[..., Any], setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", None)  # and back after the test
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with one_sentence(str(cache), "cannot be written to", setting):
            write(cache)
    with room_for(2**10), one_sentence(str(tmp_path), "cannot be written to (File too large)", setting):
        write(tmp_path / "full before")
    with room_for(2**17), one_sentence(str(tmp_path), "cannot be written to", setting):
        write(tmp_path / "full meanwhile", size=2**20)
    assert not [path for path in (tmp_path / "full meanwhile").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_run_looks_at_its_cache_first(tmp_path: Path, digits: list[str], capsys: pytest.CaptureFixture):
    (tmp_path / "file").touch()
    arguments = [*digits, f"--runs={tmp_path}", "--train.steps=1", f"--cache={tmp_path}/file"]
    assert "file cannot be written to" in refused(arguments, capsys)
    with room_for(2**10), one_sentence("cannot be written to", "set cache to"):
        check_cache(tmp_path / "cache")
    build(tmp_path / "cache")
    with room_for(2**10):
        check_cache(tmp_path / "cache")  # it may hold all that is needed


@pytest.mark.usefixtures("here")
def test_a_data_set_whose_cache_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch):
    Path("data").mkdir()
    Path("data/train.jsonl").write_text('{"text": "x"}')
    Path("file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(Path("file").absolute()))
    with one_sentence("file cannot be written to", "HF_DATASETS_CACHE"):
        load_text(TextSettings(source="data"))


@pytest.mark.usefixtures("here")
def test_a_file_of_equal_size_and_time_is_read_again(capsys: pytest.CaptureFixture):
    def read() -> list[str]:
        settings = TextSettings(source="files", files=["a.txt"], validation_fraction=0)
        return list(load_text(settings)["train"].texts())

    path = Path("a.txt")
    path.write_text("before")
    times = os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns
    assert read() == ["before"] and "documents" not in capsys.readouterr().out
    assert read() == ["before"] and "documents: nothing has changed" in capsys.readouterr().out
    time.sleep(0.01)  # file systems tell times that are nearer from one another no more
    path.write_text("behind")
    os.utime(path, ns=times)
    assert read() == ["behind"] and "documents" not in capsys.readouterr().out
