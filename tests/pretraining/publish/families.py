"""Published runs for the tests: a run of seconds of each family, and a native form compared in this process."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import run_here

from pretraining.publish import prove_native
from pretraining.publish.native_cases import write_cases
from pretraining.publish.source import Source, find_source

FAMILIES = ["bert", "seq2seq", "vit"]

Trained = Callable[[str], Source]
"""Gives the run of a family."""


def train_family(family: str, request: pytest.FixtureRequest, runs: Path) -> Source:
    """A run of two steps; of seq2seq the one that has learnt to read numbers."""
    if family == "seq2seq":
        return find_source(request.getfixturevalue("translator"))
    if family == "vit":
        arguments = [*request.getfixturevalue("digits"), "--model.num_channels=3"]
    else:
        arguments = request.getfixturevalue("arguments")
    return find_source(run_here(arguments, runs, family, "--train.steps=2"))


def compare(source: Source, native: Path, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What `native.prove` returns, without the seconds that another process needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # which `main` replaces
        folder.mkdir(exist_ok=True)
        write_cases(source, folder, dtype)
        return prove_native.main(str(native), folder)


def failed(found: dict[str, Any]) -> set[str]:
    """The names of the checks that fail; that nothing of ours is imported cannot hold in this process."""
    return {check["name"] for check in found["checks"] if not check["passed"]} - {"nothing of ours is imported"}
