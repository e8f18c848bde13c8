"""What a run records of how it was made: every start, the clone's commit, and energy where it is asked for."""

import csv
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mistakes import refused
from runs import ROOT, run_here

from pretraining import environment

HERE: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"))


def git(*arguments: str | Path) -> str:
    return subprocess.run(["git", *map(str, arguments)], capture_output=True, text=True, check=True).stdout.strip()


def test_every_start_is_recorded_until_a_run_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python3", "-u", "pretrain.py", "--name", "two words"])
    for step in (0, 5):
        environment.record_start(tmp_path, step, HERE, {"fingerprint": f"at {step}"})
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["fingerprint"] == "at 5"
    assert [start["step"] for start in found["starts"]] == [0, 5]
    start = found["starts"][0]
    assert start["command"] == "python -u pretrain.py --name 'two words'"
    assert start["processes"] == 2 and start["device"].startswith("cpu: ") and len(start["device"]) > 5
    assert start["versions"]["torch"] == torch.__version__
    environment.record_start(tmp_path, 0, HERE, {})
    assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 1


def test_the_commit_is_the_clones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clone = tmp_path / "clone"
    clone.mkdir()
    git("init", clone)
    (clone / "file").write_text("1")
    git("-C", clone, "add", "file")
    git("-C", clone, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "one")
    monkeypatch.setattr(environment, "ROOT", clone)
    assert environment.commit() == {"commit": git("-C", clone, "rev-parse", "HEAD"), "changed": False}
    (clone / "file").write_text("2")
    assert environment.commit()["changed"]
    (clone / "site-packages").mkdir()  # where an installed package lies, in somebody's repository
    monkeypatch.setattr(environment, "ROOT", clone / "site-packages")
    assert environment.commit() == {}
    monkeypatch.setattr(environment, "ROOT", ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert environment.commit() == {}


def test_a_run_tells_its_data_and_what_it_took(digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = run_here(digits, tmp_path, "run", "--train.steps=2")
    said = capsys.readouterr().out
    found = json.loads((folder / "environment.json").read_text())
    assert found["data"] and all(line in said for line in found["data"])
    state = json.loads((folder / "checkpoints/step-2/state.json").read_text())
    assert found["fingerprint"] == state["contract"]["the data's fingerprint"]
    trained = json.loads((folder / "environment.json").read_text())["trained"]
    assert trained == {"steps": 2, "images": state["tokens"], "seconds": state["seconds"]}


@pytest.mark.skipif(find_spec("codecarbon") is None, reason="needs codecarbon")
def test_energy_is_measured_where_it_is_asked_for(digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = run_here(digits, tmp_path, "run", "--train.steps=2", "--log.energy=KOR")
    (row,) = csv.DictReader((folder / "emissions.csv").open())
    assert float(row["energy_consumed"]) > 0 and row["country_name"] == "South Korea"
    assert "as in KOR" in refused([*digits, "--train.steps=1", "--log.energy=Korea"], capsys)


@pytest.mark.skipif(find_spec("codecarbon") is not None, reason="codecarbon is there")
def test_energy_without_codecarbon_is_one_sentence(digits: list[str], capsys: pytest.CaptureFixture):
    assert ".[energy]" in refused([*digits, "--train.steps=1", "--log.energy=KOR"], capsys)
