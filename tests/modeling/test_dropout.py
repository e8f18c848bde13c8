"""Dropout and stochastic depth: the rate, the scale, the gradient and the seed, on the CPU path of our own."""

import pytest
import torch
from torch import nn

from modeling.dropout import drop_path, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.37, 0.5])
def test_rate_and_scale(rate: float, dtype: torch.dtype):
    x = torch.ones(1_000_003, dtype=dtype)  # no multiple of four
    out = dropout(x, rate, training=True)
    dropped = out == 0
    # Three standard stds of a proportion over a million draws: 3 sqrt(p (1 - p) / n) <= 0.0015.
    assert dropped.float().mean().item() == pytest.approx(rate, abs=0.0016)
    assert torch.equal(out[~dropped], torch.full_like(x, 1 / (1 - rate))[~dropped])
    # Neither what is dropped nor its neighbours follow from one another, four numbers coming from one draw.
    for lag in (1, 2, 3, 4):
        both = (dropped[lag:] & dropped[:-lag]).float().mean().item()
        assert both == pytest.approx(rate**2, abs=0.002)


def test_gradient_is_that_of_the_same_mask():
    x = torch.randn(64, 96, requires_grad=True)
    out = dropout(x, 0.2, training=True)
    mask = out.detach() / x.detach()
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out) * 3)
    assert torch.allclose(gradient, 3 * mask)


def test_a_function_of_torch_s_seed():
    x = torch.randn(1000)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(dropout(x, 0.3, training=True))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert dropout(x, 0.3, training=False) is x and dropout(x, 0.0, training=True) is x
    assert not dropout(x, 1.0, training=True).any()


@pytest.mark.parametrize("rowwise", [False, True])
def test_rows_that_are_dropped(rowwise: bool):
    """A row is what it was, or has its branch scaled: at the rate, by torch's seed."""
    x = torch.arange(1.0, 20_001)[:, None].expand(-1, 3)
    torch.manual_seed(0)
    out, again = (drop_path(x, lambda y: y * y, 0.3, rowwise) for _ in range(2))
    kept = (out != x).all(1)
    assert torch.equal(out[~kept], x[~kept])
    torch.testing.assert_close(out[kept], (x + x * x / 0.7)[kept])
    assert (~kept).float().mean().item() == pytest.approx(0.3, abs=0.01)  # 3 stds: 3 sqrt(0.21 / 20000)
    assert not torch.equal(out, again)
    torch.manual_seed(0)
    assert torch.equal(drop_path(x, lambda y: y * y, 0.3, rowwise), out)


@pytest.mark.parametrize("rate", [0.4, 0.999])
def test_rows_that_are_not_computed_change_nothing(rate: float):
    torch.manual_seed(0)
    branch, x = nn.Linear(5, 5).double(), torch.randn(12, 3, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for rowwise in (False, True):
        torch.manual_seed(1)
        out = drop_path(x, branch, rate, rowwise)
        found.append([out, *torch.autograd.grad(out.sin().sum(), [x, *branch.parameters()])])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert (found[0][0] != x).any() == (rate < 0.9)  # at 0.999 nothing is computed, and gradients are there
