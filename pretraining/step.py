"""One update, exact however it is cut; and what is kept of one that went wrong."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from pretraining.batches import Batch
from pretraining.data import draws
from pretraining.errors import UserError
from pretraining.export import write_model
from pretraining.files import to_json
from pretraining.objectives import Objective
from pretraining.settings import Settings


class NotFinite(UserError):
    """A loss or gradient that is infinite or no number; the weights are as they were."""


def seed_of(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """Torch's seed for a micro-batch: dropout is then a function of it, whatever came before."""
    return int(draws.hash_key(seed, draws.TORCH, step, rank, micro_batch))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    objective: Objective,
    accelerator: Accelerator,
    seed: int,
    step: int,
    max_grad_norm: float,
) -> tuple[dict[str, Tensor], int]:
    """One update from this process's micro-batches of step `step`.

    Every loss is a sum over targets divided by their number in the whole step, over all micro-batches and processes,
    so it does not matter how the step was cut.

    Returns:
        This process's part of each loss, the norm of the gradient, and the step's units, padding not counted.

    Raises:
        NotFinite: the loss or its gradient is not finite; the weights are untouched. In fp16 the loss scaler first
            lowers its scale, which skips the step, and this is raised where that no longer helps.
    """
    device, ranks = accelerator.device, accelerator.num_processes
    found = [objective.count_targets(batch) for batch in micro_batches]
    local = [sum(counts[name] for counts in found) for name in objective.targets]
    local.append(sum(objective.count(batch) for batch in micro_batches))
    *targets, units = accelerator.reduce(torch.tensor(local, device=device), "sum").unbind()
    counts = {name: count.clamp(min=1) for name, count in zip(objective.targets, targets, strict=True)}

    losses: dict[str, Tensor] = {}
    for i, batch in enumerate(micro_batches):
        torch.manual_seed(seed_of(seed, step, accelerator.process_index, i))
        last = i == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            inputs = objective.finish(send_to_device(batch, device, non_blocking=True))
            out = model(**inputs, num_items_in_batch=counts)
            accelerator.backward(out.loss * ranks)  # gradients are averaged over the processes: the sum is wanted
        for name, value in out.items():
            if name.endswith("loss"):
                losses[name] = losses.get(name, torch.zeros((), device=device)) + value.detach().float()

    norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
    scaler = accelerator.scaler
    # The norm is equal on all processes, as the parts of the loss are not: all stop together.
    if not torch.isfinite(norm) and (scaler is None or scaler.get_scale() < 1):
        raise NotFinite(
            f"Step {step} is not finite: loss {float(losses['loss'])}, gradient norm {float(norm)}, learning rate "
            f"{optimizer.param_groups[0]['lr']:.2e}. Nothing was updated, and the checkpoints are as they were: resume "
            "from one with a lower optim.learning_rate, or with train.precision: fp32."
        )
    optimizer.step()
    optimizer.zero_grad()
    return {**losses, "gradient_norm": norm.detach() / ranks}, int(units)


def keep_bad_step(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    micro_batches: list[Batch],
    settings: Settings,
    step: int,
) -> Path:
    """Writes all that replaying a step that was not finite needs: weights, batches, seeds; every process calls this.

    `python -m pretraining.bad_step FOLDER` computes it again.
    """
    kept = folder / f"bad-step-{step}"
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        kept.mkdir(parents=True, exist_ok=True)
        unwrapped = accelerator.unwrap_model(model)
        write_model(unwrapped, weights, kept)
        facts: dict[str, Any] = {
            "step": step,
            "seed": settings.seed,
            "processes": accelerator.num_processes,
            "class": type(unwrapped).__name__,
            "precision": settings.train.precision,
            "kernel": settings.train.kernel,
        }
        (kept / "replay.json").write_text(to_json(facts, indent=1))
    accelerator.wait_for_everyone()
    finished = [objective.finish(send_to_device(batch, accelerator.device)) for batch in micro_batches]
    torch.save(send_to_device(finished, "cpu"), kept / f"rank-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    return kept
