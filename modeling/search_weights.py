"""A seq2seq model's weights as its searches want them, and the encoder over them.

B sentences, S source tokens, R rows that they share, H heads, D hidden size, V vocabulary.
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
    """What autocast would do in every single step."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:  # which autocast leaves alone
        return weight
    return weight.to(torch.get_autocast_dtype(device))


class Affine(NamedTuple):
    """x W + b for rows x, without the transposing of `linear` at every call."""

    weight: Tensor  # (inputs, outputs)
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


def hidden(unseen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of attention where a key must not be seen."""
    return torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill_(unseen, torch.finfo(dtype).min)


def affine(*linears: nn.Linear) -> Affine:
    """The one layer that stands for all these side by side.

    On CPUs its matrix is laid out anew, inputs first: products with 4 to 128 rows take a fifth to a third less time.
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
    """A layer norm, its numbers at hand: a module would look up each by name."""
    if not isinstance(norm, nn.LayerNorm):
        return norm.forward  # of none at all
    shape, eps = norm.normalized_shape, norm.eps
    return partial(torch.layer_norm, normalized_shape=shape, weight=norm.weight, bias=norm.bias, eps=eps)


class EmbeddingWeights(NamedTuple):
    """`TokenEmbeddings` of the first segment, without dropout."""

    tokens: Tensor  # (V, D)
    positions: Tensor  # (positions, D), the segment added
    scale: float
    norm: Callable[[Tensor], Tensor]
    check_length: Callable[[int], None]

    def __call__(self, ids: Tensor, positions: Tensor | slice | int) -> Tensor:
        """Ids of any shape (...), and their places in the table, to (..., D)."""
        return self.norm(torch.add(self.positions[positions], F.embedding(ids, self.tokens), alpha=self.scale))


def embedding_weights(embeddings: TokenEmbeddings) -> EmbeddingWeights:
    positions = embeddings.positions.weight
    if embeddings.segments is not None:
        positions = positions + embeddings.segments.weight[0]
    norm, check = norm_of(embeddings.norm), embeddings.check_length
    return EmbeddingWeights(embeddings.tokens.weight, positions, embeddings.scale, norm, check)


class AttentionWeights(NamedTuple):
    into: Affine  # queries, keys and values (D, 3 D); over a memory queries alone (D, D)
    output: Affine
    norm: Callable[[Tensor], Tensor]


class BlockWeights(NamedTuple):
    """What is needed of a block: with one sentence, module calls are a third of the time."""

    own: AttentionWeights
    cross: AttentionWeights | None  # a decoder's
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
    memory: Affine  # every decoder block's keys and values of the memory: (D, blocks 2 D)
    output: Affine  # (D, V)
    heads: int
    pre_norm: bool

    def residual(self, norm: Callable[[Tensor], Tensor], x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
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
        forward.activation.forward,
        affine(forward.down),
        norm_of(block.feed_forward_residual.norm),
    )


def weights_of(model: Any) -> Weights:
    """All that a search reads of a seq2seq model, in the dtype that autocast would compute in.

    Raises:
        ValueError: the model is not as its class builds it, as `check_layers` says.
    """
    check_layers(model)
    stacks = [
        StackWeights(
            embedding_weights(part.embeddings),
            [block_weights(block) for block in part.stack.blocks],
            norm_of(part.stack.norm),
        )
        for part in (model.model.encoder, model.model.decoder)
    ]
    cross = (block.cross_attention for block in model.model.decoder.stack.blocks)
    output = affine(model.lm_head)
    bias = model.final_logits_bias.expand(1, output.weight.shape[1])[0].to(model.lm_head.weight.dtype)
    if output.bias is not None:
        bias = bias + output.bias
    return Weights(
        stacks[0],
        stacks[1],
        affine(*(linear for module in cross for linear in (module.key, module.value))),
        output._replace(bias=cast(bias)),
        model.config.num_attention_heads,
        model.config.norm_position == "pre",
    )


def check_layers(model: Any) -> None:
    """Raises ValueError where a layer is not of the kind that the model's own class builds, or its weights are not.

    Searches read weights and call no module, so an adapter, a quantised matrix or a layer that somebody exchanged would
    be passed over. What wraps a module and leaves its kind (autocast, oneDNN, gradient checkpointing, `compile`)
    computes the same, and is passed over rightly.
    """
    with torch.device("meta"):
        built = dict(type(model)(copy.deepcopy(model.config)).named_modules())
    found = dict(model.named_modules())
    for name in [*built, *(found.keys() - built.keys())]:
        kinds = [type(modules[name]).__name__ if name in modules else "nothing" for modules in (found, built)]
        if type(found.get(name)) is not type(built.get(name)):
            raise ValueError(
                f"{name} is {kinds[0]} where {type(model).__name__} has {kinds[1]}, and a search reads plain weights: "
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
    """Puts with the longest source left the shortest that there is room for, row by row.

    Returns:
        Where each source starts in the flattened rows, its number in its row, and how many rows there are.
    """
    left = deque(sorted(range(len(lengths)), key=lengths.__getitem__))
    starts, numbers, rows = [0] * len(lengths), [0] * len(lengths), 0
    while left:
        members = [left.pop()]
        start, end = rows * room, rows * room + room - lengths[members[0]]
        while left and start + lengths[left[0]] <= end:
            members.append(left.popleft())
            end -= lengths[members[-1]]
        for number, at in enumerate(members, 1):
            starts[at], numbers[at] = start, number
            start += lengths[at]
        rows += 1
    return starts, numbers, rows


def encode(weights: Weights, input_ids: Tensor, real: Tensor | None) -> Tensor:
    """The memory (B, S, D) of sources (B, S), several of which share a row, for little of it to be padding.

    Args:
        real: (B, S), what is no padding; None where nothing is. Positions count from a source's first token.
    """
    if real is None:
        return states(weights, input_ids, None, None)
    lengths = real.sum(1).tolist()
    room = max(1, *lengths)
    starts, numbers, rows = share_rows(lengths, room)
    first, number = torch.tensor([starts, numbers], device=real.device)[..., None]  # (B, 1) each
    places = first + real.cumsum(1) - 1  # (B, S)
    columns = torch.arange(real.shape[1], device=real.device) - real.int().argmax(1, keepdim=True)
    packed = torch.zeros(3, rows * room, dtype=torch.long, device=real.device)
    packed[:, places[real]] = torch.stack([input_ids, columns, number.expand_as(columns)])[:, real]
    ids, positions, owners = packed.view(3, -1, room)
    return states(weights, ids, positions, owners).flatten(0, 1)[places.where(real, 0)]


def states(weights: Weights, ids: Tensor, positions: Tensor | None, owners: Tensor | None) -> Tensor:
    """The encoder's states (R, S, D) of ids (R, S), of which those with one owner see one another."""
    embeddings, blocks, norm = weights.encoder
    embeddings.check_length(ids.shape[1] if positions is None else int(positions.max()) + 1)
    x = embeddings(ids, slice(ids.shape[1]) if positions is None else positions).flatten(0, 1)  # (R S, D)
    mask = None  # (R, 1, S, S)
    if owners is not None:
        strangers = owners[:, None, :, None] != owners[:, None, None]
        mask = hidden(strangers, weights.memory.weight.dtype)  # under autocast x is wider yet

    def attention(own: AttentionWeights, x: Tensor) -> Tensor:
        q, k, v = own.into(x).view(*ids.shape, 3, weights.heads, -1).permute(2, 0, 3, 1, 4)  # (R, H, S, D/H) each
        mixed = F.scaled_dot_product_attention(q, k, v, mask)
        return own.output(mixed.transpose(1, 2).reshape(x.shape))

    for block in blocks:
        x = weights.residual(block.own.norm, x, partial(attention, block.own))
        x = weights.residual(block.norm, x, block.feed_forward)
    return norm(x).unflatten(0, ids.shape)
