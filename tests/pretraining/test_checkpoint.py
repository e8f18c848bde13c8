"""What lies in a checkpoint: whole, on the disk, without code, as it was written, and read by every program."""

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from mistakes import one_sentence, refused
from runs import lines, newest, run_here, weights
from safetensors.torch import load_file

from pretrain import main
from pretraining import checkpoint, files, loop
from pretraining import run as stages
from pretraining.pictures.charts import draw_curves


@pytest.fixture(scope="module")
def averaged(digits: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with an average of the weights."""
    return run_here(digits, tmp_path_factory.mktemp("runs"), "run", "--train.steps=2", "--optim.ema=0.5")


def strict(text: str) -> object:
    """JSON as other languages read it: they know no NaN and no Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


# ---- whole ----


def test_files_follow_the_umask(averaged: Path):
    """safetensors writes for its owner alone: another user could not open the model."""
    files_of_it = [path for path in averaged.rglob("*.safetensors")]
    assert len(files_of_it) >= 5  # the model's, the inputs and outputs, two checkpoints with their averages
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~files.UMASK for path in files_of_it)


def test_what_is_renamed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every file, then the folders that name them, then the rename, then the folder that names it."""
    (tmp_path / "unfinished/deeper").mkdir(parents=True)
    names = ["unfinished", "unfinished/a", "unfinished/deeper", "unfinished/deeper/b"]
    for name in (names[1], names[3]):
        (tmp_path / name).write_text("text")
    done: list[str] = []
    replace = os.replace
    at = {(tmp_path / name).stat().st_ino: name for name in names} | {tmp_path.stat().st_ino: "the parent"}
    monkeypatch.setattr(os, "fsync", lambda opened: done.append(at[os.fstat(opened).st_ino]))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("renamed"), replace(*paths)))
    files.publish(tmp_path / "unfinished", tmp_path / "final")
    assert set(done[:4]) == set(names) and done[4:] == ["renamed", "the parent"]
    assert (tmp_path / "final/deeper/b").read_text() == "text"


def test_a_checkpoint_is_on_the_disk_before_it_bears_its_name(
    digits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    renamed: dict[str, set[str]] = {}
    synced: set[int] = set()
    replace, fsync = os.replace, os.fsync

    def note(opened: int) -> None:
        synced.add(os.fstat(opened).st_ino)
        fsync(opened)

    def rename(old: Path, new: Path) -> None:
        inside = [old, *Path(old).rglob("*")]
        renamed[Path(new).name] = {path.name for path in inside if path.stat().st_ino not in synced}
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", rename)
    run_here(digits, tmp_path, "run", "--train.steps=1", "--optim.ema=0.5")
    wanted = ("step-1", "model", "config.yaml", "results.json", "metrics.jsonl")
    assert {name: renamed[name] for name in wanted} == {name: set() for name in wanted}


class Killed(BaseException):
    """The process ends here."""


def test_a_kill_in_the_midst_of_deleting_leaves_no_half_checkpoint(
    digits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = [*digits, "--train.steps=3", "--checkpoint.keep=1"]
    delete = shutil.rmtree

    def killed(path: Path) -> None:
        assert not path.name.startswith("step-") or not (path / "state.json").exists()
        (path / "optimizer.bin").unlink()
        raise Killed

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        run_here(run, tmp_path, "run", "--evaluation.every=1", "--optim.learning_rate=0.01")
    monkeypatch.setattr(checkpoint.shutil, "rmtree", delete)
    (left,) = checkpoint.find(tmp_path / "run")
    checkpoint.verify(left)
    folder = run_here(run, tmp_path, "run", "--optim.learning_rate=0.01")
    assert not list(folder.glob("checkpoints/unfinished-*"))
    assert all((path / "optimizer.bin").exists() for path in folder.glob("checkpoints/step-*"))


# ---- as it was written ----


def test_a_flipped_byte_is_told_and_not_resumed(
    averaged: Path, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """In each file, the mark among them; and a file that is not there."""
    shutil.copytree(averaged, tmp_path / "run")
    saved = newest(tmp_path / "run")
    names = {path.name for path in saved.iterdir()}
    assert names == {"model.safetensors", "optimizer.bin", "average.safetensors", "random_states_0.pkl", "state.json"}
    for name in sorted(names):
        content = bytearray((saved / name).read_bytes())
        whole = bytes(content)
        content[len(content) // 2] ^= 1
        (saved / name).write_bytes(content)
        with one_sentence(str(saved), "cannot be read", name if name != "state.json" else ""):
            checkpoint.verify(saved)
        (saved / name).unlink()
        with one_sentence(str(saved), "cannot be read", name):
            checkpoint.verify(saved)
        (saved / name).write_bytes(whole)
    checkpoint.verify(saved)
    content[-1] ^= 1
    (saved / "optimizer.bin").write_bytes(content)
    run = [*digits, "--train.steps=3", "--optim.ema=0.5", f"--runs={tmp_path}", "--name=run"]
    assert "optimizer.bin is not as it was written" in refused(run, capsys)


@pytest.mark.parametrize("export", ["best", "average"])
def test_what_is_handed_over_is_verified_too(
    export: str, averaged: Path, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """With all steps done, the older checkpoint is read at the end alone."""
    shutil.copytree(averaged, tmp_path / "run")
    older = tmp_path / "run/checkpoints/step-1"
    content = bytearray((older / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (older / "model.safetensors").write_bytes(content)
    state = checkpoint.read_state(newest(tmp_path / "run"))
    state.best = {"step": 1, "value": 0.0}
    (newest(tmp_path / "run") / "state.json").unlink()
    checkpoint.write_state(newest(tmp_path / "run"), state)
    run = [*digits, "--train.steps=2", "--optim.ema=0.5", f"--checkpoint.export={export}"]
    said = refused([*run, f"--runs={tmp_path}", "--name=run"], capsys)
    assert f"{older} cannot be read (model.safetensors is not as it was written)" in said


def test_a_checkpoint_without_hashes_goes_on_as_one_with_them(
    digits: list[str], averaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """As an older version wrote it: NaN as such, which was its best evaluation, and nothing of what came later."""
    plain = run_here(digits, tmp_path, "plain", "--train.steps=1")
    shutil.copytree(plain, tmp_path / "old")
    mark = newest(tmp_path / "old") / "state.json"
    content = json.loads(mark.read_text())
    for name in ("seal", "files", "begun_from", "next_rate"):
        del content[name]
    del content["contract"]["init_from"]
    content["best"] |= {"value": math.nan}
    mark.write_text(json.dumps(content))
    run = [*digits, "--train.steps=2", "--optim.schedule=constant"]
    for name in ("plain", "old"):
        run_here(run, tmp_path, name)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(tmp_path / "plain").values(), weights(tmp_path / "old").values(), strict=True)
    )
    assert json.loads((newest(tmp_path / "old") / "state.json").read_text())["best"]["step"] == 2
    # Its optimizer may have had other groups.
    saved = newest(tmp_path / "old") / "optimizer.bin"
    groups = torch.load(saved, weights_only=True)
    groups["param_groups"].pop()
    torch.save(groups, saved)
    content.pop("files", None)
    (newest(tmp_path / "old") / "state.json").write_text(json.dumps(content))
    said = refused([*run, "--train.steps=3", f"--runs={tmp_path}", "--name=old"], capsys)
    assert "is of an older version, and does not fit this one" in said


# ---- no code in it ----


class Code:
    """What runs when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl"])
