"""One update from one step's micro-batches, on every process."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretraining.data import draws
from pretraining.errors import UserError
from pretraining.objectives.base import Batch


class NotFinite(UserError):
    """The gradient is NaN or infinite. The weights were not updated."""


def seed_of(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """Torch's seed for a micro-batch: dropout is then a function of it, whatever came before."""
    return int(draws.hash_key(seed, draws.TORCH, step, rank, micro_batch))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    to_model_inputs: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    accelerator: Accelerator,
    seed: int,
    step: int,
    max_grad_norm: float,
) -> tuple[dict[str, Tensor], int]:
    """One update from this process's micro-batches of step `step`.

    Every loss is a sum over targets divided by their number in the whole step, over all micro-batches and processes,
    so it does not matter how the step was cut.

    Args:
        to_model_inputs: the model's arguments from a batch's tensors on the device.

    Returns:
        This process's part of each loss, the norm of the gradient, and the step's units, padding not counted.

    Raises:
        NotFinite: the gradient is NaN or infinite. In fp16 the loss scaler first skips such steps and lowers its
            scale; this error comes once the scale is below 1.
    """
    device, ranks = accelerator.device, accelerator.num_processes
    # Counted before the first forward: a micro-batch must know the targets of the whole step to weigh its own. Divided
    # by its own count instead, a target in a short micro-batch would weigh more than one in a full one.
    names = list(micro_batches[0].targets)
    local = [sum(batch.targets[name] for batch in micro_batches) for name in names]
    local.append(sum(batch.units for batch in micro_batches))
    *targets, units = accelerator.reduce(torch.tensor(local, device=device), "sum").unbind()
    counts = {name: count.clamp(min=1) for name, count in zip(names, targets, strict=True)}

    losses: dict[str, Tensor] = {}
    for i, batch in enumerate(micro_batches):
        torch.manual_seed(seed_of(seed, step, accelerator.process_index, i))
        is_last = i == len(micro_batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(model):  # gradients travel once a step
            inputs = to_model_inputs(send_to_device(batch.tensors, device, non_blocking=True))
            out = model(**inputs, num_items_in_batch=counts)
            accelerator.backward(out.loss * ranks)  # DDP averages gradients over the processes; the sum is wanted
        for name, value in out.items():  # the loss and its parts: loss, mlm_loss, nsp_loss, each a scalar
            if name.endswith("loss"):
                losses[name] = losses.get(name, torch.zeros((), device=device)) + value.detach().float()

    norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
    if isinstance(norm, DTensor):  # FSDP2's: each process holds a part of the sum
        norm = norm.full_tensor()
    scaler = accelerator.scaler
    # The norm is equal on all processes, as the parts of the loss are not: all stop together. A scale below 1 makes
    # gradients smaller than they are, so what overflows then is the model.
    if not torch.isfinite(norm) and (scaler is None or scaler.get_scale() < 1):
        raise NotFinite(
            f"Step {step} is not finite: loss {float(losses['loss'])}, gradient norm {float(norm)}, learning rate "
            f"{optimizer.param_groups[0]['lr']:.2e}. Nothing was updated, and the checkpoints are as they were: resume "
            "from one with a lower optim.learning_rate, or with train.precision: fp32."
        )
    optimizer.step()
    optimizer.zero_grad()
    # Metrics are added up over the processes; of the norm, which all have, each gives its share.
    return {**losses, "gradient_norm": norm.detach() / ranks}, int(units)
