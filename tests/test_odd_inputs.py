"""The corpus of odd inputs: each is read right, or refused in one sentence that names the file; never a traceback."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from pretraining.errors import UserError
from tests.odd.case import Case

FAMILIES = [
    name for name in ("text", "pairs", "images") if Path(__file__).parent.joinpath("odd", f"{name}.py").exists()
]
MODULES = {name: importlib.import_module(f"tests.odd.{name}") for name in FAMILIES}


@pytest.mark.parametrize(
    "read, case",
    [
        pytest.param(module.read, case, id=f"{name}: {case.name}")
        for name, module in MODULES.items()
        for case in module.CASES
    ],
)
def test_an_odd_input(
    read: Callable[[dict[str, Any]], list[Any]],
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    settings = case.write(folder)
    if case.error is None:
        assert read(settings) == case.right
        out = capsys.readouterr().out
        assert re.search(case.told, out) if case.told else True, out
        return
    with pytest.raises(UserError) as error:
        read(settings)
    message = str(error.value)
    assert re.search(case.error, message), message
    assert message.isprintable(), message  # one line, which every terminal and file takes


def test_the_corpus_has_no_case_twice():
    for module in MODULES.values():
        names = [case.name for case in module.CASES]
        assert len(set(names)) == len(names)
