"""What a second start finds: whose folder it is, from where it goes on, and which settings it may change."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mistakes import one_sentence, refused
from runs import ROOT, ended, fork, is_running, lines, newest, run_here, torchrun, wait, weights
from safetensors.torch import load_file

from pretraining import loop
from pretraining import run as stages
from pretraining.checkpoint import choose
from pretraining.cli import parse
from pretraining.optim import learning_rate
from pretraining.signals import Signals


@pytest.fixture(scope="module")
def finished(digits: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    return run_here(digits, tmp_path_factory.mktemp("runs"), "first", "--train.steps=2")


def state_of(folder: Path) -> dict:
    return json.loads((newest(folder) / "state.json").read_text())


# ---- the folder ----


def test_a_second_launch_hears_of_the_first_before_any_data_is_prepared(
    digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "start", None)
    with FileLock(tmp_path / "one/checkpoints/.lock"):
        said = refused([*digits, "--train.steps=1", f"--runs={tmp_path}", "--name=one"], capsys)
    assert "another process is training in" in said
    assert not (tmp_path / "one/metrics.jsonl").exists()


def test_a_model_without_checkpoints_is_not_overwritten(
    finished: Path, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(finished / "model", tmp_path / "one/model")
    run = [*digits, "--train.steps=1", f"--runs={tmp_path}", "--name=one"]
    for resume in ("auto", "none", str(newest(finished))):
        said = refused([*run, f"--resume={resume}"], capsys)
        assert "already holds a run: it has a model/, and no checkpoint to go on from" in said
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["model"]
    for path in (finished / "model").iterdir():
        assert (tmp_path / "one/model" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", [".", "..", "..."])
def test_a_name_of_dots_is_no_folder_of_a_run(name: str, digits: list[str], capsys: pytest.CaptureFixture):
    assert "not of dots alone" in refused([*digits, "--train.steps=1", f"--name={name}"], capsys)


def test_a_name_is_short_enough_for_a_folder(digits: list[str], capsys: pytest.CaptureFixture):
    assert "at most 200 bytes" in refused([*digits, "--train.steps=1", f"--name={'n' * 201}"], capsys)


@pytest.mark.parametrize(("runs", "name"), [("file", "one"), (".", "file"), ("file/deeper", "one"), ("n" * 300, "one")])
def test_a_folder_that_cannot_be_made(
    runs: str, name: str, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "file").write_text("not a folder")
    said = refused([*digits, "--train.steps=1", f"--runs={tmp_path / runs}", f"--name={name}"], capsys)
    assert "cannot be made" in said and "another --name or --runs" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- the checkpoint ----


def test_only_step_n_is_a_checkpoint(finished: Path, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(finished, tmp_path / "first")
    checkpoints = tmp_path / "first/checkpoints"
    for name in ("step-4.damaged", "step-", "step-9-old", "my-step-7"):
        shutil.copytree(checkpoints / "step-2", checkpoints / name)
    run_here(digits, tmp_path, "first", "--train.steps=3", "--checkpoint.keep=1")
    assert f"resumed from {checkpoints}/step-2\n" in capsys.readouterr().out
    names = {path.name for path in checkpoints.glob("*step*")}
    assert names - {"step-2"} == {"step-3", "step-4.damaged", "step-", "step-9-old", "my-step-7"}, (
        "what is not ours was deleted"
    )


def test_the_same_command_again_goes_on_from_its_own_newest_checkpoint(
    finished: Path, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """As a scheduler gives it, after an end in the middle; the checkpoint that it names may be gone by then."""
    shutil.copytree(finished, tmp_path / "first")
    named = tmp_path / "first/checkpoints/step-2"
    run = [f"--resume={named}", "--train.steps=5", "--evaluation.every=2"]
    whole = run_here(digits, tmp_path, "whole", *run)
    end_at(3, signal.SIGINT, monkeypatch)
    with pytest.raises(SystemExit) as end:
        run_here(digits, tmp_path, "again", *run)
    assert end.value.code == 130
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "first")
    capsys.readouterr()
    again = run_here(digits, tmp_path, "again", *run)
    assert f"resumed from {again}/checkpoints/step-4, which has come of {named}" in capsys.readouterr().out
    assert lines(again) == lines(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(again).values(), weights(whole).values(), strict=True))
    with one_sentence("step-4", "is no complete checkpoint"):  # what it did not begin from is another matter
        choose(again, str(tmp_path / "first/checkpoints/step-4"))
    with one_sentence("is not the newest checkpoint"):
        choose(again, str(again / "checkpoints/step-4"))


# ---- what a resumed run may change ----


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_changed_options_are_those_that_steps_are_made_with(optimizer: str, digits: list[str], tmp_path: Path):
    """To no decay and back too, which parts the parameters in the same groups."""
    run = [*digits, f"--optim.optimizer={optimizer}"]
    run_here(run, tmp_path, "one", "--train.steps=1", "--optim.weight_decay=0")
    changed = ["--optim.beta1=0.5", "--optim.beta2=0.6", "--optim.epsilon=1e-3", "--optim.momentum=0.7"]
    for steps, decay in ((2, 0.25), (3, 0.0)):
        run_here(run, tmp_path, "one", f"--train.steps={steps}", f"--optim.weight_decay={decay}", *changed)
        saved = torch.load(newest(tmp_path / "one") / "optimizer.bin", weights_only=True)
        groups = [group for part in saved.get("parts", [saved]) for group in part["param_groups"]]
        assert {group["weight_decay"] for group in groups} == {decay, 0.0}
        adamw = [group for group in groups if "betas" in group]
        assert {(*group["betas"], group["eps"]) for group in adamw} == {(0.5, 0.6, 1e-3)}
        assert {group["momentum"] for group in groups if "momentum" in group} <= {0.7}
        assert len(adamw) < len(groups) or optimizer == "adamw"


def test_a_larger_budget_tells_what_it_makes_of_the_rate(
    digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """From the last step, which the schedule gave a rate of 0; and once alone."""
    more = ["--optim.warmup=0.1", "--evaluation.every=0"]
    folder = run_here(digits, tmp_path, "one", "--train.steps=10", *more)
    capsys.readouterr()
    run_here(digits, tmp_path, "one", "--train.steps=20", *more)
    told = r"step 10: the learning rate would have been (\S+), and is (\S+)\n"
    (rates,) = re.findall(told, capsys.readouterr().out)
    settings = parse([*digits, "--train.steps=20", *more]).optim
    expected = [learning_rate(settings, 32, 11, 10 / steps) for steps in (10, 20)]
    assert [float(rate) for rate in rates] == pytest.approx(expected, rel=0.01, abs=1e-9)
    shutil.rmtree(newest(folder))
    run_here(digits, tmp_path, "one", "--train.steps=20", *more)
    assert "the learning rate would" not in capsys.readouterr().out


PHASES = "--train.phases=[{until: 0.5, objective.sequence_length: 32}]"


def test_a_phase_never_goes_back(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    """A larger budget puts the same step into the first phase's share; what the second one has learnt stays."""
    more = [PHASES, "--checkpoint.every=1", "--optim.learning_rate=0", "--optim.schedule=constant"]
    folder = run_here(arguments, tmp_path, "one", "--train.steps=2", *more)
    before = load_file(newest(folder) / "model.safetensors")
    assert state_of(folder)["phase"] == 1
    capsys.readouterr()
    run_here(arguments, tmp_path, "one", "--train.steps=8", *more)
    assert ": phase " not in capsys.readouterr().out
    state = state_of(folder)
    assert (state["step"], state["phase"], state["epoch"], state["step_in_epoch"]) == (8, 1, 1, 7)
    after = load_file(newest(folder) / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()), "at a rate of 0 nothing moves"


