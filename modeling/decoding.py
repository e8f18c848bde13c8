"""Greedy and beam search: the same tokens as transformers' own, sooner.

A step computes new tokens alone. A sentence's beams are queries over the same keys: those of its source, worked out
once, and those of the pasts of all its beams, of which a mask shows a beam its own ancestors; so no cache is ever
repeated or reordered. Sentences that have finished leave the batch.

B sentences still in the batch, K beams of each, N = B K, S source tokens, L places of the cache, H heads, D hidden
size, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMPOSSIBLE = -1e9  # transformers' score of what is not to be chosen; exactly this, since it is added to others
ROOM = 32  # places that a cache starts with; it doubles where they do not do
LEAVE = 4  # finished sentences leave once they are one in so many: leaving copies the caches


Affine = tuple[Tensor, Tensor | None]  # weight and bias


def cast(weight: Tensor) -> Tensor:
    """What autocast would do in every single step."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def affine(*linears: nn.Linear) -> Affine:
    """The one layer that stands for all these side by side."""
    weights, biases = zip(*((linear.weight, linear.bias) for linear in linears), strict=True)
    if len(linears) > 1:
        return cast(torch.cat(weights)), None if biases[0] is None else cast(torch.cat(biases))
    return cast(weights[0]), None if biases[0] is None else cast(biases[0])


class Layer(NamedTuple):
    """What a step needs of a decoder block: with one sentence, module calls are a fifth of what is not arithmetic."""

    own: Affine  # queries, keys and values: (3 D, D)
    own_output: Affine
    own_norm: nn.LayerNorm
    cross_query: Affine
    cross_output: Affine
    cross_norm: nn.LayerNorm
    up: Affine
    activation: Callable[[Tensor], Tensor]
    down: Affine
    norm: nn.LayerNorm


def layer_of(block: Any) -> Layer:
    own, cross, forward = block.attention, block.cross_attention, block.feed_forward
    return Layer(
        affine(own.query, own.key, own.value),
        affine(own.output),
        block.attention_residual.norm,
        affine(cross.query),
        affine(cross.output),
        block.cross_attention_residual.norm,
        affine(forward.up),
        forward.activation,
        affine(forward.down),
        block.feed_forward_residual.norm,
    )


