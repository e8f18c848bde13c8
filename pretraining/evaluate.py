"""Held-out evaluation: the same examples, masks and rows every time."""

import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn

from pretraining.batches import Steps
from pretraining.data.plan import Plan, make_plan
from pretraining.objectives.base import Batch, Examples, Objective
from pretraining.settings import Settings, TrainSettings

EPOCH = 0  # Held-out examples are always drawn as in this epoch.


def make_evaluation_plan(examples: Examples, settings: Settings) -> Plan:
    """The rows of the held-out examples, at most `evaluation.examples` of them."""
    index = examples.index("validation", EPOCH)
    if settings.evaluation.examples:
        index = index[: settings.evaluation.examples]
    lengths = examples.lengths("validation", EPOCH, index)
    rows, window = settings.train.rows_per_step, settings.train.window
    return make_plan(index, lengths, examples.row_lengths, lambda _: rows, window, 0, EPOCH, shuffle=False)


def held_out_batches(
    objective: Objective, plan: Plan, options: TrainSettings, accelerator: Accelerator
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """This process's batches of the held-out rows, and the model's arguments from each."""
    assert isinstance(options.micro_batch, int), "autotuned"
    rank, ranks = accelerator.process_index, accelerator.num_processes
    steps = Steps(objective.examples, "validation", EPOCH, plan, options.micro_batch, rank, ranks)
    for micro_batches in steps.since(0, options.workers):
        for batch in micro_batches:
            yield batch, objective.head.to_model_inputs(send_to_device(batch.tensors, accelerator.device))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    plan: Plan,
    options: TrainSettings,
    accelerator: Accelerator,
    final: bool = False,
) -> dict[str, float]:
    """Every metric of the held-out rows, all processes together; the model is left in eval mode.

    Args:
        final: at the run's end, of the weights that are handed over.
    """
    model.eval()
    sums: dict[str, Tensor] = {}
    records: list = []  # of this process's examples
    with accelerator.autocast():
        for batch, inputs in held_out_batches(objective, plan, options, accelerator):
            found, examples = objective.scoring.observe(model, inputs, batch)
            records += examples
            for name, sum_and_count in found.items():
                total = torch.stack([part.double() for part in sum_and_count])  # (2,)
                sums[name] = sums.get(name, torch.zeros_like(total)) + total
        scores = objective.scoring.score_outputs(model, plan.examples, accelerator, final)
    scores |= objective.scoring.score_records(gather_object(records), final)
    totals = {name: accelerator.reduce(total, "sum").tolist() for name, total in sums.items()}
    # The mean of nothing is no number.
    return {name: total / count if count else math.nan for name, (total, count) in totals.items()} | scores
