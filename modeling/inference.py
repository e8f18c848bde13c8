"""A seq2seq model's weights as its searches want them, and the encoder over them.

B sentences, S source tokens, R rows that they share, H heads, D hidden size, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import TokenEmbeddings


def cast(weight: Tensor) -> Tensor:
    """What autocast would do in every single step."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


class Affine(NamedTuple):
    """x W + b for rows x, without the transposing of `linear` at every call."""

    weight: Tensor  # (inputs, outputs)
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


def affine(*linears: nn.Linear) -> Affine:
    """The one layer that stands for all these side by side.

    On CPUs its matrix does not lie as torch's: products with 4 to 128 rows then take a fifth to a third less time.
    """
    weights, biases = zip(*((linear.weight, linear.bias) for linear in linears), strict=True)
    several = len(linears) > 1
    weight = cast(torch.cat(weights) if several else weights[0]).t()
    if weight.device.type == "cpu":
        weight = weight.contiguous()
    if biases[0] is None:
        return Affine(weight, None)
    return Affine(weight, cast(torch.cat(biases) if several else biases[0]))


class Norm(NamedTuple):
    """A layer norm, its numbers at hand: a module would look up each by name."""

    shape: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, *self)


def norm_of(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class AttentionWeights(NamedTuple):
    into: Affine  # queries, keys and values (D, 3 D); over a memory queries alone (D, D)
    output: Affine
    norm: Norm


class BlockWeights(NamedTuple):
    """What is needed of a block: with one sentence, module calls are a third of the time."""

    own: AttentionWeights
    cross: AttentionWeights | None  # a decoder's
    up: Affine
    activation: Callable[[Tensor], Tensor]
    down: Affine
    norm: Norm

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class StackWeights(NamedTuple):
    embeddings: TokenEmbeddings
    blocks: list[BlockWeights]
    norm: nn.Module


class Weights(NamedTuple):
    encoder: StackWeights
    decoder: StackWeights
    memory: Affine  # every decoder block's keys and values of the memory: (D, blocks 2 D)
    output: Affine  # (D, V)
    heads: int
    pre_norm: bool

    def residual(self, norm: Norm, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """`layers.Residual` without dropout."""
        return x + branch(norm(x)) if self.pre_norm else norm(x + branch(x))


def block_weights(block: Any) -> BlockWeights:
    own, forward, cross = block.attention, block.feed_forward, None
    if hasattr(block, "cross_attention"):
        module, norm = block.cross_attention, norm_of(block.cross_attention_residual.norm)
        cross = AttentionWeights(affine(module.query), affine(module.output), norm)
    return BlockWeights(
        AttentionWeights(
            affine(own.query, own.key, own.value), affine(own.output), norm_of(block.attention_residual.norm)
        ),
        cross,
        affine(forward.up),
        forward.activation,
        affine(forward.down),
        norm_of(block.feed_forward_residual.norm),
    )


def weights_of(model: Any) -> Weights:
    stacks = [
        StackWeights(part.embeddings, [block_weights(block) for block in part.stack.blocks], part.stack.norm)
        for part in (model.model.encoder, model.model.decoder)
    ]
    cross = (block.cross_attention for block in model.model.decoder.stack.blocks)
    return Weights(
        stacks[0],
        stacks[1],
        affine(*(linear for module in cross for linear in (module.key, module.value))),
        Affine(affine(model.lm_head).weight, cast(model.final_logits_bias[0].to(model.lm_head.weight.dtype))),
        model.config.num_attention_heads,
        model.config.norm_position == "pre",
    )


def modules_of(module: nn.Module) -> Iterator[nn.Module]:
    """`modules()`, which with one sentence would take as long as a block does: it makes names."""
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from modules_of(child)


class Kept(NamedTuple):
    """Weights, and what they were made of: under which autocast, of which modules, tensors and versions of these."""

    weights: Weights
    made_of: tuple[torch.dtype, list[nn.Module], list[tuple[int, int]]]
    tensors: list[Tensor]  # held, for nothing else to be put in their place in memory


KEPT: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()


def kept_weights_of(model: Any) -> Weights:
    """The same, made anew where a module or a weight has changed, or `train()` or `eval()` has been called, since."""
    modules = [*modules_of(model.model), model.lm_head]
    tensors = [x for module in modules for x in module._parameters.values() if x is not None]
    tensors.append(model.final_logits_bias)
    if any(tensor.is_inference() for tensor in tensors):  # which do not tell that they have changed
        return weights_of(model)
    dtype = cast(model.final_logits_bias[:0]).dtype
    made_of = dtype, modules, [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    kept = KEPT.get(model)
    if kept is None or kept.made_of != made_of:
        kept = KEPT[model] = Kept(weights_of(model), made_of, [tensor.detach() for tensor in tensors])
    return kept.weights


# The encoder


def rows_of(lengths: list[int], room: int) -> list[list[int]]:
    """Which sources share a row: with the longest left, the shortest that there is room for."""
    left = deque(sorted(range(len(lengths)), key=lengths.__getitem__))
    rows = []
    while left:
        rows.append([left.pop()])
        free = room - lengths[rows[-1][0]]
        while left and lengths[left[0]] <= free:
            rows[-1].append(left.popleft())
            free -= lengths[rows[-1][-1]]
    return rows


def encode(weights: Weights, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The memory (B, S, D) of sources (B, S), several of which share a row, for little of it to be padding.

    A source's positions count from its first token that is no padding.
    """
    if attention_mask is None or attention_mask.all():
        return states(weights, input_ids, None, None)
    real = attention_mask != 0
    lengths = real.sum(1).tolist()
    room = max(1, *lengths)
    rows = rows_of(lengths, room)
    starts, numbers = [0] * len(lengths), [0] * len(lengths)  # where in the flattened rows, and the how manieth there
    for row, members in enumerate(rows):
        start = row * room
        for number, at in enumerate(members, 1):
            starts[at], numbers[at] = start, number
            start += lengths[at]
    start, number = torch.tensor([starts, numbers], device=real.device)[..., None]  # (B, 1) each
    places = start + real.cumsum(1) - 1  # (B, S)
    columns = torch.arange(real.shape[1], device=real.device) - real.int().argmax(1, keepdim=True)
    packed = torch.zeros(3, len(rows) * room, dtype=torch.long, device=real.device)
    packed[:, places[real]] = torch.stack([input_ids, columns, number.expand_as(columns)])[:, real]
    ids, positions, owners = packed.view(3, -1, room)
    return states(weights, ids, positions, owners).flatten(0, 1)[places.where(real, 0)]


def states(weights: Weights, ids: Tensor, positions: Tensor | None, owners: Tensor | None) -> Tensor:
    """The encoder's states (R, S, D) of ids (R, S), of which those with one owner see one another."""
    embeddings, blocks, norm = weights.encoder
    if positions is not None:
        embeddings.check_length(int(positions.max()) + 1)
    x = embeddings(ids, position_ids=positions).flatten(0, 1)  # (R S, D)
    mask = None  # (R, 1, S, S)
    if owners is not None:
        strangers = owners[:, None, :, None] != owners[:, None, None]
        like = weights.memory.weight  # under autocast x is wider yet
        mask = like.new_zeros(strangers.shape).masked_fill_(strangers, torch.finfo(like.dtype).min)

    def attention(own: AttentionWeights, x: Tensor) -> Tensor:
        q, k, v = own.into(x).view(*ids.shape, 3, weights.heads, -1).permute(2, 0, 3, 1, 4)  # (R, H, S, D/H) each
        mixed = F.scaled_dot_product_attention(q, k, v, mask)
        return own.output(mixed.transpose(1, 2).reshape(x.shape))

    for block in blocks:
        x = weights.residual(block.own.norm, x, partial(attention, block.own))
        x = weights.residual(block.norm, x, block.feed_forward)
    return norm(x).unflatten(0, ids.shape)
