"""Text sources: every format gives the same documents, the split is clean, each mistake gets one sentence."""

import csv
import gzip
import inspect
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mistakes import one_sentence

from pretraining.data import readers
from pretraining.data.find import find
from pretraining.data.text import sentences as splitter
from pretraining.data.text import sources
from pretraining.data.text.documents import Documents, load_text, split_by_hash
from pretraining.data.text.sentences import sentences
from pretraining.data.text.settings import TextSettings

DOCUMENTS = [
    "It rained. Nobody came.\n\nThen, at noon, the sun.",
    '안녕하세요. 저는 "학생"입니다.\n\n오늘은 3.5도입니다.',
    "Cells, with commas,\nand lines.",
    "Ünïcödé, 中文 and 🙂.",
]


pytestmark = pytest.mark.usefixtures("here")


def write(name: str, documents: list, column: str = "text") -> str:
    """Documents as a file of the format that its name tells."""
    path = Path(name)
    bare = path.with_suffix("") if path.suffix == ".gz" else path
    rows = [{"id": number, column: document} for number, document in enumerate(documents)]
    if bare.suffix == ".txt":
        bare.write_text("\n\n".join(documents), encoding="utf-8")
    elif bare.suffix == ".jsonl":
        bare.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif bare.suffix == ".csv":
        with bare.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", column])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), bare)
    if path != bare:
        path.write_bytes(gzip.compress(bare.read_bytes()))
        bare.unlink()
    return name


def load(*files: str, **settings) -> dict[str, Documents]:
    return load_text(TextSettings(source="files", files=list(files), **settings))


def documents(*files: str, **settings) -> list[str]:
    return list(load(*files, validation_fraction=0, **settings)["train"].texts())


# ---- what is read ----


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.parquet"])
def test_every_format_gives_the_same_documents(name: str):
    assert documents(write(name, DOCUMENTS, "body"), column="body") == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_is_cut_as_asked(name: str):
    write(name, DOCUMENTS)
    whole = "\n\n".join(DOCUMENTS)
    assert documents(name) == [whole]
    assert documents(name, document="blank_line") == whole.split("\n\n")
    assert documents(name, document="line") == [line for line in whole.split("\n") if line]


def test_names_tell_file_and_row():
    write("a.txt", DOCUMENTS)
    write("b.jsonl", DOCUMENTS[:1])
    rows = load("*", validation_fraction=0, document="blank_line")["train"].dataset
    lines = Path("a.txt").read_text(encoding="utf-8").split("\n")
    assert rows["name"][-1] == "b.jsonl:1"
    for name, text in zip(rows["name"][:-1], rows["text"][:-1], strict=True):
        file, number = name.split(":")
        assert file == "a.txt" and lines[int(number) - 1] == text.split("\n")[0]


