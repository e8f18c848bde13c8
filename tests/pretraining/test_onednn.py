"""Linear layers by oneDNN are linear layers: in full precision, and without a trace in the model."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from pretraining.onednn import choose_linear, has_onednn_linear


@pytest.mark.skipif(not has_onednn_linear(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_linear_is_linear_in_full_precision(bias: bool):
    torch.manual_seed(0)
    module = nn.Linear(48, 24, bias=bias)
    x = torch.randn(5, 7, 48, requires_grad=True)
    results = []
    for kind in ("torch", "onednn", "torch"):
        choose_linear(nn.Sequential(module), kind)
        out = module(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])])
    exact = linear(x.double(), module.weight.double(), None if module.bias is None else module.bias.double())
    for one, other, again in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert torch.equal(one, again), "the choice is not undone"
    assert (results[1][0] - exact).abs().max() < 1e-5
    assert "forward" not in vars(module) and type(module) is nn.Linear
