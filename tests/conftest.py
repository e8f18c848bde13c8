"""Options and fixtures of the whole suite."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once: no test asks the network

import datasets
import docstring_parser
import pytest
import torch
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure
from torch import nn
from transformers import PreTrainedModel

from pretraining import autotune

# Every start reads the docstrings of the same settings classes, which is half of the time that it takes to parse.
docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)
SAVE_FIGURE = Figure.savefig

MARKS = [
    *("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "all_flash_attn_test", "slow"),
    *("torch_compile_test", "torch_export_test", "onnx_export_test", "executorch_export_test", "generate"),
]

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TINY = {
    "keel-bert": {"vocab_size": 40, "num_hidden_layers": 2, "max_position_embeddings": 10},
    "keel-seq2seq": {
        "vocab_size": 40,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "max_position_embeddings": 10,
        "pad_token_id": 39,
        "decoder_start_token_id": 39,
    },
    "keel-vit": {"num_hidden_layers": 2, "image_size": 8, "patch_size": 2},
}


def pytest_addoption(parser):
    parser.addoption(
        "--transformers-source",
        metavar="DIR",
        help="the source (distribution or clone) of the installed transformers: its tests run on our classes",
    )


def pytest_configure(config):
    """Make DIR/tests importable, as `transformers_tests`, before any test is collected."""
    torch.set_num_threads(1)  # models this small gain nothing by threads, and lose much where the cores are shared
    source = config.getoption("--transformers-source")
    if source is not None:
        package = ModuleType("transformers_tests")
        package.__path__ = [str(Path(source) / "tests")]
        sys.modules[package.__name__] = package
        for mark in MARKS:
            config.addinivalue_line("markers", f"{mark}: transformers' own")


# The files that take longest, by the runs that they make: begun first, or the last of them would run alone.
LONGEST = ["test_two_processes", "test_train", "test_seq2seq", "test_evaluation", "test_resume", "test_convert"]
LONGEST += ["test_image_objectives", "test_checkpoint", "test_init_from", "test_dates"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def fresh_state() -> None:
    """What an earlier test's run has told Accelerate, its precision for one, holds for no other run."""
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True, scope="session")
def quick() -> Iterator[None]:
    """Half of a tiny run's time is saved in this process and its forks.

    They render no pictures, do not wait for the disk, and measure the machine's peak once.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "measure_peak", functools.cache(autotune.measure_peak))
        patch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """But in tests that look at them."""
    monkeypatch.setattr(Figure, "savefig", SAVE_FIGURE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a cache of its own for what `datasets` stores."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="session")
def tiny() -> Callable[..., PreTrainedModel]:
    """`tiny("KeelBertModel", **fields)`: a small model of that class in float64, no dropout, every weight drawn."""
    import modeling

    def build(name: str, **fields) -> PreTrainedModel:
        model_class = getattr(modeling, name)
        family = model_class.config_class
        model = model_class(family(**{**SIZES, **TINY[family.model_type], **fields})).double()
        torch.manual_seed(0)
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3)
        return model.eval()

    return build
