"""The counts and the fits of the complexity benchmark."""

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks import complexity
from tests.benchmarks.complexity import Fit
from tests.benchmarks.complexity_layers import (
    HEAD,
    LAYERS,
    LEADING_PRODUCT,
    NEIGHBOURS,
    Point,
    chain,
    longest_chain,
    operations,
)


@pytest.mark.parametrize(("length", "width"), [(24, 64), (40, 2 * HEAD)])
def test_operations(length: int, width: int):
    """As in the table at the head of the file: two for each product of a matrix product."""
    counts = {layer: operations(Point(layer, length, width)) for layer in LAYERS}
    leading = {layer: counts[layer][name] for layer, name in LEADING_PRODUCT.items()}
    assert leading["attention"] == 4 * length**2 * width
    assert sum(counts["attention"].values()) - leading["attention"] == 8 * length * width**2
    assert leading["recurrence"] == sum(counts["recurrence"].values()) == 12 * length * width**2
    assert leading["convolution"] == sum(counts["convolution"].values()) == 2 * NEIGHBOURS * length * width**2


def test_chains():
    """A token of a recurrence waits for the one before it; nothing of the other layers does."""
    short, middle, long = ({layer: chain(Point(layer, n, 8)) for layer in LAYERS} for n in (8, 16, 24))
    assert long["recurrence"] - middle["recurrence"] == middle["recurrence"] - short["recurrence"] >= 8
    for layer in ("attention", "convolution"):
        assert long[layer] == short[layer]


def test_longest_chain_is_the_longest():
    x = torch.ones(1, requires_grad=True)
    assert longest_chain(x.exp() + x.exp().exp().exp()) == 5  # x itself, three exp, and the sum
    y = x
    for _ in range(3000):  # deeper than Python's own stack
        y = y + 0
    assert longest_chain(y) == 3001


def test_a_fit_finds_a_power():
    fit = Fit.of([2, 4, 8, 16], [3.0 * size**1.5 for size in (2, 4, 8, 16)])
    assert (fit.exponent, fit.error) == (1.5, 0.0) and fit.factor == pytest.approx(3)


@pytest.mark.usefixtures("pictures")
def test_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    sizes = ["--width=16", "--lengths", "128", "192", "256", "--length=128", "--widths", "8", "12", "16"]
    complexity.main([*sizes, "--rounds=1", "--device=cpu", f"--out={tmp_path / 'picture.png'}"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["attention"]["over n at d = 8"]["chain"] == [0.0, 0.0]
    assert result["attention"]["over d at n = 128"]["leading"] == [1.0, 0.0]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_sizes(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        complexity.main(["--lengths", "64", "512", "1024"])
    assert "name three sizes or more at which n is 8 d or more" in capsys.readouterr().err
