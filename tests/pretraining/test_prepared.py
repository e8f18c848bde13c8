"""Prepared text: the same bytes however many processes make it, chunks that cover it, nothing done twice."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from pretraining.data import shards, stored
from pretraining.data.settings import TokenizerSettings
from pretraining.data.shards import count_processes, in_order
from pretraining.data.text import prepared as prepared_text
from pretraining.data.text.documents import Documents
from pretraining.data.text.prepared import PreparedText, chunk_offsets, prepare_text
from pretraining.data.text.sentences import sentences
from pretraining.data.tokenizer import build_tokenizer

TEXTS = [*list(topics.values())[:30], "...", "a"]


@pytest.fixture(scope="module")
def text(make_documents) -> Documents:
    return make_documents(TEXTS)


@pytest.fixture(scope="module")
def tokenizer(text: Documents, tmp_path_factory: pytest.TempPathFactory):
    return build_tokenizer(TokenizerSettings(vocab_size=900), text, tmp_path_factory.mktemp("tokenizer"))


def prepared(text: Documents, tokenizer, cache: Path, length: int = 64, processes: int = 1) -> PreparedText:
    return prepare_text(text, tokenizer, ["en"], length - 3, 0.1, processes, cache, True)


def contents(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.glob("text-*/*")}


# ---- processes ----


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_change_no_byte(start: str, text, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = prepared(text, tokenizer, tmp_path / "one")
    monkeypatch.setattr(stored, "CHARACTERS", 20_000)
    assert len(text.shards()) > 6
    prepared(text, tokenizer, tmp_path / "cut")
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(start, force=True)
    try:
        prepared(text, tokenizer, tmp_path / "three", processes=3)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "cut") == contents(tmp_path / "three")
    assert len(whole.tokens) > 10_000


def double(shard: range) -> list[int]:
    time.sleep(0.05 * (shard.start == 0))  # the first is the last to be ready
    return [2 * number for number in shard]


def stop(shard: range) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(shard: range) -> None:
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece: the other process writes too
    time.sleep(100)


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order(processes: int):
    shards = [range(first, first + 5) for first in range(0, 100, 5)]
    found = list(in_order(double, shards, processes, "", ""))
    assert [shard for shard, _ in found] == shards
    assert [number for _, result in found for number in result] == list(range(0, 200, 2))


def test_a_worker_that_is_killed_is_one_sentence():
    with pytest.raises(ValueError, match=r"One of 2 processes that prepare the texts .* data\.processes lower"):
        list(in_order(stop, [range(1), range(1, 2)], 2, "", "texts"))


def test_a_run_that_is_killed_leaves_no_worker():
    program = "from test_prepared import *; list(in_order(wait, [range(1), range(1, 2)], 2, '', ''))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert run.stdout is not None
    workers = [int(run.stdout.readline()) for _ in range(2)]
    run.kill()
    run.wait()
    deadline = time.time() + 60
    while any(alive(worker) for worker in workers):
        assert time.time() < deadline
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/status")  # what nobody has waited for is dead too
    return not status.exists() or "State:\tZ" not in status.read_text()


def test_cores_are_shared_by_the_processes_of_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (count_processes(0), count_processes(3)) == (8, 3)
    for local, expected in (("2", 4), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        assert count_processes(0) == expected


# ---- tokens ----


def test_tokens_are_those_of_the_sentences(text, tokenizer, tmp_path: Path):
    data = prepared(text, tokenizer, tmp_path)
    found = [[s for run in sentences(t, "en") for s in run] for t in TEXTS]
    ids = [tokenizer(t, add_special_tokens=False, split_special_tokens=True)["input_ids"] if t else [] for t in found]
    kept = [document for document in ids if sum(map(len, document)) >= 2]
    assert data.dropped == len(TEXTS) - len(kept) == 1
    assert data.tokens.tolist() == [token for document in kept for sentence in document for token in sentence]
    assert np.diff(data.sentences).tolist() == [len(s) for document in kept for s in document if s]
    assert np.diff(data.documents).tolist() == [sum(map(len, document)) for document in kept]


def test_each_source_has_its_language(text, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    several = Documents(text.dataset, text.hash, text.characters, np.arange(len(text), dtype=np.uint16) % 2)
    asked = []
    monkeypatch.setattr(
        prepared_text, "sentences", lambda text, language: asked.append(language) or sentences(text, "en")
    )
    data = prepare_text(several, tokenizer, ["en", "ko"], 61, 0.1, 1, tmp_path, True)
    assert asked == ["en", "ko"] * (len(TEXTS) // 2)
    assert data.sources.tolist() == several.source[: len(TEXTS) - 1].tolist()  # the last document is empty
    assert data.name != prepared(text, tokenizer, tmp_path).name


def test_another_sequence_length_does_not_tokenise_again(
    text, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    short = prepared(text, tokenizer, tmp_path, 64)
    monkeypatch.setattr(prepared_text, "tokenise", None)
    long = prepared(text, tokenizer, tmp_path, 128)
    assert np.array_equal(short.tokens, long.tokens) and short.name != long.name
    assert (np.diff(short.chunks).max(), np.diff(long.chunks).max()) == (61, 125)


@pytest.mark.parametrize("library", ["sentencex", "tokenizers"])
def test_another_version_of_what_splits_or_tokenises_prepares_anew(
    library: str, text, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The name, which is part of a run's contract, stays: the versions stand there by their own names."""
    before = prepared(text, tokenizer, tmp_path)
    monkeypatch.setattr(prepared_text, "version", lambda name: "next" if name == library else version(name))
    assert prepared(text, tokenizer, tmp_path).name == before.name
    assert len(list(tmp_path.glob("text-*/complete.json"))) == 2


