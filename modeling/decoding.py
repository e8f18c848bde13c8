"""Greedy and beam search: what plain `generate()` runs, the same tokens as transformers' own search and sooner.

A step computes new tokens alone. A sentence's beams are queries over the same keys: those of its source, worked out
once, and those of the pasts of all its beams, of which a mask shows a beam its own ancestors; so no cache is ever
repeated or reordered. Sentences that have finished leave the batch.

B sentences still in the batch, K beams of each, N = B K, S source tokens, L places of the cache, H heads, D hidden
size, V vocabulary.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig

IMPOSSIBLE = -1e9  # transformers' score of what is not to be chosen; exactly this, since it is added to others
ROOM = 32  # places that a cache starts with; it doubles where they do not do
LEAVE = 4  # finished sentences leave once they are one in so many: leaving copies the caches


def cast(weight: Tensor) -> Tensor:
    """What autocast would do in every single step."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def joined(linears: Iterable[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the one layer that stands for all these side by side."""
    weights, biases = zip(*((linear.weight, linear.bias) for linear in linears), strict=True)
    return cast(torch.cat(weights)), None if biases[0] is None else cast(torch.cat(biases))


class Decoder:
    """The decoder and the output matrix of a seq2seq model, one token further at each call.

    Args:
        memory, attention_mask: (B, S, D), (B, S): the encoder's output and which of it is no padding.
        beams: K.
    """

    def __init__(self, model: Any, memory: Tensor, attention_mask: Tensor | None, beams: int):
        decoder, size, width = model.model.decoder, len(memory), memory.shape[-1]
        self.embeddings, self.blocks, self.norm = decoder.embeddings, decoder.stack.blocks, decoder.stack.norm
        self.output = cast(model.lm_head.weight), cast(model.final_logits_bias[0].to(model.lm_head.weight.dtype))
        self.beams, self.width, self.heads, self.length = beams, width, model.config.num_attention_heads, 0
        own, cross = zip(*((block.attention, block.cross_attention) for block in self.blocks), strict=True)
        self.projections = [joined([module.query, module.key, module.value]) for module in own]

        source = F.linear(memory, *joined(layer for module in cross for layer in (module.key, module.value)))
        source = source.unflatten(-1, (len(cross), 2, self.heads, -1))  # (B, S, layers, 2, H, D/H)
        self.memory = source.permute(2, 3, 0, 4, 1, 5).contiguous()  # (layers, 2, B, H, S, D/H)
        never = torch.finfo(source.dtype).min
        self.memory_mask = None  # (B, 1, 1, S)
        if attention_mask is not None and not attention_mask.all():
            padding = attention_mask[:, None, None] == 0
            self.memory_mask = source.new_zeros(padding.shape).masked_fill(padding, never)

        self.past = source.new_empty(len(own), size, ROOM, beams, 2, width)
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
        for layer, block in enumerate(self.blocks):
            x = block.attention_residual(x, partial(self.own_attention, layer, mask))
            x = block.cross_attention_residual(x, partial(self.cross_attention, layer))
            x = block.feed_forward_residual(x, block.feed_forward)
        return F.linear(self.norm(x), *self.output).float()

    def own_attention(self, layer: int, mask: Tensor | None, x: Tensor) -> Tensor:
        new = F.linear(x, *self.projections[layer])  # (N, 3 D)
        self.places[layer][:, self.length - 1] = new[:, self.width :].view(-1, self.beams, 2, self.width)
        keys, values = (past[:, :, : self.length * self.beams] for past in self.own[layer])
        return self.blocks[layer].attention.output(self.attend(new[:, : self.width], keys, values, mask))

    def cross_attention(self, layer: int, x: Tensor) -> Tensor:
        module = self.blocks[layer].cross_attention
        keys, values = self.source[layer]
        return module.output(self.attend(module.query(x), keys, values, self.memory_mask))

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


