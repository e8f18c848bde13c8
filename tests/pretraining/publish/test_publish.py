"""The order of publishing: what fails ends it before anything is pushed, and the model's own folder stays as it is."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretraining.files import hashes
from pretraining.publish import verify
from pretraining.publish.probe.check import Check
from pretraining.publish.report import Opened, Report
from publish import main

PARTS = ("push.check_repo", "native.write_proven_native", "explore.write_page", "card.write_card", "push.push")
PASSED = Check("opens", "passed", "1 Auto class")
FAILED = Check("logits", "failed", "logits differ")


@pytest.fixture
def run(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """A run with a model, in which somebody has left a README.md."""
    tiny("KeelBertForPreTraining").save_pretrained(tmp_path / "run/model")
    (tmp_path / "run/config.yaml").write_text("name: run\n")
    (tmp_path / "run/model/README.md").write_text("old")
    return tmp_path / "run"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the parts of publishing, which write down that they were asked; `checks` are what is found."""
    state: dict[str, Any] = {"order": [], "checks": [PASSED], "examples": [Check("example 1", "passed", "")]}

    def stand_in(name: str) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            state["order"].append(name)
            state[name] = (given, named)
            if name == "native.write_proven_native":
                given[1].mkdir()
                (given[1] / "config.json").write_text("{}")
            if name == "card.write_card":
                (given[1] / "README.md").write_text("new")
                return given[1] / "README.md"
            if name == "explore.write_page":
                given[2].write_text("<html>")
            return SimpleNamespace(url="https://hub/me/run", commit="0123abc")

        return step

    for module in {part.partition(".")[0] for part in PARTS}:
        parts = {part.partition(".")[2]: stand_in(part) for part in PARTS if part.startswith(f"{module}.")}
        monkeypatch.setitem(sys.modules, f"pretraining.publish.{module}", SimpleNamespace(**parts))  # type: ignore[arg-type]

    def found(source: Any, folder: Path, versions: list[str], out: Path, cache: Path) -> Report:
        state["order"].append("verify")
        report = Report(source.name, [Opened({"transformers": "5", "torch": "2", "python": "3"}, state["checks"])])
        verify.write_report(report, out)
        return report

    monkeypatch.setattr(verify, "verify", found)
    monkeypatch.setattr(verify, "run_examples", lambda *_: state["order"].append("examples") or state["examples"])
    return state


def test_all_of_it_in_order(run: Path, steps: dict[str, Any], capsys: pytest.CaptureFixture):
    before = hashes(run / "model")
    main([str(run), "--native", "--explore", "a text", "--repo=me/run", "--private", "--branch=b", "--tag=v1"])
    assert steps["order"] == [
        *("push.check_repo", "native.write_proven_native", "verify", "explore.write_page"),
        *("card.write_card", "examples", "push.push"),
    ]
    repo = run / "publish/repo"
    assert steps["push.push"] == (
        (repo, "me/run"),
        {"private": True, "branch": "b", "tag": "v1", "message": "run, verified"},
    )
    pushed = {str(path.relative_to(repo)) for path in repo.rglob("*") if path.is_file()}
    assert pushed == {*before, "native/config.json", "verify.json", "explore.html"}
    assert (repo / "README.md").read_text() == "new" and hashes(run / "model") == before
    assert (repo / "model.safetensors").samefile(run / "model/model.safetensors")
    assert "https://hub/me/run, commit 0123abc" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "order"), [
    ([], ["verify"]),
    (["--native"], ["native.write_proven_native"]),
    (["--explore"], ["explore.write_page"]),
    (["--native", "--verify"], ["native.write_proven_native", "verify"]),
    (["--card"], ["verify", "card.write_card", "examples"]),
])  # fmt: skip
def test_only_what_is_asked_for(asked: list[str], order: list[str], run: Path, steps: dict[str, Any]):
    main([str(run), *asked])
    assert steps["order"] == order


def test_what_an_earlier_command_made_is_gone(run: Path, steps: dict[str, Any]):
    main([str(run), "--native", "--explore", "--card"])
    assert (run / "publish/repo/native").exists()
    main([str(run), "--card"])
    assert {path.name for path in (run / "publish").iterdir()} == {"repo", "verify.md", "verify.json"}
    assert not (run / "publish/repo/native").exists() and not (run / "publish/repo/explore.html").exists()


@pytest.mark.parametrize("fault", ["checks", "examples"])
def test_nothing_that_fails_is_pushed(fault: str, run: Path, steps: dict[str, Any], capsys: pytest.CaptureFixture):
    steps[fault] = [FAILED]
    with pytest.raises(SystemExit) as end:
        main([str(run), "--repo=me/run"])
    said = capsys.readouterr()
    assert end.value.code == 1 and "push.push" not in steps["order"] and "logits" in said.err
    assert fault == "examples" or ("logits differ" in said.out and not (run / "publish/repo").exists())
