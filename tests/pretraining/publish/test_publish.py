"""The order of publishing: what fails ends it before anything is pushed, and the model's own folder stays as it is."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from pretraining.files import SUMS, hashes, write_sums
from pretraining.publish import run as publishing
from pretraining.publish import verify
from pretraining.publish.probe.check import Check
from pretraining.publish.report import Opened, Report
from pretraining.publish.snippets import UNPINNED
from publish import main

PARTS = ("check_repo", "check_card", "write_proven_native", "write_page", "write_card", "upload", "read_there", "push")
PASSED = Check("opens", "passed", "1 Auto class")
LICENSE = "--license=apache-2.0"
FAILED = Check("logits", "failed", "logits differ")


@pytest.fixture
def run(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """A run with a model, in which somebody has left a README.md."""
    tiny("KeelBertForPreTraining").save_pretrained(tmp_path / "run/model")
    write_sums(tmp_path / "run/model")
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
            if name == "write_proven_native":
                given[1].mkdir(exist_ok=True)
                (given[1] / "config.json").write_text("{}")
            if name == "write_card":
                (given[1] / "README.md").write_text(f"new, {UNPINNED}")
                return given[1] / "README.md"
            if name == "write_page":
                given[2].write_text("<html>")
            if name == "upload":
                return "beef123"
            if name == "read_there":
                return None
            return SimpleNamespace(url="https://hub/me/run", commit="0123abc")

        return step

    for part in PARTS:
        monkeypatch.setattr(publishing, part, stand_in(part))

    def found(source: Any, folder: Path, versions: list[str], out: Path, cache: Path) -> Report:
        state["order"].append("verify")
        report = Report(source.name, [Opened({"transformers": "5", "torch": "2", "python": "3"}, state["checks"])])
        verify.write_report(report, out)
        return report

    monkeypatch.setattr(publishing, "verify", found)
    monkeypatch.setattr(publishing, "run_examples", lambda *_: state["order"].append("examples") or state["examples"])
    return state


def test_all_of_it_in_order(run: Path, steps: dict[str, Any], capsys: pytest.CaptureFixture):
    before = hashes(run / "model")
    (run / "model/.env").write_text("HF_TOKEN=hf_secret")
    (run / "model/data").symlink_to(run.parent)
    main([str(run), "--native", "--explore", "a text", "--repo=me/run", "--private", "--branch=b", "--tag=v1", LICENSE])
    assert steps["order"] == [
        *("check_repo", "check_card", "verify", "write_proven_native", "write_page"),
        *("write_card", "check_card", "examples", "upload", "read_there", "push"),
    ]
    repo = run / "publish/repo"
    how = {"private": True, "branch": "b", "message": "run, verified"}
    assert steps["upload"] == ((repo, "me/run"), {**how, "without": "README.md"})
    assert steps["push"] == ((repo, "me/run"), {**how, "tag": "v1"})
    pushed = {str(path.relative_to(repo)) for path in repo.rglob("*") if path.is_file()}
    assert pushed == {*before, "native/config.json", "verify.json", "explore.html"}
    assert (repo / "README.md").read_text() == 'new, revision="beef123"' and (
        run / "model/README.md"
    ).read_text() == "old"
    assert (repo / "model.safetensors").samefile(run / "model/model.safetensors")
    said = capsys.readouterr().out
    assert "https://hub/me/run, commit 0123abc" in said and "training did not write it: .env, data\n" in said


@pytest.mark.parametrize(("asked", "order"), [
    ([], ["verify"]),
    (["--native"], ["write_proven_native"]),
    (["--explore"], ["write_page"]),
    (["--native", "--verify"], ["verify", "write_proven_native"]),
    (["--card", LICENSE], ["verify", "write_card", "examples"]),
])  # fmt: skip
def test_only_what_is_asked_for(asked: list[str], order: list[str], run: Path, steps: dict[str, Any]):
    main([str(run), *asked])
    assert steps["order"] == order


def test_what_an_earlier_command_made_stays_and_is_not_pushed(run: Path, steps: dict[str, Any]):
    main([str(run), "--native", "--explore", "--card", LICENSE])
    assert (run / "publish/repo/native").exists()
    main([str(run), "--card", LICENSE])
    assert (run / "publish/native").exists() and (run / "publish/explore.html").exists()
    assert not (run / "publish/repo/native").exists() and not (run / "publish/repo/explore.html").exists()


@pytest.mark.parametrize("fault", ["checks", "examples"])
def test_nothing_that_fails_is_pushed(fault: str, run: Path, steps: dict[str, Any], capsys: pytest.CaptureFixture):
    steps[fault] = [FAILED]
    with pytest.raises(SystemExit) as end:
        main([str(run), "--repo=me/run", LICENSE])
    said = capsys.readouterr()
    assert end.value.code == 1 and "push" not in steps["order"] and "logits" in said.err
    assert fault == "examples" or ("logits differ" in said.out and not (run / "publish/repo").exists())


def test_a_card_without_a_license_is_refused_first(run: Path, steps: dict[str, Any], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main([str(run), "--repo=me/run"])
    assert not steps["order"] and "give --license" in capsys.readouterr().err


def test_weights_behind_a_link_are_pushed(run: Path, steps: dict[str, Any]):
    (run / "model/model.safetensors").rename(run / "weights")
    (run / "model/model.safetensors").symlink_to("../weights")
    main([str(run), "--card", LICENSE])
    assert (run / "publish/repo/model.safetensors").samefile(run / "weights")
    assert not (run / "publish/repo/model.safetensors").is_symlink()


def test_a_model_that_is_written_anew_meanwhile_is_not_pushed(
    run: Path, steps: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    verify_it = publishing.verify

    def train(*given: Any) -> Report:
        (run / "model/config.json").write_text("{}")
        write_sums(run / "model")
        return verify_it(*given)

    monkeypatch.setattr(publishing, "verify", train)
    with pytest.raises(SystemExit):
        main([str(run), "--repo=me/run", LICENSE])
    assert "has changed since it was verified" in capsys.readouterr().err and "upload" not in steps["order"]


def test_two_at_once(run: Path, steps: dict[str, Any], capsys: pytest.CaptureFixture):
    (run / "publish").mkdir()
    with FileLock(run / "publish/.lock"), pytest.raises(SystemExit):
        main([str(run)])
    assert not steps["order"] and "another publish.py is writing to" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../config.yaml", "/etc/hostname", "a/../../b"])
def test_sums_that_lead_elsewhere(name: str, run: Path, steps: dict[str, Any], capsys: pytest.CaptureFixture):
    with (run / "model" / SUMS).open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(SystemExit):
        main([str(run), "--native"])
    assert not steps["order"] and "is no file of that folder" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "repo"), [("my run", "me/my-run"), ('it"s\\', "me/it-s"), ("모델", "me/model")])
def test_a_card_without_a_repository_names_one_that_can_be(name: str, repo: str, run: Path, steps: dict[str, Any]):
    main([str(run.rename(run.with_name(name))), "--card", LICENSE])
    assert steps["write_card"][1]["repo"] == repo


def test_what_is_not_in_utf_8_is_refused(run: Path, steps: dict[str, Any], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main([str(run), "--explore", "a\udc80"])
    assert "is not in UTF-8" in capsys.readouterr().err and not steps["order"]


@pytest.mark.parametrize("asked", ["--native", "--explore"])
def test_a_model_that_was_changed_is_not_converted(
    asked: str, run: Path, steps: dict[str, Any], capsys: pytest.CaptureFixture
):
    (run / "model/model.safetensors").write_bytes(b"")
    (run / "model/bert.py").unlink()
    with pytest.raises(SystemExit):
        main([str(run), asked])
    said = capsys.readouterr().err
    assert "is not as training wrote it (bert.py, model.safetensors)" in said and not steps["order"]
