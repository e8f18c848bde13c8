"""Greedy and beam search as an object: `Search(model)(input_ids)`, the same tokens as `generate()`, sooner.

`generate()` is transformers' own. This serves where one model writes much: evaluation, and prediction over files. It
reads a model's weights and calls none of its modules, so it computes the same however the model is wrapped.

A step computes new tokens alone. A sentence's beams are queries over the same keys: those of its source, worked out
once, and those of the pasts of all its beams, of which a mask shows a beam its own ancestors; so no cache is ever
repeated or reordered. Sentences that have finished leave the batch.

B sentences still in the batch, K beams of each, N = B K, S source tokens, L places of the cache, H heads, D hidden
size, V vocabulary.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .search_weights import Affine, AttentionWeights, Weights, encode, hidden, weights_of

IMPOSSIBLE = -1e9  # transformers' score of what is not to be chosen; exactly this, since it is added to others
ROOM = 32  # places that a cache starts with; it doubles where they do not do
LEAVE = 4  # finished sentences leave once they are one in so many: leaving copies the caches
CHUNK = 64  # scores whose greatest is found before the best of all


class Decoder:
    """The decoder and the output matrix of a seq2seq model, one token further at each call.

    Args:
        memory, real: (B, S, D), (B, S): the encoder's output and what of it is no padding, None where nothing is.
        beams: K.
    """

    def __init__(self, weights: Weights, memory: Tensor, real: Tensor | None, beams: int):
        size, width = len(memory), memory.shape[-1]
        self.weights, self.beams, self.width, self.length = weights, beams, width, 0
        depth, dtype = len(weights.decoder.blocks), weights.memory.weight.dtype
        self.memory_mask = None  # (B, 1, 1, S)
        if real is None:
            source = weights.memory(memory.flatten(0, 1)).unflatten(0, memory.shape[:2])  # (B, S, blocks 2 D)
        else:
            found = weights.memory(memory[real])
            source = found.new_zeros(*real.shape, found.shape[-1])
            source[real] = found
            self.memory_mask = hidden(~real, dtype)[:, None, None]
        source = source.unflatten(-1, (depth, 2, weights.heads, -1))  # (B, S, blocks, 2, H, D/H)
        self.memory = source.permute(2, 3, 0, 4, 1, 5).contiguous()  # (blocks, 2, B, H, S, D/H)
        self.folded: list[tuple[Affine, Affine]] | None = None
        if size == 1 and real is None and memory.shape[1] * (weights.heads - 1) < width:
            self.folded = [self.fold(at) for at in range(depth)]

        self.past = source.new_empty(depth, size, ROOM, beams, 2, width)
        self.ancestry: Tensor | None = None  # (N, L K): a token of place l and beam k is in column l K + k
        if beams > 1:  # what comes is a token's own beam's
            self.strange = hidden(torch.eye(beams, device=memory.device) == 0, dtype)
            self.ancestry = self.strange.repeat(size, ROOM)
        self.look()

    def look(self) -> None:
        """The views that steps read, to be made again where memory or past are others."""
        self.source = [block.unbind() for block in self.memory]
        self.places = self.past.unbind()
        flat = self.past.flatten(2, 3).unflatten(-1, (self.weights.heads, -1))  # (blocks, B, L K, 2, H, D/H)
        self.own = [block.unbind() for block in flat.permute(0, 3, 1, 4, 2, 5)]  # twice (B, H, L K, D/H)

    def fold(self, at: int) -> tuple[Affine, Affine]:
        """A block's attention over one short source as two layers, D to H S scores and H S weights back to D.

        A query q = x W + b scores q k = x (W k) + b k with a key k, and the output of mixed values is a mix of outputs:
        matrices of H S columns instead of D are less to read where S (H - 1) < D.
        """
        cross, (keys, values) = self.weights.decoder.blocks[at].cross, self.memory[at]
        assert cross is not None
        heads, keys = self.weights.heads, keys[0] * keys.shape[-1] ** -0.5  # (H, S, D/H)
        scores = cross.into.weight.unflatten(1, (heads, -1)).transpose(0, 1) @ keys.transpose(1, 2)  # (H, D, S)
        bias = cross.into.bias
        if bias is not None:
            bias = (keys @ bias.view(heads, -1, 1)).flatten()  # (H S,)
        mixed = values[0] @ cross.output.weight.unflatten(0, (heads, -1))  # (H, S, D)
        return Affine(scores.transpose(0, 1).flatten(1), bias), Affine(mixed.flatten(0, 1), cross.output.bias)

    def __call__(self, ids: Tensor) -> Tensor:
        """The last tokens (N,) to the logits (N, V) of the next, in float32."""
        weights, (embeddings, blocks, norm) = self.weights, self.weights.decoder
        embeddings.check_length(self.length + 1)
        x = embeddings(ids, self.length)  # (N, D)
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
        for at, block in enumerate(blocks):
            assert block.cross is not None
            x = weights.residual(block.own.norm, x, partial(self.own_attention, at, block.own, mask))
            x = weights.residual(block.cross.norm, x, partial(self.cross_attention, at, block.cross))
            x = weights.residual(block.norm, x, block.feed_forward)
        return weights.output(norm(x)).float()

    def own_attention(self, at: int, own: AttentionWeights, mask: Tensor | None, x: Tensor) -> Tensor:
        q, new = own.into(x).split((self.width, 2 * self.width), 1)  # (N, D), (N, 2 D)
        self.places[at].select(1, self.length - 1).copy_(new.view(-1, self.beams, 2, self.width))
        (keys, values), upto = self.own[at], self.length * self.beams
        return own.output(self.attend(q, keys.narrow(2, 0, upto), values.narrow(2, 0, upto), mask))

    def cross_attention(self, at: int, cross: AttentionWeights, x: Tensor) -> Tensor:
        if self.folded is not None:
            scores, mixed = self.folded[at]
            return mixed(scores(x).view(len(x), self.weights.heads, -1).softmax(-1).flatten(1))
        keys, values = self.source[at]
        return cross.output(self.attend(cross.into(x), keys, values, self.memory_mask))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (N, D), keys and values (B, H, L, D/H), and a mask to be added, to (N, D)."""
        q = q.view(-1, self.beams, self.weights.heads, k.shape[-1]).transpose(1, 2)  # (B, H, K, D/H)
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


