"""Parameter groups, the optimizer, and the learning rate as a function of where the run is."""

import math

import torch
from torch import nn

from pretraining.settings import OptimSettings


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms and other vectors do not (Devlin 2018, released code)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov 2017); its learning rate is set before every step."""
    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
    )


def learning_rate(settings: OptimSettings, hidden_size: int, step: int, progress: float) -> float:
    """The learning rate of a step.

    Args:
        hidden_size: of the model: noam's own peak is (hidden_size * warmup) ** -0.5 (Vaswani 2017, 5.3).
        step: steps done, this one included.
        progress: share of the budget spent before this step, 0 to 1.
    """
    if settings.warmup >= 1:
        warm = min(1.0, step / settings.warmup)
    else:
        warm = min(1.0, progress / settings.warmup) if settings.warmup else 1.0
    peak = settings.learning_rate
    if peak is None:
        peak = (hidden_size * settings.warmup) ** -0.5
    if settings.schedule == "noam":
        return peak * min(warm, (settings.warmup / step) ** 0.5)
    # What is left after warm-up, 1 to 0: a warm-up in steps is short against the budget, so it is not taken off.
    start = settings.warmup if settings.warmup < 1 else 0.0
    left = min(1.0, (1 - progress) / (1 - start))
    shape = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 - 0.5 * math.cos(math.pi * left),
        "wsd": min(1.0, (1 - progress) / settings.decay) if settings.decay else 1.0,
    }
    return peak * warm * shape[settings.schedule]
