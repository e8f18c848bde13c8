"""`hub.every`: a run pushes its newest model in the background, and is none the worse whatever becomes of that."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from hub import QUOTA, Hub
from hub_repository import Fault
from mistakes import one_sentence, refused
from runs import fork_ranks, run_here, wait, weights
from safetensors.torch import load

from finetuning.cli import parse_finetune
from finetuning.search.__main__ import main as search
from finetuning.series import Member, train_members
from pretrain import main
from pretraining.cli import parse
from pretraining.objectives import make_objective
from pretraining.publish import while_training
from pretraining.publish.while_training import Pushes
from pretraining.settings import HubSettings

PUSHED = ["--hub.repo=me/digits", "--hub.every=1", "--train.steps=3"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def messages(hub: Hub) -> list[str]:
    """Of each commit what its README.md calls itself, in their order."""
    files = [hub.files("me/digits", commit) for commit in hub.repositories["me/digits"].commits]
    return [one["README.md"].decode().splitlines()[3] for one in files if "README.md" in one]


def test_a_run_pushes_while_it_trains_and_at_its_end(hub: Hub, digits: list[str], tmp_path: Path, capsys):
    plain = run_here(digits, tmp_path, "plain", "--train.steps=3")
    capsys.readouterr()
    run = run_here(digits, tmp_path, "run", *PUSHED, "--hub.private=true", "--hub.branch=trial", "--evaluation.every=1")
    said = capsys.readouterr().out
    assert same(weights(run), weights(plain)), "a push draws nothing and changes nothing"
    # The first push takes longer than the steps that are left.
    assert "step 2: not pushed, since the push of step 1 is still on its way" in said
    assert re.findall(r"step (\d): pushed to me/digits, commit [0-9a-f]{40}\n", said) == ["1", "3"]
    assert messages(hub) == ["# run, step 1", "# run, step 3"]
    first, last = (hub.files("me/digits", commit) for commit in list(hub.repositories["me/digits"].commits)[1:])
    evaluated = {line["step"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    assert f"| eval_loss | {evaluated[1]['eval_loss']:.4g} |" in first["README.md"].decode()
    assert first.keys() == last.keys() and not same(load(first["model.safetensors"]), weights(run))
    model = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    assert {name: content for name, content in last.items() if name not in ("README.md", ".gitattributes")} == model
    assert hub.repositories["me/digits"].private and list(hub.files("me/digits")) == [".gitattributes"]
    assert not (run / "pushed").exists()
    # The same command again, and one that no longer pushes: how a run pushes is not of its contract.
    run_here(digits, tmp_path, "run", *PUSHED, "--hub.private=true", "--hub.branch=trial", "--evaluation.every=1")
    run_here(digits, tmp_path, "run", "--train.steps=4", "--evaluation.every=1")
    assert messages(hub) == ["# run, step 1", "# run, step 3"]


def test_a_push_that_fails_is_told_once_and_at_the_end(hub: Hub, digits: list[str], tmp_path: Path, capfd):
    plain = run_here(digits, tmp_path, "plain", "--train.steps=5")
    hub.faults = [Fault("PUT", 403, QUOTA, times=1000)]
    capfd.readouterr()
    run = run_here(digits, tmp_path, "run", *PUSHED, "--train.steps=5")
    output, errors = capfd.readouterr()
    told = [line.partition(" (")[0] for line in output.splitlines() if "there is no room" in line]
    assert told == [f"step {n}: not pushed, and the run goes on: there is no room for me/digits" for n in (1, 5)]
    assert "Traceback" not in errors and "hf_write" not in output + errors
    assert same(weights(run), weights(plain)) and not (run / "pushed").exists()
    for file in (path for path in run.rglob("*") if path.is_file()):
        assert b"hf_write" not in file.read_bytes()


def test_a_disk_that_is_full_fails_the_push_alone(hub: Hub, tmp_path: Path):
    said: list[str] = []
    pushes = Pushes(HubSettings("me/digits"), tmp_path / "run", said.append, True)

    def write(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    pushes.begin(write, 7, {})
    pushes.begin(write, 8, {})
    assert said == ["step 7: not pushed, and the run goes on: [Errno 28] No space left on device."]
    assert not hub.requests


def test_a_run_that_stops_ends_its_push(hub: Hub, tmp_path: Path):
    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(2**23))

    hub.seconds_per_chunk = 0.05
    pushes = Pushes(HubSettings("me/digits"), tmp_path / "run", lambda line: None, True)
    with pytest.raises(SystemExit), pushes:
        pushes.begin(write, 1, {})
        while not hub.uploaded():
            assert pushes.sender and pushes.sender.is_alive()
        raise SystemExit(143)
    pushes.wait()
    assert pushes.process and pushes.process.returncode == -9
    assert list(hub.files("me/digits")) == [".gitattributes"]


def test_two_processes_push_once(hub: Hub, digits: list[str], tmp_path: Path):
    arguments = [*digits, *PUSHED, "--train.steps=1", "--train.micro_batch=16", f"--runs={tmp_path}", "--name=two"]
    variables = {name: value for name, value in os.environ.items() if name.startswith("HF_")}

    def push_from_two() -> None:
        os.environ.pop("HF_HUB_OFFLINE")
        os.environ.update(variables)
        main(arguments)

    codes = wait(*fork_ranks(push_from_two, tmp_path / "output"))
    said = "".join((tmp_path / f"output-{rank}").read_text() for rank in range(2))
    assert codes == [0, 0], said
    assert said.count("pushed to me/digits") == 1 and hub.requests.count("POST /api/repos/create") == 1
    assert messages(hub) == ["# two, step 1"]


MISTAKES = {
    "--hub.every=5": ["hub.every is 5", "set hub.repo"],
    "--hub.private=true": ["hub.private is True", "set hub.repo"],
    "--hub.repo=digits": ["hub.repo: digits", "whose it is"],
    "--hub.repo=me/di..gits": ["hub.repo", "me/di..gits"],
    "--hub.repo=you/digits": ["hub.repo: you/digits", "begin it with me"],
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_what_no_push_could_succeed_with_is_told_before_training(
    argument: str, hub: Hub, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    sentence = refused([*digits, f"--runs={tmp_path}", "--train.steps=1", argument], capsys)
    assert all(part in sentence for part in MISTAKES[argument]), sentence
    assert not (tmp_path / "run").exists()


def test_a_hub_that_is_down_does_not_keep_a_run_from_training(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    hub.faults = [Fault("whoami", 503, "Maintenance", times=1000)]
    Pushes(HubSettings("me/digits"), Path("run"), said.append, True).check()
    (line,) = said
    assert "has trouble, HTTP 503 (Maintenance)" in line and "Training goes on" in line
    monkeypatch.setattr(while_training, "check_repo", lambda *_: pytest.fail("only the main process asks"))
    Pushes(HubSettings("me/digits"), Path("run"), said.append, False).check()


def test_several_runs_do_not_push_to_one_repository(digits: list[str], capsys: pytest.CaptureFixture):
    asked = ["--model=scratch", "--tokenizer.path=nowhere", "--data.files=a.csv", "--hub.repo=me/model"]
    with pytest.raises(SystemExit):
        parse_finetune([*asked, "--seeds=2"])
    with pytest.raises(SystemExit):
        search([*asked, "--space=space.yaml", "--trials=2"])
    assert capsys.readouterr().err.count("overwrite one another there") == 2
    settings = parse([*digits, "--train.steps=1", "--hub.repo=me/model"])
    with one_sentence("hub.repo is me/model", "2 runs"):
        train_members([Member(name, None, settings, make_objective) for name in ("one", "other")])