def test_no_file_of_a_checkpoint_runs_code(
    name: str, averaged: Path, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Whoever made it, hashes and all: torch's random states alone may fail in silence, for no step draws from them."""
    shutil.copytree(averaged, tmp_path / "run")
    saved = newest(tmp_path / "run")
    state = checkpoint.read_state(saved)
    trap = tmp_path / "the code ran"
    torch.save({"n": Code(str(trap))}, saved / name)
    (saved / "state.json").unlink()
    checkpoint.write_state(saved, state)
    run = [*digits, "--train.steps=3", "--optim.ema=0.5", f"--runs={tmp_path}", "--name=run"]
    if name == "random_states_0.pkl":
        main(run)
    else:
        assert str(saved) in refused(run, capsys)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Code(str(trap))))
    assert trap.exists(), "the trap is none"


def test_the_average_is_saved_beside_the_weights(averaged: Path):
    average, trained = (load_file(newest(averaged) / f"{name}.safetensors") for name in ("average", "model"))
    assert int(average.pop("n_averaged")) == 2
    assert {name.removeprefix("module.") for name in average} == set(trained)
    exported = weights(averaged)
    assert all(torch.equal(exported[name], average[f"module.{name}"]) for name in exported)
    assert any(not torch.equal(exported[name], trained[name]) for name in exported)


