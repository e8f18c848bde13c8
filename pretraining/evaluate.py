"""Held-out evaluation: the same examples, masks and rows every time; and how it is told."""

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from pretraining.batches import Steps
from pretraining.data.plan import Plan, make_plan
from pretraining.objectives import Objective
from pretraining.settings import Settings, TrainSettings

EPOCH = 0  # whose draws the held-out examples keep
GROUPS = 25  # classes or locales whose measures are told


def make_evaluation_plan(objective: Objective, settings: Settings) -> Plan:
    """The rows of the held-out examples, at most `evaluation.examples` of them."""
    index = objective.index("validation", EPOCH)
    if settings.evaluation.examples:
        index = index[: settings.evaluation.examples]
    lengths = objective.lengths("validation", EPOCH, index)
    train = settings.train
    rows = train.rows_per_step
    return make_plan(index, lengths, objective.row_lengths, lambda _: rows, train.window, 0, EPOCH, shuffle=False)


@torch.no_grad()
def evaluate(
    model: nn.Module, objective: Objective, plan: Plan, settings: TrainSettings, accelerator: Accelerator
) -> dict[str, float]:
    """Every measure of the objective over the held-out rows, all processes together; the model is left in eval mode."""
    assert isinstance(settings.micro_batch, int)
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    steps = Steps(
        objective, "validation", EPOCH, plan, settings.micro_batch, accelerator.process_index, accelerator.num_processes
    )
    with accelerator.autocast():
        for micro_batches in steps.since(0, settings.workers):
            for batch in micro_batches:
                inputs = objective.finish(send_to_device(batch, accelerator.device))
                measures = objective.evaluate(model, inputs)
                for name, pair in measures.items():
                    total = torch.stack([part.double() for part in pair])
                    sums[name] = sums.get(name, torch.zeros_like(total)) + total
        judged = objective.judge(model, plan.examples, accelerator)
    totals = {name: accelerator.reduce(total, "sum").tolist() for name, total in sums.items()}
    return {name: total / max(count, 1) for name, (total, count) in totals.items()} | judged


def report(step: int, examples: int, measures: dict[str, float], signatures: dict[str, str]) -> str:
    """How good the exported weights are; of many groups (classes, locales) the worst."""
    lines = [f"held out, {examples:,} examples, the weights of step {step:,}:"]
    groups = sorted((name for name in measures if " " in name), key=measures.__getitem__)
    for name, value in measures.items():
        if name in groups[GROUPS:]:
            continue
        name = name.removeprefix("eval_")
        lines.append(f"  {name:18} {value:.4f}  {signatures.get(name, '')}".rstrip())
    if len(groups) > GROUPS:
        lines.append(f"  and {len(groups) - GROUPS:,} that are better, in results.json")
    return "\n".join(lines)
