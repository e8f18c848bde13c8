"""The weights of a seq2seq model in the layout that search.py reads, and the encoder computed with them.

B sentences, S source tokens, R packed rows of sentences, H heads, D hidden size, V vocabulary.
"""

import copy
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import TokenEmbeddings


def cast(weight: Tensor) -> Tensor:
    """Once, what autocast would do in every step."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:  # which autocast leaves alone
        return weight
    return weight.to(torch.get_autocast_dtype(device))


class Affine(NamedTuple):
    """x W + b for rows x; `nn.functional.linear` would transpose W at every call."""

    weight: Tensor  # (inputs, outputs)
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


def additive_mask(unseen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores: the lowest number where `unseen` is True, else 0."""
    return torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill_(unseen, torch.finfo(dtype).min)


def affine(*linears: nn.Linear) -> Affine:
    """All these layers as one, their outputs side by side.

    On a CPU the matrix is copied, inputs first: products with 4 to 128 rows take a fifth to a third less time.
    """
    weights, biases = zip(*((linear.weight, linear.bias) for linear in linears), strict=True)
    several = len(linears) > 1
    weight = cast(torch.cat(weights) if several else weights[0]).t()
    if weight.device.type == "cpu":
        weight = weight.contiguous()
    if biases[0] is None:
        return Affine(weight, None)
    return Affine(weight, cast(torch.cat(biases) if several else biases[0]))


