"""A small real corpus (Python's own help topics), and settings for runs of seconds."""

from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset

from pretraining.cli import parse
from pretraining.data.text.documents import Documents
from pretraining.data.text.sources import FEATURES, as_documents
from pretraining.objectives import make_objective as objective_of
from pretraining.objectives.base import Objective
from pretraining.settings import Settings


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a cache of its own for what `datasets` stores."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of .txt files, one document each."""
    folder = tmp_path_factory.mktemp("corpus")
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
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def arguments(corpus: Path, cache: Path) -> list[str]:
    """Command-line arguments of a tiny run; a test adds its own, the last one counts."""
    return [
        f"--cache={cache}",
        "--data.source=files",
        f'--data.files=["{corpus}/*.txt"]',
        "--data.validation_fraction=0.1",
        "--tokenizer.vocab_size=1500",
        "--model.hidden_size=32",
        "--model.num_hidden_layers=2",
        "--model.num_attention_heads=2",
        "--model.intermediate_size=64",
        "--model.max_position_embeddings=64",
        "--objective.sequence_length=64",
        "--train.rows_per_step=32",
        "--train.micro_batch=32",
        "--train.precision=fp32",
        "--train.kernel=sdpa",
        "--train.linear=torch",
        "--optim.learning_rate=1e-3",
        "--optim.warmup=2",
        "--evaluation.examples=64",
        "--log.every=1",
        "--log.trackers=[]",
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
        "--model.hidden_size=32",
        "--model.num_hidden_layers=2",
        "--model.num_attention_heads=2",
        "--model.intermediate_size=64",
        "--train.rows_per_step=32",
        "--train.micro_batch=32",
        "--train.precision=fp32",
        "--train.kernel=sdpa",
        "--train.linear=torch",
        "--train.threads=1",
        "--optim.warmup=0",
        "--evaluation.examples=32",
        "--log.every=1",
        "--log.trackers=[]",
        "--checkpoint.every=1",
    ]


@pytest.fixture(scope="session")
def make_objective(arguments: list[str]):
    """A prepared objective with further settings."""

    def make(*more: str) -> Objective:
        settings: Settings = parse([*arguments, "--train.steps=1", *more])
        objective = objective_of(settings)
        objective.examples.prepare(is_builder=True)
        return objective

    return make