def padded_right(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sources (B, S) and their masks, padding on the left moved to the right: positions count from the first column."""
    first = (attention_mask != 0).int().argmax(1, keepdim=True)
    index = (torch.arange(input_ids.shape[1], device=input_ids.device) + first) % input_ids.shape[1]
    return input_ids.gather(1, index), attention_mask.gather(1, index)


# What plain means. An option that is not named here, and is not at transformers' default, is left to transformers.
OPTIONS = {
    *("max_length", "max_new_tokens", "num_beams", "num_return_sequences", "length_penalty", "early_stopping"),
    *("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version"),
}


def plain_search(
    model: Any, input_ids: Any, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]
) -> Callable[[], Tensor] | None:
    """The search of ours that `generate()` with these arguments stands for, or None where it is transformers' task.

    That is also where transformers has to warn or to refuse: of lengths that nobody gave, of too many targets.
    """
    defaults: dict[str, Any] = model.generation_config._get_default_generation_params()
    options = {name: None for name in vars(model.generation_config)} | defaults | {"max_length": None}
    for config in (model.generation_config, generation_config):
        if config is not None:
            options |= {name: value for name, value in vars(config).items() if value is not None}
    options |= {name: kwargs[name] for name in kwargs.keys() & options.keys()}
    inputs = {name: value for name, value in kwargs.items() if name not in options and value is not None}
    if input_ids is None:
        input_ids = inputs.pop("input_ids", None)
    attention_mask = inputs.pop("attention_mask", None)
    special = {name for name, value in options.items() if not name.startswith("_") and value != defaults.get(name)}
    # A model's own configuration says False of what nobody asked for.
    special -= {name for name in special - defaults.keys() if options[name] is False}

    beams, count = options["num_beams"], options["num_return_sequences"]
    start, pad, ends = (options[name] for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"))
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    length = options["max_length"] if options["max_new_tokens"] is None else options["max_new_tokens"] + 1
    plain = (
        not inputs
        and special <= OPTIONS
        and not vars(model.config).keys() & (defaults.keys() - {"use_cache"})  # options that stand in the wrong place
        and isinstance(input_ids, Tensor)
        and input_ids.ndim == 2
        and (attention_mask is None or attention_mask.ndim == 2)
        and isinstance(ends, list)
        and all(isinstance(number, int) for number in (beams, count, start, length, pad or 0, *ends))
        and length > 1
        and 1 <= count <= beams
        and isinstance(options["length_penalty"], int | float)
        and options["early_stopping"] in (True, False, "never")
        and is_as_built(model)
    )

    def search() -> Tensor:
        source, mask = input_ids, attention_mask
        if mask is not None:
            source, mask = padded_right(source, mask)
        memory = model.model.encoder(source, mask).last_hidden_state
        decoder = Decoder(model, memory, mask, beams)
        starts = torch.full((len(memory),), start, device=memory.device)
        last = torch.tensor(ends, dtype=torch.long, device=memory.device)
        if beams == 1:
            return greedy_search(decoder, starts, last, ends[0] if ends and pad is None else pad or 0, length)
        # Behind a target's end transformers puts the end again where padding is 0, and -1 where there is no end.
        filler = (pad or ends[0]) if ends else -1
        rules = options["length_penalty"], options["early_stopping"], count
        return beam_search(decoder, starts, last, filler, length, *rules)[0].flatten(0, 1)

    return search if plain else None


def is_as_built(model: Any) -> bool:
    """Whether nothing is in the decoder, or about it, that `Decoder` would pass over: dropout, adapters, hooks."""
    decoder = model.model.decoder
    if model.training:
        return False
    for module in (*decoder.modules(), model.lm_head):
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if hook.__module__ != "transformers.utils.output_capturing":  # idle unless outputs are asked for
                return False
        if "_hf_hook" in vars(module):  # Accelerate's, of models spread over devices
            return False
    linears = [model.lm_head]
    for block in decoder.stack.blocks:
        for module in (block.attention, block.cross_attention):
            linears += [module.query, module.key, module.value]
    return all(type(linear) is nn.Linear for linear in linears)
