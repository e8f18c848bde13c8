"""The loop: cuts, kills and wrong input change nothing that they should not."""

import json
import math
import os
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from mistakes import refused
from runs import begin, ended, fork, fork_ranks, is_running, lines, newest, pretrain, run_here, wait, weights
from safetensors.torch import load_file

from pretrain import main
from pretraining.autotune import AUTOTUNED

FILES = {"config.yaml", "curves.png", "environment.json", "metrics.jsonl", "reference.safetensors", "results.json"}


@pytest.fixture(scope="module")
def reference(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine steps over two epochs' border with dropout on, cut into four micro-batches, never interrupted."""
    runs = tmp_path_factory.mktemp("runs")
    done = pretrain([*arguments, *RESUMABLE, f"--runs={runs}", "--name=whole"])
    assert done.returncode == 0, done.stderr
    return runs / "whole"


RESUMABLE = ["--train.epochs=1.2", "--train.rows_per_step=64", "--train.micro_batch=16", "--checkpoint.every=5"]
RESUMABLE += ["--evaluation.every=6", "--checkpoint.keep=100", "--log.every=3"]


def test_a_run_leaves_everything_behind(reference: Path):
    present = {path.name for path in reference.iterdir()}
    assert present == {"checkpoints", "model", *FILES}
    assert (reference / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(reference.rglob("*unfinished*"))


@pytest.mark.parametrize("when", ["soon", "late"])
def test_a_killed_run_resumes_to_the_same_bits(
    when: str, reference: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Killed at an arbitrary moment, dropout on: weights, optimizer and curves equal those of the unbroken run."""
    run = [*arguments, *RESUMABLE]
    folder = tmp_path / "broken"
    process = fork(lambda: run_here(run, tmp_path, "broken"), tmp_path / "output")
    wanted = 5 if when == "soon" else 10
    while is_running(process) and not (folder / f"checkpoints/step-{wanted}/state.json").exists():
        time.sleep(0.01)
    time.sleep(0.15)
    os.kill(process, signal.SIGKILL)
    assert wait(process) == [-signal.SIGKILL]
    assert not (folder / "model").exists(), "the run was over before it was killed"
    run_here(run, tmp_path, "broken", "--train.micro_batch=16")
    assert "resumed from" in capsys.readouterr().out
    assert lines(folder) == lines(reference)
    starts = json.loads((folder / "environment.json").read_text())["starts"]
    assert [start["step"] > 0 for start in starts] == [False, True]
    one, other = newest(folder), newest(reference)
    for name in ("model.safetensors", "optimizer.bin"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert all(torch.equal(a, b) for a, b in zip(weights(folder).values(), weights(reference).values(), strict=True))


def test_a_step_is_the_same_however_it_is_cut(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    """1 x 32 = 4 x 8 = 2 processes x 4 x 4, whose parts have unequal numbers of targets; fp32, dropout off."""
    run = [*arguments, "--model.hidden_dropout_prob=0", "--model.attention_probs_dropout_prob=0", "--train.steps=6"]
    tracked = ["--train.micro_batch=4", "--log.trackers=['wandb']", "--log.wandb=offline"]
    said = {}
    for name, micro_batch in (("one", 32), ("four", 8)):
        run_here(run, tmp_path, name, f"--train.micro_batch={micro_batch}")
        said[name] = capsys.readouterr().out
    ranks = fork_ranks(lambda: run_here(run, tmp_path, "two", *tracked), tmp_path / "output")
    assert wait(*ranks) == [0, 0], (tmp_path / "output-1").read_text()
    said["two"] = (tmp_path / "output-0").read_text()
    for name in said:
        assert "the model is in" in said[name] and (tmp_path / name / "reference.safetensors").exists()
    for name in ("four", "two"):
        for one, other in zip(lines(tmp_path / "one"), lines(tmp_path / name), strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-7)
        for one, other in zip(weights(tmp_path / "one").values(), weights(tmp_path / name).values(), strict=True):
            # AdamW divides by the gradient's size, so a rounding error in a gradient near zero can move a weight by
            # a full step: the learning rate 1e-3 bounds that; nearly all weights are far closer.
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-3)
            assert (torch.isclose(one, other, rtol=1e-4, atol=1e-5)).float().mean() > 0.99


def test_other_settings_do_not_resume(reference: Path, arguments: list[str], capsys: pytest.CaptureFixture):
    run = [*arguments, *RESUMABLE, "--train.threads=1", f"--runs={reference.parent}", "--name=whole"]
    before = (reference / "metrics.jsonl").read_bytes()
    assert "objective.mask_rate=0.15, now it is 0.2" in refused([*run, "--objective.mask_rate=0.2"], capsys)
    assert "already holds a run" in refused([*run, "--resume=none"], capsys)
    assert "no complete checkpoint" in refused([*run, f"--resume={reference}/checkpoints/step-4"], capsys)
    assert "is not the newest checkpoint" in refused([*run, f"--resume={reference}/checkpoints/step-5"], capsys)
    assert (reference / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_named(
    reference: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    shutil.copytree(reference, tmp_path / "whole")
    run = [*arguments, *RESUMABLE, "--train.threads=1", f"--runs={tmp_path}", "--name=whole"]
    newest(tmp_path / "whole").joinpath("optimizer.bin").write_bytes(b"")
    assert "cannot be read" in refused(run, capsys)
    newest(tmp_path / "whole").joinpath("state.json").write_text('{"steps": 3}')
    assert f"{newest(tmp_path / 'whole')} cannot be read" in refused(run, capsys)


def test_a_finished_run_resumed_changes_nothing(reference: Path, arguments: list[str]):
    before = {path.name: path.read_bytes() for path in (reference / "model").iterdir()}
    curves = lines(reference)
    run_here([*arguments, *RESUMABLE], reference.parent, "whole")
    assert lines(reference) == curves
    assert {path.name: path.read_bytes() for path in (reference / "model").iterdir()} == before


def test_a_step_that_is_not_finite_updates_nothing(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    run = [*arguments, "--train.steps=20", "--checkpoint.every=1", "--optim.warmup=0", "--optim.learning_rate=1e30"]
    run += ["--train.max_grad_norm=0", "--train.threads=1", f"--runs={tmp_path}", "--name=wild"]
    said = refused(run, capsys)
    assert "is not finite" in said and "optim.learning_rate" in said
    saved = load_file(newest(tmp_path / "wild") / "model.safetensors")
    assert saved and all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_the_probe_reads_back_bit_by_bit_where_nothing_of_ours_is(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, pipeline
torch.set_num_threads(1)
folder, probe = sys.argv[1:]
model = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager")
tensors = load_file(probe)
inputs = {name[6:]: value for name, value in tensors.items() if name.startswith("input.")}
with torch.no_grad():
    outputs = model(**inputs)
named = [name for name in tensors if name.startswith("output.")]
assert len(named) >= 2 and all(torch.equal(tensors[name], outputs[name[7:]]) for name in named)
fill = pipeline("fill-mask", folder, trust_remote_code=True)
assert len(fill("The [MASK] statement is used for repeated execution.")) == 5
assert "pretraining" not in sys.modules and not any(name.startswith("modeling") for name in sys.modules)
"""
    monkeypatch.chdir(tmp_path)
    folders = (reference / "model", reference / "reference.safetensors")
    done = ended(begin("-c", program, *folders, HF_MODULES_CACHE=str(tmp_path), PYTHONPATH=""))
    assert done.returncode == 0, done.stderr


BAD = {
    "no such file": (['--data.files=["nowhere/*.txt"]'], "nowhere"),
    "an empty file": (['--data.files=["{tmp}/empty.txt"]'], "empty.txt"),
    "a vocabulary beyond the corpus": (["--tokenizer.vocab_size=100000"], "vocab"),
    "a sequence beyond the table": (["--objective.sequence_length=65"], "model.max_position_embeddings"),
    "an unknown key": (["--train.stepz=3"], "train.steps"),
    "one segment for pairs": (["--model.type_vocab_size=1"], "two segments"),
    "no tokenizer there": (["--tokenizer.path={tmp}/nothing"], "nothing"),
    "one document": (['--data.files=["{tmp}/one.txt"]'], "held out"),
    "two documents, one held out": (
        ['--data.files=["{tmp}/one.txt","{tmp}/two.txt"]', "--tokenizer.kind=bpe", "--tokenizer.vocab_size=261"],
        "NSP needs two",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_sentence_and_leaves_nothing(
    case: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.txt").write_text("A first sentence. A second one.")
    (tmp_path / "two.txt").write_text("A third sentence. A fourth one.")
    more, expected = BAD[case]
    wrong = [argument.replace("{tmp}", str(tmp_path)) for argument in more]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--train.steps=1", f"--runs={tmp_path}/runs", *wrong])
    said = capsys.readouterr().err
    assert end.value.code in (1, 2)
    assert expected in said
    assert len([line for line in said.splitlines() if "error:" in line]) == 1
    assert not (tmp_path / "runs").exists()


def test_rotation_keeps_the_newest_and_the_best(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    """A rate far too high makes a later evaluation worse than an earlier one."""
    more = ["--train.steps=6", "--checkpoint.every=1", "--checkpoint.keep=2", "--evaluation.every=1"]
    more += ["--optim.learning_rate=0.3", "--optim.warmup=3", "--optim.schedule=constant", "--checkpoint.export=best"]
    folder = run_here(arguments, tmp_path, "rotated", *more)
    held = {line["step"]: line["eval_mlm_loss"] for line in lines(folder) if "eval_mlm_loss" in line}
    best = min(held, key=lambda step: held[step])
    assert best < 5, "the run got better to its end: nothing is shown"
    assert {path.name for path in folder.glob("checkpoints/[!.]*")} == {f"step-{step}" for step in (best, 5, 6)}
    said = capsys.readouterr().out
    assert f"the weights of step {best}" in said and f"{held[best]:.4f}" in said.split("held out")[1]
    kept = load_file(folder / f"checkpoints/step-{best}/model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(folder).items() if name in kept)


def test_bf16_trains_to_nearly_the_same_loss(arguments: list[str], tmp_path: Path):
    losses = {}
    for precision in ("fp32", "bf16"):
        run_here(arguments, tmp_path, precision, "--train.steps=5", f"--train.precision={precision}")
        losses[precision] = [line["loss"] for line in lines(tmp_path / precision) if "loss" in line]
        assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / precision).values())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)


def test_batches_made_by_workers_are_the_same(arguments: list[str], tmp_path: Path):
    folders = [run_here(arguments, tmp_path, f"w{n}", "--train.steps=4", f"--train.workers={n}") for n in (0, 2)]
    assert lines(folders[0]) == lines(folders[1])


def test_a_longer_budget_continues_and_wandb_sees_one_run(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Offline, with no account: each start leaves a folder, and all bear one id, that of the run."""
    more = ["--log.trackers=['wandb']", "--log.wandb=offline", "--optim.schedule=constant", "--optim.warmup=0"]
    folder = run_here(arguments, tmp_path, "tracked", "--train.steps=2", *more)
    capsys.readouterr()
    run_here(arguments, tmp_path, "tracked", "--train.steps=4", "--optim.weight_decay=0.02", *more)
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("from step 2 on: "))
    assert told == "from step 2 on: train.steps 2 -> 4, optim.weight_decay 0.01 -> 0.02"
    starts = [path.name for path in folder.glob("wandb/offline-run-*")]
    assert len({name.rsplit("-", 1)[1] for name in starts}) == 1
    assert [line["step"] for line in lines(folder) if "loss" in line] == [1, 2, 3, 4]


def test_a_run_begun_from_another_is_its_own(arguments: list[str], tmp_path: Path):
    """It inherits weights and position, not the other's best model, which lies in the other's folder."""
    more = ["--checkpoint.every=1", "--optim.schedule=constant", "--checkpoint.export=best"]
    first = run_here(arguments, tmp_path, "first", "--train.steps=2", *more)
    again = run_here(arguments, tmp_path, "again", "--train.steps=3", f"--resume={first}/checkpoints/step-2", *more)
    states = [json.loads((newest(folder) / "state.json").read_text()) for folder in (first, again)]
    assert states[1]["best"]["step"] == 3 and states[0]["run_id"] != states[1]["run_id"]
    assert [line["step"] for line in lines(again) if "loss" in line] == [3]


def test_training_learns(arguments: list[str], tmp_path: Path):
    """The held-out loss falls far below that of a uniform guess, log(vocabulary), where it starts."""
    folder = run_here(arguments, tmp_path, "learns", "--train.steps=60", "--optim.learning_rate=5e-3")
    (held,) = [line["eval_mlm_loss"] for line in lines(folder) if "eval_mlm_loss" in line]
    assert held < math.log(1500) - 1


EVERYTHING = ["--optim.optimizer=muon", "--optim.ema=0.9", "--optim.layer_decay=0.9", "--objective.mask_rate_end=0.3"]
EVERYTHING += ["--train.rows_at_start=4", "--train.batch_warmup=6", "--train.micro_batch=8", "--train.steps=12"]
EVERYTHING += ["--train.phases=[{until: 0.6, objective.sequence_length: 32, train.rows_per_step: 16}]"]
EVERYTHING += ["--checkpoint.every=1", "--checkpoint.keep=100"]


def test_a_run_with_everything_that_changes_over_time_resumes_to_the_same_bits(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Muon, average, phases, growing batches, masking schedule, dropout: from before, at and after the phase's end."""
    whole = run_here(arguments, tmp_path, "whole", *EVERYTHING)
    said = capsys.readouterr().out
    assert said.count("train: ") == 1 and "phase 2 of 2" in said
    state = json.loads((newest(whole) / "state.json").read_text())
    assert (state["step"], state["phase"], state["epoch"], state["step_in_epoch"]) == (12, 1, 1, 4)
    for step in (3, 8, 9):  # the first phase ends with step 8
        part = tmp_path / f"from-{step}"
        shutil.copytree(whole / f"checkpoints/step-{step}", part / f"checkpoints/step-{step}")
        run_here(arguments, tmp_path, part.name, *EVERYTHING)
        assert [line for line in lines(whole) if line["step"] > step] == lines(part)
        for name in ("model.safetensors", "optimizer.bin", "average.safetensors"):
            assert (newest(whole) / name).read_bytes() == (newest(part) / name).read_bytes(), name
        assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(part).values(), strict=True))
    trained = load_file(newest(whole) / "model.safetensors")
    average = {name: tensor for name, tensor in weights(whole).items() if name in trained}
    assert any(not torch.equal(tensor, trained[name]) for name, tensor in average.items()), (
        "not the average is exported"
    )


def test_a_run_without_better_evaluations_stops(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    more = ["--train.steps=40", "--evaluation.every=2", "--evaluation.patience=2", "--optim.learning_rate=0.5"]
    folder = run_here(arguments, tmp_path, "stopped", *more, "--optim.schedule=constant", "--train.micro_batch=8")
    state = json.loads((newest(folder) / "state.json").read_text())
    assert state["step"] < 40 and state["stale"] == 2 and state["best"]["step"] == state["step"] - 4
    assert "no better evaluation among the last 2" in capsys.readouterr().out
    assert (folder / "model/model.safetensors").exists()
    curves = lines(folder)
    run_here(arguments, tmp_path, "stopped", *more, "--optim.schedule=constant", "--train.micro_batch=8")
    assert lines(folder) == curves, "a stopped run went on"


def test_what_is_auto_is_tuned_once(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    automatic = [f"--train.{name}=auto" for name in AUTOTUNED]
    main([*arguments, *automatic, "--train.steps=2", "--optim.schedule=constant", f"--runs={tmp_path}", "--name=auto"])
    assert "autotune: " in capsys.readouterr().out
    train = yaml.safe_load((tmp_path / "auto/config.yaml").read_text())["train"]
    state = json.loads((newest(tmp_path / "auto") / "state.json").read_text())
    assert {name: train[name] for name in AUTOTUNED} == {name: state["autotuned"][name] for name in AUTOTUNED}
    assert "auto" not in [train[name] for name in AUTOTUNED]
    main([*arguments, *automatic, "--train.steps=3", "--optim.schedule=constant", f"--runs={tmp_path}", "--name=auto"])
    assert "probe" not in capsys.readouterr().out
    torch.set_num_threads(1)


def test_a_bad_step_can_be_replayed(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    run = [*arguments, "--train.steps=20", "--optim.warmup=0", "--optim.learning_rate=1e30", "--train.micro_batch=8"]
    run += ["--train.max_grad_norm=0", "--train.threads=1", f"--runs={tmp_path}", "--name=wild"]
    command = refused(run, capsys).strip().rsplit("python -m ", 1)[1]
    (folder,) = (tmp_path / "wild").glob("bad-step-*")
    assert command == f"pretraining.bad_step {folder}"
    module, *options = command.split()
    monkeypatch.setattr(sys, "argv", [module, *options])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert end.value.code == 1
    replayed = capsys.readouterr().out
    said = replayed.splitlines()
    assert len([line for line in said if line.startswith("process 0, micro-batch")]) == 4
    assert "weights that are not finite: none" in said[0] and "the first output that is not finite" in replayed


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_other_trackers(tracker: str, arguments: list[str], tmp_path: Path):
    pytest.importorskip(tracker)
    more = ["--train.steps=2", f"--log.trackers=['{tracker}']", f"--runs={tmp_path}", "--name=tracked"]
    done = pretrain([*arguments, *more], TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.returncode == 0, done.stderr
    pattern = "tracked/**/events.out.tfevents*" if tracker == "tensorboard" else "trackio/**/*"
    assert list(tmp_path.glob(pattern))


def test_gradient_checkpointing_and_compile_change_no_loss(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The graph is captured and run without compiling a kernel, which takes minutes on CPU."""
    compile_model = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compile_model(model, backend="eager"))
    exact = ["--model.hidden_dropout_prob=0", "--model.attention_probs_dropout_prob=0", "--train.steps=3"]
    plain = lines(run_here(arguments, tmp_path, "plain", *exact))
    for option in ("gradient_checkpointing", "compile"):
        other = lines(run_here(arguments, tmp_path, option, *exact, f"--train.{option}=true"))
        for one, same in zip(plain, other, strict=True):
            assert one == pytest.approx(same, rel=1e-4, abs=1e-6)
