"""Tokens/s of the whole pretrain.py against the bare step on the same rows.

    python -m tests.benchmarks.whole_run [--config configs/pretrain/bert-pydocs.yaml] [--steps 20] [--rounds 5]

The bare step is forward, backward, clipping and AdamW in plain torch, on the run's own rows, made beforehand: what
is left of the whole run's time is data, accounting, logging and trackers. Evaluation and saving, whose share of a
run is a choice, are not in it. Rounds alternate in one process; the medians count.
"""

import argparse
import json
import statistics
import tempfile
import time

import torch
from torch.nn.utils import clip_grad_norm_

from pretraining.data import draws
from pretraining.data.batches import Steps
from pretraining.objectives import OBJECTIVES
from pretraining.optim import learning_rate, make_optimizer
from pretraining.parsing import parse
from pretraining.settings import Settings
from pretraining.train import make_accelerator, plan_epoch, train


def whole(settings: Settings) -> tuple[float, list[float]]:
    """Tokens/s and losses of a run, by its own metrics.jsonl; the first step, which warms up, is left out."""
    train(settings)
    lines = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "tokens" in line]
    first, last = steps[0], steps[-1]
    rate = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    return rate, [line["loss"] for line in steps]


def bare(settings: Settings, steps: int) -> tuple[float, list[float]]:
    """Tokens/s and losses of the same updates with nothing around them."""
    make_accelerator(settings)
    objective = OBJECTIVES[settings.objective.name](settings)
    objective.prepare(writer=True)
    plan = plan_epoch(objective, settings, 0)
    data = Steps(objective, "train", 0, plan, settings.train.micro_batch, 0, 1)
    batches = [data[step, 0.0] for step in range(steps)]
    torch.manual_seed(settings.seed)
    model = objective.build_model(settings.model).train()
    model.set_attn_implementation(settings.train.kernel)
    optimizer = make_optimizer(model, settings.optim)
    tokens, losses, started = 0, [], 0.0
    for step, micro_batches in enumerate(batches):
        if step == 1:
            tokens, started = 0, time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings.optim, settings.model.hidden_size, step + 1, step / steps)
        counts = {
            name: torch.tensor(sum(int((batch[name] != -100).sum()) for batch in micro_batches))
            for name in objective.targets
        }
        total = 0.0
        for i, batch in enumerate(micro_batches):
            torch.manual_seed(int(draws.mix(settings.seed, draws.TORCH, step, 0, i)))
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.train.precision == "bf16"):
                loss = model(**batch, num_items_in_batch=counts).loss
            loss.backward()
            total += loss.item()
            tokens += objective.tokens(batch)
        clip_grad_norm_(model.parameters(), settings.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return tokens / (time.perf_counter() - started), losses


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
            other, expected = bare(settings, options.steps)
            slow.append(one)
            fast.append(other)
            difference = max(difference, *(abs(a - b) for a, b in zip(losses, expected, strict=True)))
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    print(f"\n{'':12}{'median':>12}{'lowest':>12}{'highest':>12}")
    for name, values in (("pretrain.py", slow), ("bare step", fast)):
        print(f"{name:12}{statistics.median(values):12,.0f}{min(values):12,.0f}{max(values):12,.0f}  tokens/s")
    print(f"{'ratio':12}{statistics.median(ratios):12.3f}{min(ratios):12.3f}{max(ratios):12.3f}")
    result = {
        "ratio": statistics.median(ratios),
        "tokens_per_second": statistics.median(slow),
        "bare_tokens_per_second": statistics.median(fast),
        "loss_difference": difference,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