def norm_of(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer norm as a function: a module would look up its parameters by name at every call."""
    if not isinstance(norm, nn.LayerNorm):
        return norm.forward  # an Identity
    shape, eps = norm.normalized_shape, norm.eps
    return partial(torch.layer_norm, normalized_shape=shape, weight=norm.weight, bias=norm.bias, eps=eps)


class EmbeddingWeights(NamedTuple):
    """`TokenEmbeddings` without dropout; every token is of the first segment."""

    tokens: Tensor  # (V, D)
    positions: Tensor  # (positions, D), the first segment's vector added
    scale: float
    norm: Callable[[Tensor], Tensor]
    check_length: Callable[[int], None]

    def __call__(self, ids: Tensor, positions: Tensor | slice | int) -> Tensor:
        """Ids (...) at positions (...) to (..., D)."""
        return self.norm(torch.add(self.positions[positions], F.embedding(ids, self.tokens), alpha=self.scale))


def embedding_weights(embeddings: TokenEmbeddings) -> EmbeddingWeights:
    positions = embeddings.positions.weight
    if embeddings.segments is not None:
        positions = positions + embeddings.segments.weight[0]
    norm, check = norm_of(embeddings.norm), embeddings.check_length
    return EmbeddingWeights(embeddings.tokens.weight, positions, embeddings.scale, norm, check)


class AttentionWeights(NamedTuple):
    input: Affine  # queries, keys and values (D, 3 D); in cross-attention queries alone (D, D)
    output: Affine
    norm: Callable[[Tensor], Tensor]


class BlockWeights(NamedTuple):
    """A block without its modules, whose calls would take a third of the time of a single sentence."""

    attention: AttentionWeights
    cross: AttentionWeights | None  # in a decoder
    up: Affine
    activation: Callable[[Tensor], Tensor]
    down: Affine
    norm: Callable[[Tensor], Tensor]

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class StackWeights(NamedTuple):
    embeddings: EmbeddingWeights
    blocks: list[BlockWeights]
    norm: Callable[[Tensor], Tensor]


class Weights(NamedTuple):
    encoder: StackWeights
    decoder: StackWeights
    memory: Affine  # to the keys and values of every decoder block: (D, blocks 2 D)
    output: Affine  # (D, V)
    heads: int
    pre_norm: bool

    def residual(self, norm: Callable[[Tensor], Tensor], x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """`layers.Residual` without dropout."""
        return x + branch(norm(x)) if self.pre_norm else norm(x + branch(x))


def block_weights(block: Any) -> BlockWeights:
    module, feed_forward, cross = block.attention, block.feed_forward, None
    input = affine(module.query, module.key, module.value)
    attention = AttentionWeights(input, affine(module.output), norm_of(block.attention_residual.norm))
    if hasattr(block, "cross_attention"):
        module, norm = block.cross_attention, norm_of(block.cross_attention_residual.norm)
        cross = AttentionWeights(affine(module.query), affine(module.output), norm)
    return BlockWeights(
        attention=attention,
        cross=cross,
        up=affine(feed_forward.up),
        activation=feed_forward.activation.forward,
        down=affine(feed_forward.down),
        norm=norm_of(block.feed_forward_residual.norm),
    )


def stack_weights(part: Any) -> StackWeights:
    """Of an encoder or a decoder."""
    blocks = [block_weights(block) for block in part.stack.blocks]
    return StackWeights(embedding_weights(part.embeddings), blocks, norm_of(part.stack.norm))


def weights_of(model: Any) -> Weights:
    """All that a search reads of a seq2seq model, in the dtype in which autocast would compute.

    Raises:
        ValueError: as `check_layers` says.
    """
    check_layers(model)
    cross = (block.cross_attention for block in model.model.decoder.stack.blocks)
    output = affine(model.lm_head)
    bias = model.final_logits_bias.expand(1, output.weight.shape[1])[0].to(model.lm_head.weight.dtype)
    if output.bias is not None:
        bias = bias + output.bias
    return Weights(
        encoder=stack_weights(model.model.encoder),
        decoder=stack_weights(model.model.decoder),
        memory=affine(*(linear for module in cross for linear in (module.key, module.value))),
        output=output._replace(bias=cast(bias)),
        heads=model.config.num_attention_heads,
        pre_norm=model.config.norm_position == "pre",
    )


def check_layers(model: Any) -> None:
    """Raises ValueError if a layer or a weight is of another class than the model's own class builds.

    A search reads weights and calls no module, so an adapter, a quantised matrix or an exchanged layer would go
    unnoticed. A wrap that leaves the module's class (autocast, oneDNN, gradient checkpointing, `compile`) computes the
    same and does no harm.
    """
    with torch.device("meta"):
        expected = dict(type(model)(copy.deepcopy(model.config)).named_modules())
    actual = dict(model.named_modules())
    for name in [*expected, *(actual.keys() - expected.keys())]:
        if type(actual.get(name)) is not type(expected.get(name)):
            is_class, has_class = (type(x[name]).__name__ if name in x else "nothing" for x in (actual, expected))
            raise ValueError(
                f"{name} is {is_class} where {type(model).__name__} has {has_class}, and a search reads plain weights: "
                "merge adapters into the model, or use its generate()."
            )
    for name, weight in model.named_parameters():
        if type(weight) is not nn.Parameter:
            raise ValueError(
                f"{name} is a {type(weight).__name__}, and a search reads plain weights: gather or dequantise them, or "
                "use the model's generate()."
            )


# The encoder


def share_rows(lengths: list[int], room: int) -> tuple[list[int], list[int], int]:
    """Packs sources into rows of `room` tokens: each row takes the longest source left, then the shortest that fit.

    Returns:
        Where each source starts in the flattened rows, its number in its row (from 1), and how many rows there are.
    """
    left = deque(sorted(range(len(lengths)), key=lengths.__getitem__))
    starts, numbers, rows = [0] * len(lengths), [0] * len(lengths), 0
    while left:
        members = [left.pop()]
        free = room - lengths[members[0]]
        while left and lengths[left[0]] <= free:
            members.append(left.popleft())
            free -= lengths[members[-1]]
        start = rows * room
        for number, source in enumerate(members, 1):
            starts[source], numbers[source] = start, number
            start += lengths[source]
        rows += 1
    return starts, numbers, rows


def encode(weights: Weights, input_ids: Tensor, real: Tensor | None) -> Tensor:
    """Sources (B, S) to memory (B, S, D), packed on the way, so that little padding is computed.

    Args:
        real: (B, S), True where a source is no padding; None: everywhere. Positions count from its first token.
    """
    if real is None:
        return states(weights, input_ids, None, None)
    lengths = real.sum(1).tolist()
    room = max(1, *lengths)
    starts, numbers, rows = share_rows(lengths, room)
    first, number = torch.tensor([starts, numbers], device=real.device)[..., None]  # (B, 1) each
    index = first + real.cumsum(1) - 1  # (B, S), where each token goes in the flattened rows
    columns = torch.arange(real.shape[1], device=real.device) - real.int().argmax(1, keepdim=True)  # its position
    packed = torch.zeros(3, rows * room, dtype=torch.long, device=real.device)
    packed[:, index[real]] = torch.stack([input_ids, columns, number.expand_as(columns)])[:, real]
    ids, positions, sequence_ids = packed.view(3, -1, room)
    return states(weights, ids, positions, sequence_ids).flatten(0, 1)[index.where(real, 0)]  # (R room, D) -> (B, S, D)


def states(weights: Weights, ids: Tensor, positions: Tensor | None, sequence_ids: Tensor | None) -> Tensor:
    """The encoder's states (R, S, D) of ids (R, S), packed as `sequence_ids` (R, S) says, or not (None)."""
    embeddings, blocks, norm = weights.encoder
    embeddings.check_length(ids.shape[1] if positions is None else int(positions.max()) + 1)
    x = embeddings(ids, slice(ids.shape[1]) if positions is None else positions).flatten(0, 1)  # (R S, D)
    mask = None  # (R, 1, S, S)
    if sequence_ids is not None:
        others = sequence_ids[:, None, :, None] != sequence_ids[:, None, None]
        mask = additive_mask(others, weights.memory.weight.dtype)  # under autocast x is still in float32

    def self_attention(attention: AttentionWeights, x: Tensor) -> Tensor:
        q, k, v = (
            attention.input(x).view(*ids.shape, 3, weights.heads, -1).permute(2, 0, 3, 1, 4)
        )  # (R, H, S, D/H) each
        values = F.scaled_dot_product_attention(q, k, v, mask)
        return attention.output(values.transpose(1, 2).reshape(x.shape))

    for block in blocks:
        x = weights.residual(block.attention.norm, x, partial(self_attention, block.attention))
        x = weights.residual(block.norm, x, block.feed_forward)
    return norm(x).unflatten(0, ids.shape)
