"""Every objective on two processes: the losses of one process, and runs that resume to the same bits."""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from runs import NUMBERS, fork_ranks, lines, wait
from safetensors.torch import load_file

from modeling.base import KeelPreTrainedModel
from pretrain import main
from pretraining.cli import parse
from pretraining.objectives import OBJECTIVES
from pretraining.objectives import make_objective as objective_of
from pretraining.objectives.base import Objective
from pretraining.objectives.mlm_nsp import SentencePairExamples

SHARED = [
    "--model.hidden_size=16",
    "--model.num_attention_heads=2",
    "--model.intermediate_size=32",
    "--model.hidden_dropout_prob=0",
    "--model.attention_probs_dropout_prob=0",
    "--train.steps=4",
    "--train.precision=fp32",
    "--train.kernel=sdpa",
    "--train.linear=torch",
    "--train.threads=1",
    "--optim.learning_rate=1e-3",
    "--optim.warmup=2",
    "--evaluation.every=2",
    "--evaluation.samples=2",
    "--checkpoint.every=2",
    "--log.every=1",
    "--log.trackers=[]",
]
TOKENS = [
    "--data.source=files",
    "--data.validation_fraction=0.25",
    "--tokenizer.kind=bpe",
    "--tokenizer.vocab_size=290",
]
TOKENS += ["--model.max_position_embeddings=32", "--objective.sequence_length=32"]
TEXT = [*TOKENS, "--data.document=line", "--data.near_duplicates=0", '--data.files=["{data}/text.txt"]']
PAIRS = [*TOKENS, '--data.files=["{data}/pairs.tsv"]', "--data.columns=[words, digits]"]
SEQ2SEQ = [
    "--model.family=seq2seq",
    "--model.encoder_layers=1",
    "--model.decoder_layers=1",
    "--objective.generate_examples=3",
]
SEQ2SEQ += ["--model.label_smoothing=0.1"]
ALIGNED = ["--data.alignment_column=points", "--model.alignment_layer=0", "--train.kernel=eager"]
IMAGES = ["--model.family=vit", "--model.image_size=8", "--model.patch_size=2", "--model.num_hidden_layers=1"]
IMAGES += ["--model.num_channels=1", "--data.examples=8"]
MASKED = [*IMAGES, "--objective.name=masked_images"]
DECODER = ["--model.decoder_num_hidden_layers=1", "--model.decoder_hidden_size=16"]
DECODER += ["--model.decoder_num_attention_heads=2", "--model.decoder_intermediate_size=32"]
KINDS = {
    "sentence_pairs": TEXT,
    "translation": [*SEQ2SEQ, *PAIRS, "--objective.name=translation"],
    "denoising": [*SEQ2SEQ, *TEXT, "--objective.name=denoising"],
    "classification": [*IMAGES, "--objective.mixup=0.8", "--model.label_smoothing=0.1"],
    "masked_images": [*MASKED, "--objective.probe_examples=7"],
    "masked_tokens": [*TEXT, "--objective.next_sentence=none"],
    "alignments": [*SEQ2SEQ, *PAIRS, *ALIGNED, "--objective.name=translation"],
    "mae": [*MASKED, *DECODER],
    "colors": [*MASKED, "--model.reconstruction_target=mean_color"],
}
# Of one row a process gets none, of three one gets fewer. The last kinds are variants of the objectives, whose models
# must bear a batch with nothing in it.
RESUMED = [(kind, rows) for kind in OBJECTIVES for rows in (1, 3)]
CASES = [*RESUMED, *((kind, 1) for kind in KINDS if kind not in OBJECTIVES)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of twelve documents and 24 pairs: a run passes the end of an epoch, whose last step has fewer rows."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    digits = [random.integers(10, size=8) for _ in range(36)]
    sentences = [[NUMBERS[d] for d in eight] for eight in digits]
    texts = [" ".join(words).capitalize() + "." for words in sentences]
    (folder / "text.txt").write_text("".join(" ".join(texts[i::12]) + "\n" for i in range(12)))
    pairs = [
        (" ".join(words[:3]), " ".join(str(NUMBERS.index(word)) for word in words[:3])) for words in sentences[:24]
    ]
    lines = [("words", "digits", "points"), *((*pair, "0-0 1-1 2-2") for pair in pairs[:24])]
    (folder / "pairs.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    return folder


def arguments_of(kind: str, rows: int, data: Path, processes: int) -> list[str]:
    """A run of its own name, its micro-batches as large as is left open."""
    arguments = [*SHARED, *(argument.replace("{data}", str(data)) for argument in KINDS[kind])]
    arguments += [f"--cache={data}/cache-{processes}", f"--runs={data}/{processes}", f"--name={kind}-{rows}"]
    arguments += [f"--train.rows_per_step={rows}"]
    if rows == 1:  # fewer held-out examples than processes; and what the processes settle themselves
        return [*arguments, "--evaluation.examples=1", "--train.micro_batch=auto"]
    phases = "--train.phases=[{until: 0.25, train.rows_per_step: 1}]"
    return [*arguments, "--evaluation.examples=5", f"--train.micro_batch={2 // processes}", "--optim.ema=0.9", phases]


class Launch(NamedTuple):
    """How the processes have ended, and what they said."""

    codes: list[int]
    said: str


@pytest.fixture(scope="module")
def launch(data: Path) -> Launch:
    """All cases on two processes, and again from the checkpoint in the middle: one run after another."""
    runs = []
    for kind, rows in CASES:
        arguments = arguments_of(kind, rows, data, processes=2)
        runs.append(arguments)
        if (kind, rows) in RESUMED:
            middle = f"{data}/2/{kind}-{rows}/checkpoints/step-2"
            runs.append([*arguments, f"--name={kind}-{rows}-resumed", f"--resume={middle}"])

    def do_all() -> None:
        for arguments in runs:
            main(arguments)

    codes = wait(*fork_ranks(do_all, data / "output"))
    return Launch(codes, "".join((data / f"output-{rank}").read_text() for rank in range(2)))


def test_all_runs_end(launch: Launch):
    assert launch.codes == [0, 0], launch.said


def numbers(metrics: dict) -> dict[str, float]:
    """A held-out mean of nothing is null: the one example may have no pair to judge."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}


@pytest.mark.parametrize(("kind", "rows"), CASES)
def test_two_processes_learn_what_one_does(kind: str, rows: int, launch: Launch, data: Path):
    main(arguments_of(kind, rows, data, processes=1))
    one, two = (data / processes / f"{kind}-{rows}" for processes in "12")
    assert (two / "results.json").exists(), launch.said
    for line, other in zip(lines(one), lines(two), strict=True):
        assert "loss" not in line or all(map(math.isfinite, other.values()))
        assert numbers(line) == pytest.approx(numbers(other), rel=1e-4, abs=1e-6, nan_ok=True)
    judged, others = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    for fact in ("signatures", "unknown"):  # no metrics
        assert judged.pop(fact, None) == others.pop(fact, None)
    assert numbers(judged) == pytest.approx(numbers(others), rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(("kind", "rows"), RESUMED)
def test_two_processes_resume_to_the_same_bits(kind: str, rows: int, launch: Launch, data: Path):
    whole, resumed = data / f"2/{kind}-{rows}", data / f"2/{kind}-{rows}-resumed"
    assert (resumed / "results.json").exists(), launch.said
    assert [line for line in lines(whole) if line["step"] > 2] == lines(resumed)
    for name in ("model/model.safetensors", "checkpoints/step-4/optimizer.bin"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    before = load_file(whole / "checkpoints/step-2/model.safetensors")
    after = load_file(whole / "checkpoints/step-4/model.safetensors")
    assert any(not weight.equal(after[name]) for name, weight in before.items()), "nothing was learnt in between"


@pytest.fixture(scope="module", params=KINDS)
def objective(request: pytest.FixtureRequest, data: Path) -> Objective:
    settings = parse(arguments_of(request.param, 1, data, processes=1))
    objective = objective_of(settings)
    objective.examples.prepare(is_builder=True)
    return objective


def test_no_examples_are_none(objective: Objective):
    nothing = np.empty(0, dtype=np.int64)
    assert all(list(objective.examples.examples(split, 0, nothing)) == [] for split in ("train", "validation"))


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_rows_without_examples_give_every_weight_a_gradient_of_zero(objective: Objective, kernel: str):
    """None at all, and the other processes would wait for it in vain."""
    batch = objective.examples.collate([[], []], 3)
    assert batch.units == 0 and set(batch.targets.values()) == {0}
    model = objective.head.build_model(objective.examples.run.model)
    assert isinstance(model, KeelPreTrainedModel)
    if kernel != "eager" and "alignment_labels" in batch.targets:
        pytest.skip("alignments are attention weights, which the eager kernel alone tells")
    model.set_attn_implementation(kernel)
    inputs = objective.head.to_model_inputs(batch.tensors)
    out = model.train()(**inputs, num_items_in_batch=dict.fromkeys(batch.targets, 1))
    out.loss.backward()
    assert out.loss.item() == 0
    for name, weight in model.named_parameters():
        assert weight.grad is not None and not weight.grad.any(), name


def test_what_fails_on_one_process_is_told_and_ends_all(data: Path, tmp_path: Path):
    def examples(*_):
        raise ValueError("one process fails")

    def fail_alone() -> None:
        if os.environ["RANK"] == "1":
            SentencePairExamples.examples = examples  # of this fork
        main([*arguments_of("sentence_pairs", 3, data, 2), "--name=alone"])

    codes = wait(*fork_ranks(fail_alone, tmp_path / "output"))
    assert codes[1] == 1 and codes[0] != 0, "it ended well"
    told = (tmp_path / "output-1").read_text().splitlines()
    assert "[rank1]: Traceback (most recent call last):" in told and "[rank1]: ValueError: one process fails" in told