def test_globs_are_sorted_and_name_each_file_once():
    for name in ("b.txt", "a.txt", "[c].txt", "sub/d.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    assert documents("*.txt", "./a.txt") == ["[c].txt", "a.txt", "b.txt"]
    assert documents("b.txt", "**/*.txt") == ["b.txt", "[c].txt", "a.txt", "sub/d.txt"]
    assert documents("[c].txt") == ["[c].txt"]


def test_a_changed_file_is_read_again():
    Path("a.txt").write_text("before")
    assert documents("a.txt") == ["before"]
    Path("a.txt").write_text("afterwards")
    assert documents("a.txt") == ["afterwards"]


def test_a_hub_data_set_equals_its_files(here: Path):
    """Hub names cannot be reached from here; `load_dataset` takes a folder of the same layout."""
    Path("hub").mkdir()
    write("hub/train.parquet", DOCUMENTS, "body")
    write("hub/validation.parquet", ["held out"], "body")
    hub = TextSettings(source=str(here / "hub"), column="body", validation_split="validation")
    local = load("hub/train.parquet", column="body", validation_files=["hub/validation.parquet"])
    for split, found in load_text(hub).items():
        assert found.fingerprint == local[split].fingerprint


# ---- what is held out ----


def test_train_and_validation_never_share_a_document():
    split = load(write("a.jsonl", [f"Document {n % 300}." for n in range(1000)]), validation_fraction=0.1)
    train, held = list(split["train"].texts()), list(split["validation"].texts())
    assert len(train) + len(held) == 1000
    assert not set(train) & set(held)
    assert 0.05 < len(held) / 1000 < 0.15


def test_a_document_keeps_its_side_when_others_come():
    some = load(write("a.jsonl", [f"Document {n}." for n in range(100)]), validation_fraction=0.3)
    more = load(write("b.jsonl", [f"Document {n}." for n in range(200)]), validation_fraction=0.3)
    for side in ("train", "validation"):
        assert set(some[side].texts()) <= set(more[side].texts())


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_each_side_gets_a_document(count: int, fraction: float, make_documents):
    documents = make_documents([f"{n}" for n in range(count)])
    split = split_by_hash(documents, fraction, documents.hash)
    assert min(len(split["train"]), len(split["validation"])) >= 1
    assert len(split["train"]) + len(split["validation"]) == count


@pytest.mark.parametrize("same", [["one"], ["two", "two"]])
def test_what_cannot_be_split_stays_in_train(same: list[str], make_documents):
    documents = make_documents(same)
    split = split_by_hash(documents, 0.9, documents.hash)
    assert list(split["train"].texts()) == same and len(split["validation"]) == 0


def test_named_validation_is_taken_as_it_is():
    write("a.jsonl", DOCUMENTS)
    write("b.jsonl", DOCUMENTS[:2])
    split = load("a.jsonl", validation_files=["b.jsonl"])
    assert list(split["train"].texts()) == DOCUMENTS and list(split["validation"].texts()) == DOCUMENTS[:2]


def test_the_fingerprint_is_the_content(make_documents):
    def of(*values: str) -> str:
        return make_documents(list(values)).fingerprint

    assert of("ab", "c") == of("ab", "c")
    assert len({of("ab", "c"), of("a", "bc"), of("c", "ab"), of("abc"), of("ab", "c", "d")}) == 5
    some = make_documents(["x", "ab", "c"]).select(np.array([False, True, True]))
    assert some.fingerprint == of("ab", "c")


# ---- Python's documentation ----


@pytest.fixture(scope="module")
def pydocs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Documents]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("pydocs"))
        return load_text(TextSettings())


def test_pydocs_holds_the_library_and_the_topics(pydocs: dict[str, Documents]):
    found = {row["name"]: row["text"] for split in pydocs.values() for row in split.dataset}
    parts = [json.decoder, json.JSONDecoder, json.JSONDecoder.decode]
    places = [found["json.decoder"].index(inspect.getdoc(part)) for part in parts]
    assert places == sorted(places) and inspect.getdoc(json) in found["json"]
    assert '"assert"' in found["pydoc_data.topics:assert"]
    assert not [name for name in found if {"test", "tests", "site-packages"} & set(name.split("."))]
    assert len(set(found.values())) == len(found)


def test_pydocs_holds_out_about_a_twentieth(pydocs: dict[str, Documents]):
    names = {split: set(found.dataset["name"]) for split, found in pydocs.items()}
    assert not names["train"] & names["validation"]
    assert not set(pydocs["train"].texts()) & set(pydocs["validation"].texts())
    assert 0.02 < len(names["validation"]) / len(names["train"]) < 0.1


def test_pydocs_reads_and_never_imports(here: Path):
    for file, text in {
        "pydoc_data/topics.py": "topics: dict = {'if': r'''The \"if\" statement\n\n   if x:\n\nEnd.\n'''}",
        "loud/__init__.py": '"""Loud."""\nraise SystemExit\nclass A:\n  """\n  In A.\n\n    Deeper.\n  """',
        "loud/part.py": 'def f(): "Loud."\nif True:\n  async def g():\n    "Only here."\n    def h(): "In."',
        "test/test_x.py": '"""A test."""',
        "loud/tests/x.py": '"""A test."""',
        "site-packages/x.py": '"""Not ours."""',
    }.items():  # fmt: skip
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(text)
    found = {name: text for name, text in sources._pydocs(here) if text}
    assert found == {
        "loud": "Loud.\n\nIn A.\n\n  Deeper.",
        "loud.part": "Only here.\n\nIn.",  # "Loud." came before
        "pydoc_data.topics:if": 'The "if" statement\n\n   if x:\n\nEnd.',
    }


# ---- sentences ----


