"""Parameter groups, the optimizer, the averaged weights, and the learning rate as a function of where the run is."""

import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pretraining.settings import OptimSettings


def layers_to_top(names: list[str]) -> dict[str, int]:
    """How far each parameter is from the heads: 0 what stands on the blocks, 1 the last block, and so on to embeddings.

    An encoder and a decoder may be of unlike depth, and each is counted from its own top: a decoder's last block is as
    near to the loss as an encoder's is to what it hands over.
    """
    found = dict.fromkeys(names, 0)
    body = [name for name in names if not name.startswith("decoder.")]  # of masked images: a head
    for stack in (False, True):
        own = [name for name in body if (".decoder." in name) is stack]
        blocks = {name: int(block[1]) for name in own if (block := re.search(r"\.blocks\.(\d+)\.", name))}
        depth = max(blocks.values(), default=-1) + 1
        found |= {name: depth - number for name, number in blocks.items()}
        found |= {name: depth + 1 for name in own if "embeddings." in name}
    return found


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """Parameters that are treated alike: `matrix` of a block or not, `weight_decay`, and `scale` of the learning rate.

    The scale falls from layer to layer by `layer_decay` (Clark 2020, appendix). Matrices and kernels decay;
    biases and norms do not (Devlin 2018, released code), nor do ViT's class and mask tokens and its table of positions
    (1, P, D) (Touvron 2020, released code).
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    below = layers_to_top([name for name, _ in named])
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in named:
        scale = settings.layer_decay ** below[name]
        decays = parameter.ndim in (2, 4)
        matrix = parameter.ndim == 2 and ".blocks." in name
        decay = settings.weight_decay if decays else 0.0
        group = {"params": [], "weight_decay": decay, "scale": scale, "matrix": matrix}
        # By what decays, not by how much: a resumed run may change that, and finds the groups of its checkpoint.
        groups.setdefault((decays, scale, matrix), group)["params"].append(parameter)
    return list(groups.values())


def orthogonalise(x: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float) -> Tensor:
    """Brings the singular values of matrices (N, rows, columns) near 1, by Newton-Schulz steps (Jordan 2024)."""
    a, b, c = coefficients
    wide = x if x.shape[1] <= x.shape[2] else x.mT
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=epsilon)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.shape[1] <= x.shape[2] else wide.mT


class FullPrecisionMuon(torch.optim.Muon):
    """Torch's Muon with its products in fp32 instead of bf16, for CPUs where that is several times faster."""

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            gradients: list[Any] = [weight.grad for weight in weights]
            for weight in weights:
                if "momentum_buffer" not in self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            for shape in {weight.shape for weight in weights}:
                same = [i for i, weight in enumerate(weights) if weight.shape == shape]
                stack = torch.stack([updates[i] for i in same])
                moved = orthogonalise(stack, group["ns_coefficients"], group["ns_steps"], group["eps"])
                for i, update in zip(same, moved, strict=True):
                    weights[i].mul_(1 - group["lr"] * group["weight_decay"])
                    weights[i].add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)  # as match_rms_adamw does


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for some groups and AdamW for the others, as one optimizer: one step, one state, one loss scaler."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        self.parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self.share_groups()

    def share_groups(self) -> None:
        """A learning rate that is set here is set in the parts."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.share_groups()


def make_optimizer(model: nn.Module, settings: OptimSettings, precision: str = "fp32") -> torch.optim.Optimizer:
    """The optimizer that the settings name; its learning rate is set before every step.

    Args:
        precision: of the run: Muon's products are in bf16 (torch's own) or, for fp32, in fp32.
    """
    groups = parameter_groups(model, settings)
    matrices = [group for group in groups if group["matrix"]] if settings.optimizer == "muon" else []
    others = [group for group in groups if not matrices or not group["matrix"]]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    adamw = torch.optim.AdamW(others, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=fused)
    if not matrices:
        return adamw
    # The scale that gives Muon's update the size of AdamW's: one learning rate serves both.
    kind = FullPrecisionMuon if precision == "fp32" else torch.optim.Muon
    muon = kind(matrices, lr=0.0, momentum=settings.momentum, adjust_lr_fn="match_rms_adamw")
    return MuonAndAdamW(muon, adamw)


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of the weights (Polyak 1992), whose memory grows with the steps up to 1 / (1 - decay)."""

    @torch.no_grad()
    def update(averages, weights, steps) -> None:
        share = 1 - min(decay, float((1 + steps) / (10 + steps)))
        torch._foreach_lerp_(list(averages), list(weights), share)

    return AveragedModel(model, multi_avg_fn=update)


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