# ---- not a number ----


def test_an_evaluation_that_is_not_a_number_is_never_best(
    digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """The first one is not; after an end in the midst, it is no more so; and nowhere is a NaN in JSON."""
    evaluate, values = stages.evaluate, iter([math.nan, -math.inf])

    def broken(*arguments) -> dict[str, float]:
        measures = evaluate(*arguments)
        return measures | {"accuracy": next(values, measures["accuracy"]), "loss": math.nan}

    monkeypatch.setattr(stages, "evaluate", broken)
    run = [*digits, "--evaluation.every=1", "--checkpoint.export=best"]
    folder = run_here(run, tmp_path, "run", "--train.steps=2")
    assert "no evaluation gave a number: the weights of the last step, 2, are handed over" in capsys.readouterr().out
    assert checkpoint.read_state(newest(folder)).best == {}
    for path in (folder / "results.json", *folder.glob("checkpoints/*/state.json")):
        strict(path.read_text())
    assert math.isnan(checkpoint.read_state(newest(folder)).evaluation["eval_loss"])
    run_here(run, tmp_path, "run", "--train.steps=4")
    held = {line["step"]: line["eval_accuracy"] for line in lines(folder) if "eval_accuracy" in line}
    assert held[1] is held[2] is None
    assert checkpoint.read_state(newest(folder)).best["step"] == max((3, 4), key=lambda step: held[step])
    assert [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    strict((folder / "results.json").read_text())


# ---- curves ----


def test_curves_that_cannot_be_drawn_do_not_hide_the_error(
    digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def full(*_) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pretraining.pictures.charts.draw_curves", full)
    folder = run_here(digits, tmp_path, "run", "--train.steps=1")
    assert "curves.png could not be finished: OSError: No space left on device" in capsys.readouterr().out
    assert (folder / "model/model.safetensors").exists(), "a picture has cost the model"
    monkeypatch.setattr(loop, "train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_here(digits, tmp_path, "run", "--train.steps=2")
    assert "curves.png could not be finished" in capsys.readouterr().out


@pytest.mark.usefixtures("pictures")
def test_what_is_null_is_a_gap_in_the_curves(tmp_path: Path):
    draw_curves([{"step": 1, "loss": None, "eval_loss": None}, {"step": 2, "loss": 1.0}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_line_of_the_metrics_is_told(
    averaged: Path, digits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """But for the last one, which a kill may have cut short."""
    shutil.copytree(averaged, tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    run = [*digits, "--train.steps=2", "--optim.ema=0.5", f"--runs={tmp_path}", "--name=run"]
    whole = metrics.read_text()
    metrics.write_text("{" + whole)
    assert f"{metrics} is damaged" in refused(run, capsys)
    metrics.write_text(whole + '{"step": 2, "lo')
    main(run)
    assert metrics.read_text() == whole


def test_a_scaler_that_a_checkpoint_lacks_is_one_sentence(averaged: Path):
    """Of a run that went on in fp16, which there is on CUDA alone."""

    class Scaled:
        is_main_process, scaler = True, object()

    with one_sentence(str(newest(averaged)), "train.precision: fp16"):
        checkpoint.restore(Scaled(), newest(averaged), None)  # type: ignore[arg-type]