def test_a_phase_copies_no_position_of_the_checkpoint_that_a_run_started_from(arguments: list[str], tmp_path: Path):
    """All 64 rows are the checkpoint's, trained; of a table made longer, the new rows are copies of all these."""
    more = ["--optim.learning_rate=0", "--optim.schedule=constant", "--train.steps=2"]
    first = run_here(arguments, tmp_path, "first", *more) / "model"
    fixed = [argument for argument in arguments if not argument.startswith(("--model", "--tokenizer"))]
    run = [*fixed, *more, PHASES, f"--init_from={first}"]
    old = load_file(first / "model.safetensors")["bert.embeddings.positions.weight"]
    same = weights(run_here(run, tmp_path, "same"))["bert.embeddings.positions.weight"]
    assert torch.equal(same, old)
    longer = run_here(run, tmp_path, "longer", "--model.max_position_embeddings=80", "--objective.sequence_length=80")
    assert torch.equal(weights(longer)["bert.embeddings.positions.weight"], old[torch.arange(80) % 64])


def test_another_checkpoint_to_start_from_or_another_library_does_not_resume(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    run = [*arguments, f"--runs={tmp_path}", "--name=one", "--train.threads=1"]
    first = run_here(arguments, tmp_path, "one", "--train.steps=1") / "model"
    fixed = [argument for argument in run if not argument.startswith(("--model", "--tokenizer"))]
    assert "init_from=None, now it is" in refused([*fixed, f"--init_from={first}", "--train.steps=2"], capsys)
    monkeypatch.setattr(stages, "version", lambda library: f"{library}'s next")
    said = refused([*run, "--train.steps=2"], capsys)
    assert "the version of sentencex=" in said and "now it is sentencex's next" in said


# ---- config.yaml ----


@pytest.mark.parametrize("cut", ["in a word", "at a line", "to nothing", "to no YAML"])
def test_a_truncated_config_is_told_and_mended(
    cut: str, finished: Path, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(finished, tmp_path / "first")
    config = tmp_path / "first/config.yaml"
    whole = config.read_text()
    half = whole[: whole.index("\n", len(whole) // 2) + 1]
    config.write_text({"in a word": half[:-4], "at a line": half, "to nothing": "", "to no YAML": "train: {st"}[cut])
    run_here(digits, tmp_path, "first", "--train.steps=3")
    said = capsys.readouterr().out
    assert f"{config} " in said and "written anew" in said
    assert "train:\n  steps: 3\n" in config.read_text()


# ---- signals ----


def end_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes in the midst of a step."""
    compute = loop.train_step

    def interrupted(*arguments, **keywords):
        if arguments[6] == step:
            signal.raise_signal(number)
        return compute(*arguments, **keywords)

    monkeypatch.setattr(loop, "train_step", interrupted)


SIGNALLED = ["--train.steps=150", "--checkpoint.every=1000", "--evaluation.every=1000", "--log.every=7"]
SIGNALLED += ["--model.hidden_dropout_prob=0.1", "--optim.ema=0.9"]


@pytest.fixture(scope="module")
def unbroken(digits: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_here(digits, tmp_path_factory.mktemp("unbroken"), "run", *SIGNALLED)


def test_a_signal_saves_at_the_steps_end(
    unbroken: Path, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """No checkpoint was due; resumed, weights, optimizer, average and curves equal those of the unbroken run."""
    run = [*digits, *SIGNALLED]
    process = fork(lambda: run_here(run, tmp_path, "run"), tmp_path / "output")
    while is_running(process) and not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process, signal.SIGTERM)
    codes, said = wait(process), (tmp_path / "output").read_text()
    assert codes == [143], said
    step = state_of(tmp_path / "run")["step"]
    assert 0 < step < 150 and f"step {step}: told to end, and saved" in said and "Traceback" not in said
    assert (tmp_path / "run/curves.png").exists() == (step >= 7)
    run_here(run, tmp_path, "run")
    assert f"resumed from {tmp_path}/run/checkpoints/step-{step}" in capsys.readouterr().out
    assert lines(tmp_path / "run") == lines(unbroken)
    for name in ("model.safetensors", "optimizer.bin", "average.safetensors"):
        assert (newest(tmp_path / "run") / name).read_bytes() == (newest(unbroken) / name).read_bytes(), name


def test_all_processes_end_with_the_same_step(digits: list[str], tmp_path: Path):
    """One of two is signalled: none is left waiting, and the launcher's signals to all are no second wish."""
    run = [*digits, *SIGNALLED, "--train.micro_batch=16", f"--runs={tmp_path}", "--name=run"]
    process = torchrun(ROOT / "pretrain.py", *run)
    while process.poll() is None and not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {rank(int(child)): int(child) for child in children}
    os.kill(ranks[1], signal.SIGTERM)
    done, state = ended(process), state_of(tmp_path / "run")
    assert done.stdout.count(f"step {state['step']}: told to end, and saved") == 1, done.stderr
    assert 0 < state["step"] < 150 and done.returncode != 0 and "exitcode  : 143" in done.stderr


def rank(process: int) -> int:
    found = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{process}/environ").read_bytes())
    return int(found[1]) if found else -1


def test_a_second_signal_ends_at_once():
    """In a process of its own, which would end with 0 if it went on."""
    for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)):
        child = os.fork()
        if not child:
            with Signals():
                signal.raise_signal(first)
                signal.raise_signal(second)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == second


def test_a_process_that_prepares_batches_leaves_signals_to_its_parent():
    with Signals() as signals:
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert not signals.number
