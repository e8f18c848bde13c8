"""A small real corpus (Python's own help topics), and settings for runs of seconds."""

import os
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pytest
from datasets import Dataset
from filelock import FileLock
from runs import FIXED, WIDTHS, learn_numbers, write_numbers

from pretraining.cli import parse
from pretraining.data.text.documents import Documents
from pretraining.data.text.sources import FEATURES, as_documents
from pretraining.objectives import make_objective as objective_of
from pretraining.objectives.base import Objective
from pretraining.settings import Settings


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all of pytest-xdist's workers have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def corpus(shared: Path) -> Path:
    """A folder of .txt files, one document each."""
    folder = shared / "corpus"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            for name, text in sorted(topics.items()):
                (folder / f"{name.replace('/', '_')}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_documents() -> Callable[[list[str]], Documents]:
    """Documents in memory, of source 0."""

    def make(texts: list[str]) -> Documents:
        rows = as_documents(((str(number), text) for number, text in enumerate(texts)), "the test")
        return Documents.of(Dataset(pa.Table.from_pylist(list(rows), FEATURES.arrow_schema)), 0)

    return make


@pytest.fixture(scope="session")
def cache(shared: Path) -> Path:
    """Of prepared data and trained tokenizers."""
    return shared / "cache"


@pytest.fixture(scope="session")
def arguments(corpus: Path, cache: Path) -> list[str]:
    """Command-line arguments of a tiny run; a test adds its own, the last one counts."""
    return [
        f"--cache={cache}",
        "--data.source=files",
        f'--data.files=["{corpus}/*.txt"]',
        "--data.validation_fraction=0.1",
        "--tokenizer.vocab_size=1500",
        *WIDTHS,
        "--model.num_hidden_layers=2",
        "--model.max_position_embeddings=64",
        "--objective.sequence_length=64",
        "--train.rows_per_step=32",
        "--train.micro_batch=32",
        *FIXED,
        "--optim.learning_rate=1e-3",
        "--optim.warmup=2",
        "--evaluation.examples=64",
    ]


@pytest.fixture(scope="session")
def digits(cache: Path) -> list[str]:
    """Command-line arguments of a run on tiny images, with no text to prepare: it takes a second."""
    return [
        f"--cache={cache}",
        "--model.family=vit",
        "--data.source=digits",
        "--model.image_size=8",
        "--model.patch_size=4",
        "--model.num_channels=1",
        *WIDTHS,
        "--model.num_hidden_layers=2",
        "--train.rows_per_step=32",
        "--train.micro_batch=32",
        *FIXED,
        "--train.threads=1",
        "--optim.warmup=0",
        "--evaluation.examples=32",
        "--checkpoint.every=1",
    ]


@pytest.fixture(scope="session")
def seq2seq_arguments(shared: Path, cache: Path, corpus: Path) -> Callable[[str], list[str]]:
    """Command-line arguments of a tiny run of one of the objectives, or of translation with separate vocabularies."""
    path = shared / "numbers.tsv"
    with FileLock(f"{path}.lock"):
        pairs = write_numbers(path)

    def make(kind: str) -> list[str]:
        text = [f'--data.files=["{corpus}/*.txt"]', "--data.validation_fraction=0.1"]
        data = {
            "translation": [pairs, "--tokenizer.vocab_size=320"],
            "separate": [pairs, "--tokenizer.vocab_size=266", "--tokenizer.separate=true"],
            "denoising": [*text, "--tokenizer.vocab_size=1500"],
        }
        return [
            f"--cache={cache}",
            "--model.family=seq2seq",
            f"--objective.name={'denoising' if kind == 'denoising' else 'translation'}",
            "--data.source=files",
            *data[kind],
            *WIDTHS,
            "--model.encoder_layers=1",
            "--model.decoder_layers=1",
            "--model.max_position_embeddings=64",
            "--objective.sequence_length=32",
            "--objective.row_length=64",
            "--train.rows_per_step=8",
            "--train.micro_batch=8",
            *FIXED,
            "--train.threads=1",
            "--optim.learning_rate=1e-3",
            "--optim.warmup=2",
            "--evaluation.examples=40",
        ]

    return make


@pytest.fixture(scope="session")
def translator(shared: Path, seq2seq_arguments: Callable[[str], list[str]]) -> Path:
    """A run that has learnt to read numbers, trained by the first worker that asks for it."""
    folder = shared / "numbers"
    with FileLock(f"{folder}.lock"):
        if not (folder / "model").exists():
            learn_numbers(seq2seq_arguments("translation"), shared)
    return folder


@pytest.fixture(scope="session")
def make_objective(arguments: list[str]):
    """A prepared objective with further settings."""

    def make(*more: str) -> Objective:
        settings: Settings = parse([*arguments, "--train.steps=1", *more])
        objective = objective_of(settings)
        objective.examples.prepare(is_builder=True)
        return objective

    return make
