"""Linear layers by oneDNN in full fp32, whose products are faster than those of torch's own library on some CPUs."""

from types import MethodType

import torch
from torch import Tensor, nn


class OneDNNLinear(torch.autograd.Function):
    """x W^T + b."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return matrix_product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        of_x = matrix_product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = matrix_product(flat.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, flat.sum(0) if ctx.has_bias else None


def matrix_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: (..., D) and (E, D) -> (..., E)."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.contiguous(), bias, "none", [], "")


def onednn_forward(module: nn.Linear, x: Tensor) -> Tensor:
    return OneDNNLinear.apply(x, module.weight, module.bias)


def has_onednn_linear() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def choose_linear(model: nn.Module, linear: str) -> None:
    """Linear layers by torch or by oneDNN; the module's class and parameters stay what they are."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if linear == "onednn":
                module.forward = MethodType(onednn_forward, module)  # type: ignore[method-assign]
            else:
                vars(module).pop("forward", None)
