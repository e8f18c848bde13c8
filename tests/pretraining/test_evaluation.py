"""What a run measures of a fixed checkpoint is the same however it computes: precision, kernel, wrappers, average.

A run starts from the checkpoint and learns at rate 0, so that what it reports at its end is of the same weights.
"""

import json
from pathlib import Path

import pytest
import torch
from runs import FIXED, WIDTHS, run_here

from pretraining.onednn import has_onednn_linear

WAYS = {
    "bf16, gradient checkpointing, moving average": [
        *("--train.precision=bf16", "--train.gradient_checkpointing=true", "--optim.ema=0.9"),
    ],
    "gradient checkpointing, moving average, micro-batches": [
        *("--train.gradient_checkpointing=true", "--optim.ema=0.9", "--train.micro_batch=3"),
        *(["--train.linear=onednn"] if has_onednn_linear() else []),
    ],
    "compiled, eager": ["--train.compile=true", "--train.kernel=eager"],
}
# Rounding moves what is counted by an example or two of 40, or by a point of BLEU of a model that knows its task.
EXACT, ROUNDED = {"rel": 1e-4, "abs": 1e-6}, {"rel": 0.05, "abs": 0.06}
SHARED = [*FIXED, "--train.threads=1", "--train.micro_batch=8", "--train.rows_per_step=8", "--evaluation.examples=40"]
SHARED += ["--log.every=50"]


@pytest.fixture(scope="module")
def checkpoints(corpus: Path, cache: Path, seq2seq_arguments, translator: Path, tmp_path_factory):
    """`checkpoints(objective)`: the arguments of such a run but for its model's, and a model that one has trained."""
    text = ["--data.source=files", f'--data.files=["{corpus}/[a-c]*.txt"]', "--data.validation_fraction=0.2"]
    text += ["--objective.sequence_length=32"]
    layers = [*WIDTHS, "--model.encoder_layers=1", "--model.decoder_layers=1", "--model.max_position_embeddings=64"]
    encoder = [*WIDTHS, "--model.num_hidden_layers=2"]
    images = ["--model.family=vit", "--objective.flip=0"]
    small = [*encoder, "--model.image_size=8", "--model.patch_size=2", "--model.num_channels=1"]
    vocabulary = "--tokenizer.vocab_size=900"
    tasks = {
        "sentence_pairs": (text, [*encoder, "--model.max_position_embeddings=32", vocabulary]),
        "denoising": (["--model.family=seq2seq", "--objective.beams=2", *text], [*layers, vocabulary]),
        "classification": (images, small),
        "masked_images": ([*images, "--objective.probe_examples=60"], small),
    }

    def checkpoint(objective: str) -> tuple[list[str], Path]:
        if objective == "translation":
            given = [part for part in seq2seq_arguments(objective) if not part.startswith(("--model.", "--tokenizer."))]
            return [*given, "--model.family=seq2seq", "--objective.beams=2", "--log.every=50"], translator / "model"
        given, architecture = tasks[objective]
        given = [*SHARED, f"--cache={cache}", f"--objective.name={objective}", *given]
        learning = ["--train.steps=20", "--optim.learning_rate=1e-2", "--model.hidden_dropout_prob=0"]
        folder = run_here([*given, *learning, *architecture], tmp_path_factory.mktemp("runs"), objective)
        return given, folder / "model"

    return checkpoint


def measured(arguments: list[str], model: Path, runs: Path, name: str, *way: str) -> dict[str, dict]:
    """The metrics of a run that starts from `model` and leaves it as it is: before its step, and at its end."""
    still = ["--train.steps=1", "--optim.learning_rate=0", "--optim.weight_decay=0", f"--init_from={model}"]
    folder = run_here([*arguments, *still], runs, name, *way)
    first, *_ = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    results = json.loads((folder / "results.json").read_text())
    return {
        "before": {key: value for key, value in first.items() if key.startswith("eval_")},
        "at the end": {key: value for key, value in results.items() if key.startswith("eval_")},
    }


@pytest.mark.parametrize("objective", ["sentence_pairs", "translation", "denoising", "classification", "masked_images"])
def test_metrics_do_not_depend_on_how_they_are_computed(checkpoints, objective: str, tmp_path: Path, monkeypatch):
    """The graph is captured and run without compiling a kernel, which takes minutes on CPU."""
    compile_model = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compile_model(model, backend="eager"))
    arguments, model = checkpoints(objective)
    plain = measured(arguments, model, tmp_path, "plain")
    if objective == "translation":
        assert plain["at the end"]["eval_exact_match"] > 0.5  # or texts would be noise that nothing moves
    for number, (way, options) in enumerate(WAYS.items()):
        found = measured(arguments, model, tmp_path, f"way-{number}", *options)
        for when, expected in plain.items():
            assert found[when].keys() == expected.keys()
            for name, value in expected.items():
                scale = 100 if name in ("eval_bleu", "eval_chrf") else 1
                close = ROUNDED if "bf16" in way else EXACT
                assert found[when][name] / scale == pytest.approx(value / scale, **close), (way, when, name)
