"""Tokens/s, or images/s, of the whole pretrain.py against the bare step on the same rows.

    python -m tests.benchmarks.whole_run [--config configs/pretrain/bert-pydocs.yaml] [--steps 20] [--rounds 5]

The bare step is forward, backward, clipping and the optimizer in plain torch, on the run's own rows, made (of images:
augmented) beforehand, in the way that the run's trial chose: what is left of the whole run's time is data,
accounting, logging and trackers.
Evaluation and saving, whose share of a run is a choice, are not in it. Rounds alternate in one process; the medians
count.
"""

import argparse
import json
import tempfile
import time

import torch

from pretraining.batches import Steps
from pretraining.checkpoint import State
from pretraining.cli import parse
from pretraining.launch import make_accelerator
from pretraining.loop import train
from pretraining.objectives import make_objective
from pretraining.objectives.base import Batch
from pretraining.onednn import choose_linear
from pretraining.optim import learning_rate, make_optimizer
from pretraining.run import Phase
from pretraining.settings import Settings
from tests.benchmarks.rounds import cell, print_table, ratios, spread
from tests.benchmarks.updates import update


def whole(settings: Settings) -> tuple[float, list[float]]:
    """Tokens/s and losses of a run, by its own metrics.jsonl; the first step, which warms up, is left out."""
    train(settings, make_objective(settings))
    lines = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    unit = settings.objective.unit
    steps = [line for line in lines if unit in line]
    first, last = steps[0], steps[-1]
    rate = (last[unit] - first[unit]) / (last["seconds"] - first["seconds"])
    return rate, [line["loss"] for line in steps]


def bare(settings: Settings, steps: int) -> tuple[float, list[float]]:
    """Tokens/s and losses of the same updates with nothing around them."""
    make_accelerator(settings)
    options = settings.train
    objective = make_objective(settings)
    objective.examples.prepare(is_builder=True)
    plan = Phase(settings, objective, end=1.0).plan_epoch(State())
    assert isinstance(options.micro_batch, int)
    data = Steps(objective.examples, "train", 0, plan, options.micro_batch, 0, 1)
    made = [data[step, 0.0] for step in range(steps)]
    counts = [sum(batch.units for batch in micro_batches) for micro_batches in made]
    batches = [
        [Batch(objective.head.to_model_inputs(batch.tensors), batch.targets, batch.units) for batch in micro_batches]
        for micro_batches in made
    ]
    torch.manual_seed(settings.seed)
    model = objective.head.build_model(settings.model).train()
    model.set_attn_implementation(options.kernel)
    choose_linear(model, options.linear)
    optimizer = make_optimizer(model, settings.optim)
    losses, started = [], 0.0
    for step, micro_batches in enumerate(batches):
        if step == 1:
            started = time.perf_counter()
        rate = learning_rate(settings.optim, settings.model.hidden_size, step + 1, step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        norm = options.max_grad_norm
        loss = update(model, optimizer, micro_batches, options.precision, norm, settings.seed, step)
        losses.append(loss.item())
    return sum(counts[1:]) / (time.perf_counter() - started), losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/pretrain/bert-pydocs.yaml")
    parser.add_argument("--steps", type=int, default=20, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options, more = parser.parse_known_args()
    fast: list[float] = []
    slow: list[float] = []
    difference = 0.0
    with tempfile.TemporaryDirectory() as runs:
        for round_number in range(options.rounds):
            settings = parse(
                [
                    f"--config={options.config}",
                    "--train.minutes=null",
                    f"--train.steps={options.steps}",
                    f"--runs={runs}",
                    f"--name=round-{round_number}",
                    "--log.every=1",
                    "--evaluation.every=0",
                    "--evaluation.examples=16",
                    "--evaluation.samples=0",
                    "--checkpoint.every=0",
                    *more,
                ]
            )
            one, losses = whole(settings)
            settled = parse([f"--config={settings.folder}/config.yaml"])
            other, expected = bare(settled, options.steps)
            slow.append(one)
            fast.append(other)
            difference = max(difference, *(abs(a - b) for a, b in zip(losses, expected, strict=True)))
    shares, unit = ratios(slow, fast), settings.objective.unit
    print_table(
        ["", "median (quartiles)"],
        [f"pretrain.py, {unit}/s", cell(slow, ",.0f")],
        [f"bare step, {unit}/s", cell(fast, ",.0f")],
        ["ratio", cell(shares, ".3f")],
    )
    result = {
        "ratio": spread(shares).median,
        f"{unit}_per_second": spread(slow).median,
        f"bare_{unit}_per_second": spread(fast).median,
        "loss_difference": difference,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
