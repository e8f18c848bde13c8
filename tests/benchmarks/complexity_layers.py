"""One layer of attention, of recurrence and of convolution: its operations, its longest chain, its seconds.

n tokens, d the width.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modeling import KeelBertConfig
from modeling.attention import MultiHeadAttention
from pretraining.autotune import synchronize

Layer = Callable[[Tensor], Tensor]
HEAD, NEIGHBOURS = 64, 3
RATIO = 8  # n / d from which attention's first term is 80 % of its operations
SHORTEST = 0.02  # seconds of one measurement: a layer that is faster runs several times


def attention(width: int) -> Layer:
    config = KeelBertConfig(
        hidden_size=width, num_attention_heads=math.ceil(width / HEAD), attention_probs_dropout_prob=0.0
    )
    config._attn_implementation = "sdpa"
    layer = MultiHeadAttention(config)
    return lambda x: layer(x)[0]


def recurrence(width: int) -> Layer:
    layer = nn.GRU(width, width, batch_first=True)
    return lambda x: layer(x)[0]


def convolution(width: int) -> Layer:
    layer = nn.Conv1d(width, width, NEIGHBOURS, padding=NEIGHBOURS // 2)
    return lambda x: layer(x.transpose(1, 2))


LAYERS: dict[str, Callable[[int], Layer]] = {
    "attention": attention,
    "recurrence": recurrence,
    "convolution": convolution,
}
# The product that leads each layer's operations, by the name that torch counts it under.
LEADING_PRODUCT = {"attention": "aten.bmm", "recurrence": "aten.addmm", "convolution": "aten.convolution"}


class Point(NamedTuple):
    """A layer of width d on a sequence of length n."""

    layer: str
    length: int
    width: int
    backward: bool = False


@functools.cache
def operations(point: Point) -> dict[str, int]:
    """Multiplications and additions in each kind of product of the forward pass, by its name."""
    # Nothing is computed on `meta`; but the steps of a recurrence take far longer there than on a CPU.
    with torch.device("cpu" if point.layer == "recurrence" else "meta"):
        layer, x = LAYERS[point.layer](point.width), torch.zeros(1, point.length, point.width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    return {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}


def is_led(point: Point) -> bool:
    """Whether the term that the paper's table names leads the layer's operations."""
    return point.layer != "attention" or point.length >= RATIO * point.width


def longest_chain(y: Tensor) -> int:
    """How many operations, one upon another, led to y: the longest path through its autograd graph."""
    lengths: dict[Any, int] = {}
    waiting = [y.grad_fn]
    while waiting:  # a stack, since Python's own ends at a thousand
        node = waiting[-1]
        before = [other for other, _ in node.next_functions if other is not None]
        unknown = [other for other in before if other not in lengths]
        waiting += unknown
        if not unknown:
            lengths[waiting.pop()] = 1 + max((lengths[other] for other in before), default=0)
    return lengths[y.grad_fn]


def chain(point: Point) -> int:
    x = torch.zeros(1, point.length, point.width, requires_grad=True)
    return longest_chain(LAYERS[point.layer](point.width)(x))


def timer(point: Point, device: torch.device) -> Callable[[], float]:
    """A function that returns the seconds of the layer at this point, on the mean of as many runs as it needs."""
    with device:
        layer = LAYERS[point.layer](point.width)
        x = torch.randn(1, point.length, point.width, requires_grad=point.backward)

    def run(times: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(times):
            with torch.set_grad_enabled(point.backward):
                y = layer(x)
            if point.backward:
                y.sum().backward()
        synchronize(device)
        return (time.perf_counter() - start) / times

    run(1)  # it warms up
    times = math.ceil(SHORTEST / run(1))
    return lambda: run(times)