class Decoder:
    """The decoder and the output matrix of a seq2seq model, one token further at each call.

    Args:
        memory, attention_mask: (B, S, D), (B, S): the encoder's output and which of it is no padding.
        beams: K.
    """

    def __init__(self, model: Any, memory: Tensor, attention_mask: Tensor | None, beams: int):
        decoder, size, width = model.model.decoder, len(memory), memory.shape[-1]
        blocks = decoder.stack.blocks
        self.embeddings, self.norm = decoder.embeddings, decoder.stack.norm
        self.layers = [layer_of(block) for block in blocks]
        self.pre = model.config.norm_position == "pre"
        self.output = cast(model.lm_head.weight), cast(model.final_logits_bias[0].to(model.lm_head.weight.dtype))
        self.beams, self.width, self.heads, self.length = beams, width, model.config.num_attention_heads, 0

        cross = (block.cross_attention for block in blocks)
        source = F.linear(memory, *affine(*(linear for module in cross for linear in (module.key, module.value))))
        source = source.unflatten(-1, (len(blocks), 2, self.heads, -1))  # (B, S, layers, 2, H, D/H)
        self.memory = source.permute(2, 3, 0, 4, 1, 5).contiguous()  # (layers, 2, B, H, S, D/H)
        never = torch.finfo(source.dtype).min
        self.memory_mask = None  # (B, 1, 1, S)
        if attention_mask is not None and not attention_mask.all():
            padding = attention_mask[:, None, None] == 0
            self.memory_mask = source.new_zeros(padding.shape).masked_fill(padding, never)

        self.past = source.new_empty(len(blocks), size, ROOM, beams, 2, width)
        self.ancestry: Tensor | None = None  # (N, L K): a token of place l and beam k is in column l K + k
        if beams > 1:  # what comes is a token's own beam's
            strangers = torch.eye(beams, device=memory.device) == 0
            self.strange = source.new_zeros(beams, beams).masked_fill(strangers, never)
            self.ancestry = self.strange.repeat(size, ROOM)
        self.look()

    def look(self) -> None:
        """The views that steps read, to be made again where memory or past are others."""
        self.source = [layer.unbind() for layer in self.memory]
        self.places = self.past.unbind()
        flat = self.past.flatten(2, 3).unflatten(-1, (self.heads, -1))  # (layers, B, L K, 2, H, D/H)
        self.own = [layer.unbind() for layer in flat.permute(0, 3, 1, 4, 2, 5)]  # twice (B, H, L K, D/H)

    def __call__(self, ids: Tensor) -> Tensor:
        """The last tokens (N,) to the logits (N, V) of the next, in float32."""
        x = self.embeddings(ids[:, None], past_length=self.length)[:, 0]  # (N, D)
        if self.length == self.past.shape[2]:
            self.past = torch.cat([self.past, torch.empty_like(self.past)], 2)
            if self.ancestry is not None:
                to_come = self.strange.repeat(len(x) // self.beams, self.length)
                self.ancestry = torch.cat([self.ancestry, to_come], 1)
            self.look()
        self.length += 1
        mask = None
        if self.ancestry is not None:
            mask = self.ancestry.view(-1, 1, self.beams, self.ancestry.shape[1])[..., : self.length * self.beams]
        for at, layer in enumerate(self.layers):
            x = self.residual(layer.own_norm, x, partial(self.own_attention, at, layer, mask))
            x = self.residual(layer.cross_norm, x, partial(self.cross_attention, at, layer))
            x = self.residual(layer.norm, x, partial(self.feed_forward, layer))
        return F.linear(self.norm(x), *self.output).float()

    def residual(self, norm: nn.LayerNorm, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """`layers.Residual` without dropout."""
        shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
        if self.pre:
            return x + branch(torch.layer_norm(x, shape, weight, bias, eps))
        return torch.layer_norm(x + branch(x), shape, weight, bias, eps)

    def own_attention(self, at: int, layer: Layer, mask: Tensor | None, x: Tensor) -> Tensor:
        new = F.linear(x, *layer.own)  # (N, 3 D)
        self.places[at][:, self.length - 1] = new[:, self.width :].view(-1, self.beams, 2, self.width)
        keys, values = self.own[at]
        upto = self.length * self.beams
        mixed = self.attend(new[:, : self.width], keys[:, :, :upto], values[:, :, :upto], mask)
        return F.linear(mixed, *layer.own_output)

    def cross_attention(self, at: int, layer: Layer, x: Tensor) -> Tensor:
        keys, values = self.source[at]
        return F.linear(
            self.attend(F.linear(x, *layer.cross_query), keys, values, self.memory_mask), *layer.cross_output
        )

    def feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        return F.linear(layer.activation(F.linear(x, *layer.up)), *layer.down)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (N, D), keys and values (B, H, L, D/H), and a mask to be added, to (N, D)."""
        q = q.view(-1, self.beams, self.heads, self.width // self.heads).transpose(1, 2)  # (B, H, K, D/H)
        mixed = F.scaled_dot_product_attention(q, k, v, mask)
        return mixed.transpose(1, 2).reshape(-1, self.width)

    def follow(self, parents: Tensor) -> None:
        """Prefix n goes on from what was prefix parents[n] of the same sentence: (N,)."""
        assert self.ancestry is not None
        past = self.ancestry[:, : self.length * self.beams]
        past.copy_(past.index_select(0, parents))

    def keep(self, rows: Tensor) -> None:
        """Only these sentences stay."""
        places = self.past[:, : len(rows), : self.length]
        places.copy_(self.past[:, rows, : self.length])
        self.past, self.memory = self.past[:, : len(rows)], self.memory[:, :, rows]
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask[rows]
        if self.ancestry is not None:
            self.ancestry = self.ancestry.unflatten(0, (-1, self.beams))[rows].flatten(0, 1)
        self.look()


def is_one_of(tokens: Tensor, ends: Tensor) -> Tensor:
    return (tokens[..., None] == ends).any(-1)


def greedy_search(decoder: Decoder, starts: Tensor, ends: Tensor, filler: int, max_length: int) -> Tensor:
    """The likeliest next token, again and again.

    Args:
        decoder: new, of one beam.
        starts: (B,), the first token of every target.
        ends: the tokens that end a target; it may have none, and then its length ends it.
        filler: what stands behind the end.
        max_length: the most tokens of a target, the first one counted.

    Returns:
        (B, T), T tokens the longest target.
    """
    found = starts.new_full((len(starts), max_length), filler)
    found[:, 0] = tokens = starts
    rows = torch.arange(len(starts), device=starts.device)  # whose targets are in the batch
    done = torch.zeros_like(rows, dtype=torch.bool)
    for length in range(1, max_length):
        tokens = decoder(tokens).argmax(-1).masked_fill(done, filler)
        found[rows, length] = tokens
        done |= is_one_of(tokens, ends)
        count = int(done.sum())
        if count == len(rows):
            return found[:, : length + 1]
        if count * LEAVE >= len(rows):
            stay = torch.nonzero(~done)[:, 0]
            decoder.keep(stay)
            rows, tokens, done = rows[stay], tokens[stay], done[stay]
    return found


def beam_search(
    decoder: Decoder,
    starts: Tensor,
    ends: Tensor,
    filler: int,
    max_length: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    num_return_sequences: int = 1,
) -> tuple[Tensor, Tensor]:
    """The likeliest of the targets that K prefixes a sentence lead to; arithmetic and stopping are transformers'.

    A target scores the sum of its tokens' log-probabilities over (its length without the first token) to the power
    of `length_penalty`. A sentence is done with K targets, where `early_stopping` is True; else once the best of its
    prefixes scores no better than the worst of its K targets, with the length that it has (False) or with the length
    that is best for it ("never").

    Args:
        decoder: new, of K beams.
        The others as for `greedy_search`.

    Returns:
        The best R = num_return_sequences of each sentence (B, R, T), the best first, and their scores (B, R).
    """
    size, beams, device = len(starts), decoder.beams, starts.device
    found = starts.new_full((size, beams, max_length), filler)
    scores = torch.full((size, beams), IMPOSSIBLE, device=device)
    lengths = torch.zeros((size, beams), dtype=torch.long, device=device)  # 0: no target yet
    worst = torch.full((size,), IMPOSSIBLE, device=device)  # what a sentence's prefixes have to beat

    rows = torch.arange(size, device=device)  # which sentences are in the batch
    done = torch.zeros_like(rows, dtype=torch.bool)
    offsets = rows[:, None] * beams
    prefixes = starts[:, None].repeat_interleave(beams, 0)  # (N, length)
    running = torch.full((size, beams), IMPOSSIBLE, device=device)
    running[:, 0] = 0.0  # all beams are the same yet
    candidates = max(2, 1 + len(ends)) * beams  # so many that K of them do not end

    for length in range(1, max_length):
        logprobs = decoder(prefixes[:, -1]).log_softmax(-1)
        vocabulary = logprobs.shape[-1]
        logprobs = logprobs.view(-1, beams, vocabulary).add_(running[..., None])
        top, index = logprobs.flatten(1).topk(candidates)
        parents = index // vocabulary
        tokens = index - parents * vocabulary
        parents += offsets[: len(rows)]
        ended = torch.ones_like(top, dtype=torch.bool) if length + 1 == max_length else is_one_of(tokens, ends)

        hits = torch.nonzero(ended[:, :beams].any(-1) & ~done)[:, 0]
        if len(hits):  # the K best of these sentences' targets, old and new
            at, new = rows[hits], ended[hits, :beams]
            score = (top[hits, :beams] / length**length_penalty).masked_fill(~new, IMPOSSIBLE)
            score, best = torch.cat([scores[at], score], 1).topk(beams)
            target = torch.cat([prefixes[parents[hits, :beams]], tokens[hits, :beams, None]], 2)
            target = torch.cat([found[at], F.pad(target, (0, max_length - length - 1), value=filler)], 1)
            full = torch.cat([lengths[at], new * length], 1).gather(1, best)
            found[at] = target.gather(1, best[..., None].expand(-1, -1, max_length))
            scores[at], lengths[at] = score, full
            enough = torch.full_like(worst[at], torch.inf) if early_stopping is True else score[:, -1]
            worst[at] = torch.where(full.all(-1), enough, IMPOSSIBLE)
        if length + 1 == max_length:
            break

        running, best = (top + ended * IMPOSSIBLE).topk(beams)
        parents = parents.gather(1, best).flatten()
        decoder.follow(parents)
        prefixes = torch.cat([prefixes.index_select(0, parents), tokens.gather(1, best).view(-1, 1)], 1)

        reach = max_length - 1 if early_stopping == "never" and length_penalty > 0 else length
        done |= running[:, 0] / reach**length_penalty <= worst[rows]
        count = int(done.sum())
        if count == len(rows):
            break
        if count * LEAVE >= len(rows):
            stay = torch.nonzero(~done)[:, 0]
            decoder.keep(stay)
            prefixes = prefixes.view(len(rows), beams, -1)[stay].flatten(0, 1)
            rows, done, running = rows[stay], done[stay], running[stay]
    longest = 1 + int(lengths[:, :num_return_sequences].max())
    return found[:, :num_return_sequences, :longest], scores[:, :num_return_sequences]