def likeliest(logits: Tensor) -> Tensor:
    """`argmax` over V, which on CPUs takes torch twenty times as long as numpy: (B, V) to (B,)."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


def best_of(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk` of rows (B, X), several times as fast: it looks only into the chunks of the `count` greatest maxima."""
    chunks = scores.shape[1] // CHUNK
    if chunks <= count:
        return scores.topk(count)
    most = scores[:, : chunks * CHUNK].unflatten(1, (chunks, CHUNK)).amax(-1).topk(count).indices
    columns = torch.arange(scores.shape[1], device=scores.device)
    inside = (most[..., None] * CHUNK + columns[:CHUNK]).flatten(1)
    index = torch.cat([inside, columns[chunks * CHUNK :].expand(len(scores), -1)], 1)  # and the rest, which is no chunk
    top, at = scores.gather(1, index).topk(count)
    return top, index.gather(1, at)


def greedy_search(decoder: Decoder, starts: Tensor, ends: list[int], filler: int, max_length: int) -> Tensor:
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
    targets = [[start] for start in starts.tolist()]
    tokens, batch, going = starts, targets, [True] * len(targets)  # the batch's targets, and which of them go on
    for _ in range(1, max_length):
        tokens = likeliest(decoder(tokens))
        for at, token in enumerate(tokens.tolist()):
            if going[at]:
                batch[at].append(token)
                going[at] = token not in ends
        stay = [at for at, goes_on in enumerate(going) if goes_on]
        if not stay:
            break
        if (len(batch) - len(stay)) * LEAVE >= len(batch):
            rows = torch.tensor(stay, device=starts.device)
            decoder.keep(rows)
            tokens, batch, going = tokens[rows], [batch[at] for at in stay], [True] * len(stay)
    longest = max(map(len, targets))
    return torch.tensor([target + [filler] * (longest - len(target)) for target in targets], device=starts.device)


