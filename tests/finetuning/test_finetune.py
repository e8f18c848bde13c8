"""Every task is learnt by the one loop: resumed to the same bits, cut in any way, from both starts."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune import main
from finetuning.cli import parse_finetune
from finetuning.predict import main as predict_main
from finetuning.tasks import make_task
from modeling import KeelBertForSequenceClassification
from pretrain import main as pretrain
from tests.finetuning.data import KINDS, arguments_of
from tests.finetuning.reviews import write_lines
from tests.pretraining.runs import FIXED, NUMBERS, WIDTHS, fork_ranks, wait


def finetune(arguments: list[str], name: str, *more: str) -> Path:
    main([*arguments, f"--name={name}", *more])
    runs = next(argument.partition("=")[2] for argument in arguments if argument.startswith("--runs="))
    return Path(runs, name)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_reaches_the_same_bits(kind: str, labelled: Path, checkpoint: Path):
    arguments = arguments_of(kind, labelled, checkpoint)
    whole = finetune(arguments, f"{kind}-whole")
    resumed = finetune(arguments, f"{kind}-resumed", f"--resume={whole}/checkpoints/step-2")
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name
    assert results(whole)["eval_loss"] == results(resumed)["eval_loss"]
    assert (whole / "worst.jsonl").exists()


@pytest.mark.parametrize("kind", ["text", "long", "tokens", "spans", "choice"])
def test_how_a_step_is_cut_changes_nothing(kind: str, labelled: Path, checkpoint: Path):
    """1 x 8 rows, 4 x 2, and two processes with 2 x 2 each."""
    arguments = [*arguments_of(kind, labelled, checkpoint), "--model.hidden_dropout_prob=0"]
    whole = finetune(arguments, f"{kind}-1x8")
    parts = [finetune(arguments, f"{kind}-4x2", "--train.micro_batch=2")]
    ranks = [*arguments, f"--name={kind}-2x2x2", "--train.micro_batch=2"]
    assert wait(*fork_ranks(lambda: main(ranks), labelled / f"{kind}-output")) == [0, 0]
    parts.append(labelled / "runs" / f"{kind}-2x2x2")
    for part in parts:
        for name, weight in weights(whole).items():
            torch.testing.assert_close(weights(part)[name], weight, rtol=1e-4, atol=1e-5)
        assert results(part)["eval_loss"] == pytest.approx(results(whole)["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["text", "tokens", "choice"])
def test_what_can_be_learnt_is_learnt(kind: str, labelled: Path, checkpoint: Path):
    more = ["--train.steps=150", "--optim.learning_rate=3e-3", "--evaluation.every=0", "--checkpoint.every=0"]
    run = finetune(arguments_of(kind, labelled, checkpoint), f"{kind}-learnt", *more, "--log.every=50")
    assert results(run)["eval_accuracy"] >= 0.9


def test_both_starts_and_several_seeds_are_one_table(labelled: Path, checkpoint: Path, capsys):
    run = finetune(arguments_of("text", labelled, checkpoint), "both", "--start=both", "--seeds=2")
    table = (run / "results.md").read_text()
    assert table.startswith("| metric | pretrained | scratch | difference | standard errors |")
    scores = json.loads((run / "results.json").read_text())
    assert {start: len(values["accuracy"]) for start, values in scores.items()} == {"pretrained": 2, "scratch": 2}
    assert f"{np.mean(scores['scratch']['loss']):.4f}" in table and table in capsys.readouterr().out
    firsts = [weights(run / name)["bert.pooler.dense.weight"] for name in ("pretrained-0", "scratch-0", "scratch-1")]
    assert all(not torch.equal(a, b) for a, b in pairwise(firsts))
    with pytest.raises(SystemExit):  # its results.json would be that of all
        main([*arguments_of("text", labelled, checkpoint), f"--runs={run}", "--name=scratch-0", "--start=both"])
    assert "is the folder of a single run, and this command has 2" in capsys.readouterr().err


def test_scratch_takes_the_tokenizer_and_the_architecture(labelled: Path, checkpoint: Path):
    arguments = arguments_of("text", labelled, checkpoint)[1:]
    settings = parse_finetune(["--model=scratch", f"--tokenizer.path={checkpoint}", *arguments])
    assert settings.start == "scratch" and settings.model.hidden_size == 32
    run = finetune(["--model=scratch", f"--tokenizer.path={checkpoint}", *arguments], "scratch")
    assert KeelBertForSequenceClassification.from_pretrained(run / "model").config.id2label == {0: "none", 1: "seven"}


@pytest.mark.parametrize("kind", ["long", "spans", "tokens"])
def test_windows_are_as_long_as_they_are_planned(kind: str, labelled: Path, checkpoint: Path):
    settings = parse_finetune(arguments_of(kind, labelled, checkpoint))
    objective = make_task(settings)
    objective.examples.prepare(is_builder=True)
    index = objective.examples.index("train", 0)
    examples = objective.examples.examples("train", 0, index)
    lengths = [len(example["input_ids"]) for example in examples]
    assert lengths == objective.examples.example_lengths["train"][index].tolist()
    assert max(size for example in examples for size in example["window_lengths"]) <= 32
    assert max(len(example["window_lengths"]) for example in examples) > 1


def test_the_logits_of_a_long_text_are_the_mean_of_its_windows(labelled: Path, checkpoint: Path):
    run = finetune(arguments_of("long", labelled, checkpoint), "long-logits", "--objective.worst=1000")
    model = KeelBertForSequenceClassification.from_pretrained(run / "model").eval()
    examples = make_task(parse_finetune(arguments_of("long", labelled, checkpoint))).examples
    examples.prepare(is_builder=True)
    index = examples.index("validation", 0)
    losses = []
    for example in examples.examples("validation", 0, index):
        ids = torch.from_numpy(example["input_ids"]).split(example["window_lengths"].tolist())
        logits = torch.cat([model(input_ids=window[None]).logits for window in ids]).mean(0)
        losses.append(-float(logits.log_softmax(0)[int(example["labels"])].detach()))
    assert results(run)["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_lora_learns_little_and_is_merged(labelled: Path, checkpoint: Path):
    pytest.importorskip("peft")
    arguments = [*arguments_of("text", labelled, checkpoint), "--objective.adapter=lora"]
    whole = finetune(arguments, "lora", "--optim.learning_rate=1e-2")
    resumed = finetune(arguments, "lora-resumed", f"--resume={whole}/checkpoints/step-2", "--optim.learning_rate=1e-2")
    before, after = load_file(checkpoint / "model.safetensors"), weights(whole)
    changed = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    assert changed == {
        f"bert.encoder.blocks.{layer}.attention.{matrix}.weight" for layer in (0, 1) for matrix in ("query", "value")
    }
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in after.items())
    model = KeelBertForSequenceClassification.from_pretrained(whole / "model").eval()
    assert math.isfinite(float(model(input_ids=torch.tensor([[2, 5, 3]])).logits.sum().detach()))


def test_what_is_frozen_stays(labelled: Path, checkpoint: Path):
    run = finetune(arguments_of("text", labelled, checkpoint), "frozen", "--objective.freeze=2")
    before, after = load_file(checkpoint / "model.safetensors"), weights(run)
    same = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    assert same and all(".embeddings." in name or ".blocks.0." in name for name in same)
    assert not any(".blocks.1." in name for name in same)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--objective.metric=bleu"], "objective.metric is 'bleu', and what this task can be judged by is: accuracy"),
        (["--objective.sequence_length=100", "--objective.row_length=100"], "beyond the model's position"),
        (["--objective.freeze=9"], "set it to at most 3"),
        (["--objective.name=translation"], "model.family bert takes: sequence_classification"),
        (["--objective.class_weights=[1, 2, 3]"], "has 3 numbers, and there are 2 classes, none, seven"),
        (["--objective.class_weights=[-1, 2]"], "must be finite numbers of at least 0"),
        (["--objective.class_weights=[.nan, 2]"], "must be finite numbers of at least 0"),
        (["--objective.class_weights=[1e40, 2]"], "must be finite numbers of at least 0"),
        (["--objective.class_weights=[0, 0]"], "not all of them 0"),
        (["--objective.adapter=lora", "--objective.lora_targets=[query, keys]"], "names 'keys', and no linear layer"),
        (["--objective.adapter=lora", "--objective.lora_alpha=0"], "objective.lora_alpha is 0"),
        (["--seeds=0"], "seeds is 0: it must be a number of at least 1"),
        (["--seeds=2", "--resume=elsewhere"], "--resume is elsewhere, which is of one run, and this command has 2"),
    ],
)
def test_mistakes_are_told_before_training(more: list[str], error: str, labelled: Path, checkpoint: Path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments_of("text", labelled, checkpoint), "--name=wrong", *more])
    said = " ".join(capsys.readouterr().err.split())
    assert error in said and said.count("error:") == 1
    assert not (labelled / "runs" / "wrong").exists()


@pytest.mark.parametrize(
    ("kind", "more", "error"),
    [
        ("pair", ["--objective.calibration=true"], "objective.calibration is for one class each"),
        ("several", ["--objective.calibration=true"], "objective.calibration is for one class each"),
        ("spans", ["--objective.answer_length=0"], "objective.answer_length is 0"),
    ],
)
def test_mistakes_of_a_task(kind: str, more: list[str], error: str, labelled: Path, checkpoint: Path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments_of(kind, labelled, checkpoint), f"--name=wrong-{kind}", *more])
    assert error in " ".join(capsys.readouterr().err.split())
    assert not (labelled / "runs" / f"wrong-{kind}").exists()


def test_a_test_split_may_have_more_choices(labelled: Path, checkpoint: Path):
    """Than any question of training: it is scored, with each choice as it would be alone."""
    rows = [json.loads(line) for line in (labelled / "choice.jsonl").read_text().splitlines()]
    rows = [{"choices": [row["sentence1"], row["sentence2"]], "label": row["label"]} for row in rows]
    more = [{"choices": [*row["choices"], "one", "two three"], "label": row["label"]} for row in rows]
    write_lines(labelled / "few.jsonl", rows)
    write_lines(labelled / "more.jsonl", more)
    files = [f"--data.files={labelled}/few.jsonl", f"--data.test_files={labelled}/more.jsonl"]
    found = results(finetune(arguments_of("choice", labelled, checkpoint), "choices", *files))
    assert 0 <= found["test_accuracy"] <= 1


def test_the_checkpoint_must_be_named(labelled: Path, checkpoint: Path, capsys):
    with pytest.raises(SystemExit):
        main(arguments_of("text", labelled, checkpoint)[1:])
    assert "name its checkpoint by --model" in capsys.readouterr().err


def test_images_and_their_frozen_body(labelled: Path, capsys):
    sizes = ["--model.family=vit", "--model.image_size=8", "--model.patch_size=4", "--model.num_channels=1"]
    digits = ["--data.source=digits", f"--cache={labelled}/cache", f"--runs={labelled}/runs", "--train.steps=2"]
    digits += ["--train.rows_per_step=32", "--train.micro_batch=32", "--train.threads=1", *FIXED]
    pretrain([*sizes, *WIDTHS, "--model.num_hidden_layers=2", "--name=vit", *digits, "--objective.name=masked_images"])
    model = labelled / "runs" / "vit" / "model"
    run = finetune([f"--model={model}", *digits, "--optim.learning_rate=1e-2"], "digits", "--objective.freeze=-1")
    before, after = load_file(model / "model.safetensors"), weights(run)
    shared = before.keys() & after.keys()
    assert shared and all(torch.equal(before[name], after[name]) for name in shared)
    found = results(run)
    assert 0 <= found["eval_calibration_error"] <= 1 and found["eval_top5_accuracy"] >= found["eval_accuracy"]
    assert len((run / "worst.jsonl").read_text().splitlines()) == 20
    assert len((run / "classes.md").read_text().splitlines()) == 12
    with pytest.raises(SystemExit):
        main([f"--model={model}", *digits, "--name=deep", "--objective.freeze=9"])
    assert "set it to at most 3" in capsys.readouterr().err


def test_translation_is_fine_tuned_too(labelled: Path):
    """A seq2seq that goes on with other pairs, under the verb of all families."""
    pairs = "".join(f"{a} {b}\t{n} {m}\n" for n, a in enumerate(NUMBERS) for m, b in enumerate(NUMBERS))
    (labelled / "pairs.tsv").write_text(pairs)
    common = ["--data.source=files", f"--data.files={labelled}/pairs.tsv", f"--cache={labelled}/cache", *FIXED]
    common += [f"--runs={labelled}/runs", "--train.steps=2", "--train.rows_per_step=8", "--train.micro_batch=8"]
    common += ["--train.threads=1", "--objective.sequence_length=16", "--data.validation_fraction=0.2"]
    sizes = [*WIDTHS, "--model.encoder_layers=1", "--model.decoder_layers=1", "--model.max_position_embeddings=32"]
    pretrain(["--model.family=seq2seq", "--name=translator", *sizes, *common, "--tokenizer.vocab_size=270"])
    run = finetune([f"--model={labelled}/runs/translator/model", *common], "translator-on")
    assert "eval_bleu" in results(run)


def test_a_temperature_is_divided_out_of_the_classifier(labelled: Path, checkpoint: Path, capsys):
    more = ["--train.steps=60", "--optim.learning_rate=3e-3", "--checkpoint.every=0", "--data.validation_fraction=0.5"]
    arguments = arguments_of("text", labelled, checkpoint)
    plain = finetune(arguments, "plain", *more)
    warm = finetune(arguments, "warm", *more, "--objective.calibration=true")
    said = capsys.readouterr().out
    temperature = float(said.partition("calibration: temperature ")[2].partition(",")[0])
    ratio = weights(plain)["classifier.dense.weight"] / weights(warm)["classifier.dense.weight"]
    torch.testing.assert_close(ratio, torch.full_like(ratio, temperature), rtol=1e-3, atol=0)
    assert results(plain)["eval_accuracy"] == results(warm)["eval_accuracy"]
    assert (warm / "reliability.png").exists()


def test_a_labelled_test_split_is_scored_once(labelled: Path, checkpoint: Path, capsys):
    """The held-out file as the test split too: the same metrics under another name."""
    files = [f"--data.validation_files={labelled}/held-out.jsonl", f"--data.test_files={labelled}/test.jsonl"]
    lines = (labelled / "choice.jsonl").read_text().splitlines(keepends=True)
    for name in ("held-out", "test"):
        (labelled / f"{name}.jsonl").write_text("".join(lines[::-1]))
    found = results(finetune(arguments_of("choice", labelled, checkpoint), "tested", *files))
    assert found["test_accuracy"] == found["eval_accuracy"]
    assert found["test_loss"] == pytest.approx(found["eval_loss"], rel=1e-5)
    assert "test split, 60 examples:" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["text", "pair", "tokens", "spans", "choice"])
def test_a_test_split_without_labels_is_predicted(kind: str, labelled: Path, checkpoint: Path, capsys):
    """As the command does it with the same rows."""
    targets = ("label", "score", "tags", "answers")
    rows = [json.loads(line) for line in (labelled / f"{kind}.jsonl").read_text().splitlines()]
    write_lines(labelled / "new.jsonl", [{k: v for k, v in row.items() if k not in targets} for row in rows])
    run = finetune(
        arguments_of(kind, labelled, checkpoint), f"predicted-{kind}", f"--data.test_files={labelled}/new.jsonl"
    )
    predict_main([str(run / "model"), f"{labelled}/new.jsonl", f"--out={run}/expected.jsonl"])
    found, expected = (
        [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        for name in ("predictions", "expected")
    )
    assert [row.pop("name") for row in found] == [f"{labelled}/new.jsonl:{line}" for line in range(1, 61)]
    assert found == expected
    assert not any(name.startswith("test_") for name in results(run))


def test_a_test_split_of_which_some_have_labels_is_told(labelled: Path, checkpoint: Path, tmp_path: Path, capsys):
    (tmp_path / "some.jsonl").write_text('{"text": "one", "label": "none"}\n{"text": "two", "label": null}\n')
    with pytest.raises(SystemExit):
        main([*arguments_of("text", labelled, checkpoint), "--name=some", f"--data.test_files={tmp_path}/some.jsonl"])
    assert "some.jsonl:2, label is empty, and other examples of the test split have" in capsys.readouterr().err


def test_a_bad_step_of_an_adapted_model_is_kept(labelled: Path, checkpoint: Path, capsys):
    more = ["--objective.adapter=lora", "--optim.learning_rate=1e38", "--train.max_grad_norm=0"]
    with pytest.raises(SystemExit):
        main([*arguments_of("text", labelled, checkpoint), "--name=bad", *more])
    assert "is not finite" in capsys.readouterr().err
    (folder,) = (labelled / "runs" / "bad").glob("bad-step-*")
    names = load_file(folder / "model.safetensors")
    assert "bert.encoder.blocks.0.attention.query.weight" in names and not any("lora" in name for name in names)