def test_a_text_without_tokens_is_one_sentence(make_documents, tokenizer, tmp_path: Path):
    with pytest.raises(ValueError, match=r"not one of its documents has two tokens\.$"):
        prepared(make_documents(["a", "b"]), tokenizer, tmp_path)
    assert not list(tmp_path.glob("text-*"))


# ---- chunks ----


@pytest.mark.parametrize("short_rate", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("limit", [5, 13, 125])
def test_chunks_cover_every_document(limit: int, short_rate: float):
    lengths = np.concatenate([np.arange(2, 300), np.random.default_rng(0).integers(2, 5000, 2000)])
    documents = np.concatenate([[0], lengths.cumsum()])
    chunks = chunk_offsets(documents, limit, short_rate)
    assert np.isin(documents, chunks).all() and chunks[-1] == documents[-1]
    sizes = np.diff(chunks)
    assert sizes.min() >= 2 and sizes.max() <= limit
    if limit == 125:
        own = np.searchsorted(documents, chunks[1:], side="left")
        natural = np.isin(chunks[1:], documents)  # a document's last chunk is as long as it comes
        drawn = (sizes < limit) & ~natural & (own > 0)
        # Of the two parts of a piece one may be a document's last: allow for one chunk of each document.
        assert drawn.mean() == pytest.approx(short_rate, abs=0.01 + short_rate * len(lengths) / len(sizes))


def test_chunks_are_the_same_however_many_documents_are_cut_at_a_time(monkeypatch: pytest.MonkeyPatch):
    documents = np.concatenate([[0], np.random.default_rng(0).integers(2, 500, 300).cumsum()])
    whole = chunk_offsets(documents, 20, 0.5)
    monkeypatch.setattr(prepared_text, "BLOCK", 300)
    assert np.array_equal(chunk_offsets(documents, 20, 0.5), whole)


def test_a_documents_chunks_depend_on_its_number_and_length_alone():
    first = chunk_offsets(np.array([0, 1000, 3000]), 20, 0.5)
    other = chunk_offsets(np.array([0, 10, 2010]), 20, 0.5)
    assert np.array_equal(first[first >= 1000] - 1000, other[other >= 10] - 10)