def beam_search(
    decoder: Decoder,
    starts: Tensor,
    ends: list[int],
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
    # Of the sentences in the batch: which they are, whether they are done, their K targets and those targets' scores
    # and lengths (0: none yet), and the score that their prefixes have to beat.
    rows = torch.arange(size, device=device)
    done = torch.zeros_like(rows, dtype=torch.bool)
    found = starts.new_full((size, beams, max_length), filler)
    scores = torch.full((size, beams), IMPOSSIBLE, device=device)
    lengths = torch.zeros((size, beams), dtype=torch.long, device=device)
    worst = torch.full((size,), IMPOSSIBLE, device=device)
    left = []  # the same of those that have left it

    offsets = rows[:, None] * beams
    prefixes = starts[:, None].repeat_interleave(beams, 0)  # (N, length)
    running = torch.full((size, beams), IMPOSSIBLE, device=device)
    running[:, 0] = 0.0  # all beams are the same yet
    candidates = max(2, 1 + len(ends)) * beams  # so many that K of them do not end
    ending = torch.tensor(ends, dtype=torch.long, device=device)

    for length in range(1, max_length):
        logprobs = decoder(prefixes[:, -1]).log_softmax(-1)
        vocabulary = logprobs.shape[-1]
        logprobs = logprobs.view(-1, beams, vocabulary).add_(running[..., None])
        top, index = best_of(logprobs.flatten(1), candidates)
        parents = index // vocabulary
        tokens = index - parents * vocabulary
        parents += offsets[: len(rows)]
        ended = (tokens[..., None] == ending).any(-1) | (length + 1 == max_length)

        new = ended[:, :beams] & ~done[:, None]
        if new.any():  # the K best of the targets, old and new
            score = (top[:, :beams] / length**length_penalty).masked_fill(~new, IMPOSSIBLE)
            scores, best = torch.cat([scores, score], 1).topk(beams)
            target = torch.cat([prefixes[parents[:, :beams]], tokens[:, :beams, None]], 2)
            target = torch.cat([found, F.pad(target, (0, max_length - length - 1), value=filler)], 1)
            found = target.gather(1, best[..., None].expand(-1, -1, max_length))
            lengths = torch.cat([lengths, new * length], 1).gather(1, best)
            enough = torch.full_like(worst, torch.inf) if early_stopping is True else scores[:, -1]
            worst = torch.where(lengths.all(-1), enough, IMPOSSIBLE)
        if length + 1 == max_length:
            break

        running, best = (top + ended * IMPOSSIBLE).topk(beams)
        parents = parents.gather(1, best).flatten()
        decoder.follow(parents)
        prefixes = torch.cat([prefixes.index_select(0, parents), tokens.gather(1, best).view(-1, 1)], 1)

        reach = max_length - 1 if early_stopping == "never" and length_penalty > 0 else length
        done |= running[:, 0] / reach**length_penalty <= worst
        count = int(done.sum())
        if count == len(rows):
            break
        if count * LEAVE >= len(rows):
            left.append([state[done] for state in (rows, found, scores, lengths)])
            stay = torch.nonzero(~done)[:, 0]
            decoder.keep(stay)
            prefixes = prefixes.view(len(rows), beams, -1)[stay].flatten(0, 1)
            rows, done, found, scores, lengths, worst, running = (
                state[stay] for state in (rows, done, found, scores, lengths, worst, running)
            )
    left.append([rows, found, scores, lengths])
    rows, found, scores, lengths = (torch.cat(states) for states in zip(*left, strict=True))
    order, wanted = rows.argsort(), slice(num_return_sequences)
    longest = 1 + int(lengths[:, wanted].max())
    return found[order, wanted, :longest], scores[order, wanted]


class Search:
    """The likeliest targets of sources, by greedy or beam search.

    The weights are laid out for the search's steps once, here, under the autocast that is in force; on CPUs mostly as
    copies. A model that has learned more since needs another `Search`.

    Args:
        model: a `KeelSeq2SeqForConditionalGeneration`; its `generation_config` names start, end and padding.

    Raises:
        ValueError: a layer is not what the model's class builds, so that its weights alone do not say what it does.
    """

    @torch.no_grad()
    def __init__(self, model: Any):
        options, device = model.generation_config, model.device.type
        self.weights = weights_of(model)
        self.start, self.pad, ends = options.decoder_start_token_id, options.pad_token_id, options.eos_token_id
        self.ends: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }

    @torch.inference_mode()
    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_length: int,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
    ) -> Tensor:
        """Targets (B R, T) of sources (B, S), padded behind their ends: those that `generate()` gives.

        Positions count from a source's first token, so padding may stand on either side.

        Args:
            attention_mask: (B, S), 0 for padding.
            max_length: the most tokens of a target, the start token counted.
            num_beams: prefixes of each source that are followed; 1: greedy search.
            num_return_sequences: R, the best targets of each source, at most `num_beams`.
            length_penalty, early_stopping: as for `beam_search`.

        Raises:
            ValueError: more targets than beams, no room for a target, or more tokens than the model knows positions.
        """
        if not 1 <= num_return_sequences <= num_beams:
            raise ValueError(f"num_return_sequences={num_return_sequences} must be from 1 to num_beams={num_beams}.")
        if max_length < 2:
            raise ValueError(f"max_length={max_length} leaves no room behind the start token: give 2 or more.")
        if early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping={early_stopping!r} must be True, False or 'never'.")
        real = None if attention_mask is None or attention_mask.all() else attention_mask != 0
        starts = torch.full((len(input_ids),), self.start, device=input_ids.device)
        with torch.autocast(**self.autocast):
            decoder = Decoder(self.weights, encode(self.weights, input_ids, real), real, num_beams)
            if num_beams == 1:
                filler = self.ends[0] if self.ends and self.pad is None else self.pad or 0
                return greedy_search(decoder, starts, self.ends, filler, max_length)
            # Behind a target's end transformers puts the end again where padding is 0, and -1 where there is no end.
            filler = (self.pad or self.ends[0]) if self.ends else -1
            rules = length_penalty, early_stopping, num_return_sequences
            return beam_search(decoder, starts, self.ends, filler, max_length, *rules)[0].flatten(0, 1)
