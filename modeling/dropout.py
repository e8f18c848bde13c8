"""Dropout (Srivastava 2014) whose masks cost little on a CPU."""

import torch
from torch import Tensor, nn

PER_DRAW = 4  # masks of 16 bits in one 64-bit random number


class CheapMask(torch.autograd.Function):
    """Torch draws a CPU mask by one Bernoulli number for each element, on one thread: a sixth of a BERT step.

    Here one 64-bit number serves four elements, so that the rate is exact to 2^-17.
    """

    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        bits = torch.empty(-(-x.numel() // PER_DRAW), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        dropped = round(rate * 2**16)  # of the 2^16 values, from -2^15 up
        # Floats in place: on CPU far faster than comparing and multiplying by booleans.
        mask = bits[: x.numel()].float().add_(2**15 - dropped + 1).clamp_(0, 1).mul_(1 / (1 - rate))
        mask = mask.view(x.shape).to(x.dtype)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return gradient * mask, None


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """While training, zeroes a share `rate` of x and scales the rest by 1 / (1 - rate); a no-op otherwise."""
    if not training or not rate:
        return x
    if x.device.type == "cpu" and rate < 1 and not torch.compiler.is_compiling():
        return CheapMask.apply(x, rate)
    return nn.functional.dropout(x, rate)


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)