def test_sentences_of_paragraphs():
    text = "Dr. Smith  came.\nHe left at 3.5 p.m. today! \n \n\nWhy? \n\n \n"
    assert sentences(text, "en") == [["Dr. Smith came."], ["He left at 3.5 p.m. today!"], ["Why?"]]
    korean = [["안녕하세요."], ["오늘은 3.5도입니다."], ["네."]]
    assert sentences("안녕하세요. 오늘은 3.5도입니다.\n\n네.", "ko") == korean
    assert sentences("你好。再见！ 走了。", "zh") == [["你好。", "再见！"], ["走了。"]]
    assert sentences(" \n\n ", "en") == []


@pytest.mark.parametrize("unit", ["He said: go. ", "她说：“好。”他走了。", "a ", "x", '"Unclosed. '])
def test_long_paragraphs_lose_no_character_and_take_no_square_time(unit: str):
    text = unit * (200_000 // len(unit))
    start = time.perf_counter()
    found = [sentence for run in sentences(text, "en") for sentence in run]
    assert time.perf_counter() - start < 5
    assert "".join(found).replace(" ", "") == text.replace(" ", "")
    assert max(map(len, found)) <= 2 * splitter.WINDOW


def test_windows_do_not_change_ordinary_sentences():
    text = " ".join(f"Sentence number {n} has {n % 7} words, Mr. Reader." for n in range(2000))
    assert sentences(text, "en") == [[s.strip()] for s in splitter.sentencex.segment("en", text)]


# ---- mistakes ----


def mistake(*parts: str, **settings) -> None:
    with one_sentence(*parts):
        load_text(TextSettings(**{"source": "files", **settings}))


def test_files_that_are_not_there():
    write("corpus.txt", DOCUMENTS)
    Path("folder").mkdir()
    mistake("'corpsu.txt'", "did you mean 'corpus.txt'", files=["corpsu.txt"])
    mistake("'nowhere/*.txt'", files=["nowhere/*.txt"])
    mistake("'*.text'", "validation_files", files=["corpus.txt"], validation_files=["*.text"])
    mistake("folder in data.files is a folder", "folder/*.txt", files=["folder"])
    mistake("data.files is empty")


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder with one that may not be read and a file that may not be; root, who may all, is nobody meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "sub").mkdir()
        for file in ("a.txt", "b.txt", "sub/c.txt"):
            (folder / file).write_text("x")
        (folder / "b.txt").chmod(0)
        (folder / "sub").chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        yield folder
        if is_root:
            os.seteuid(0)
        (folder / "sub").chmod(0o700)


@pytest.mark.parametrize("pattern", ["b.txt", "*.txt", "sub/c.txt", "sub/*.txt", "**/[ac].txt", "*/c.txt"])
def test_what_may_not_be_read_is_not_passed_over(pattern: str, locked: Path):
    with one_sentence(str(locked), "in data.files cannot be read (Permission denied)"):
        find([str(locked / pattern)], "files")


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.parquet.gz", "a.gz"])
def test_unknown_extension(name: str):
    Path(name).write_text("x")
    mistake(f"{name} in data.files", "unknown extension", ".jsonl.gz", files=[name])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_wrong_column(name: str):
    mistake(name, "'tetx'", "did you mean 'text'", "set data.column", files=[write(name, DOCUMENTS)], column="tetx")


def test_settings_that_contradict_one_another():
    write("a.txt", DOCUMENTS)
    write("b.txt", DOCUMENTS)
    mistake("data.source is 'pydocs' but files are named", source="pydocs", files=["a.txt"])
    mistake("b.txt is in both", files=["*.txt"], validation_files=["b.txt"])
    mistake("data.validation_fraction is 5", files=["a.txt"], validation_fraction=5)


def test_data_sets_that_cannot_be_loaded(here: Path, monkeypatch: pytest.MonkeyPatch):
    Path("hub").mkdir()
    write("hub/train.parquet", DOCUMENTS, "body")
    hub = str(here / "hub")
    mistake(hub, "split 'trian'", source=hub, column="body", split="trian")
    mistake(hub, "subset 'ko'", source=hub, column="body", subset="ko")
    mistake(hub, "no column 'boby'", "did you mean 'body'", source=hub, column="boby")
    mistake(f"{hub}:train:0 holds 0", source=hub, column="id")

    def offline(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(readers, "load_dataset", offline)
    mistake("'pydoc'", "did you mean 'pydocs'", "no network", source="pydoc")


def test_no_document_at_all(monkeypatch: pytest.MonkeyPatch, here: Path):
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda _: str(here))
    mistake("the standard library", "holds no text", source="pydocs")
