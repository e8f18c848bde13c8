"""Fixtures of the tests of fine-tuning."""

from pathlib import Path

import pytest

from pretrain import main
from tests.finetuning.data import KINDS, pretrain_arguments, write_data
from tests.pretraining.runs import NUMBERS


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of every kind of labelled data, and a text of the same words."""
    folder = tmp_path_factory.mktemp("labelled")
    for kind in KINDS:
        write_data(kind, folder / f"{kind}.jsonl")
    lines = (" ".join([*NUMBERS[n:], *NUMBERS[:n], "after"]) for n in range(10))
    (folder / "text.txt").write_text("".join(f"{line}\n" * (n + 1) for n, line in enumerate(lines)))
    return folder


@pytest.fixture(scope="session")
def checkpoint(labelled: Path) -> Path:
    """The model of a tiny pretraining."""
    main(pretrain_arguments(labelled))
    return labelled / "pretrained" / "model"
