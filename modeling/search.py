"""Greedy and beam search as an object: `Search(model)(input_ids, max_length=64)` finds what `generate()` finds, faster.

It is for one model that generates much: evaluation, and prediction over files. It reads the weights and calls no
module of the model, so it computes the same however the model is wrapped.

A step computes new tokens alone. The beams of a sentence are queries over the same keys: those of its source, computed
once, and those of the tokens that all its beams have chosen so far, of which a mask shows each beam its own ancestors.
So no cache is ever repeated or reordered. Finished sentences leave the batch.

B sentences in the batch, K beams of each, N = B K prefixes, S source tokens, L places of the cache, H heads, D hidden
size, V vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .search_weights import Affine, AttentionWeights, Weights, additive_mask, encode, weights_of

IMPOSSIBLE = -1e9  # the score of what must not be chosen; transformers' number, since it is added to other scores
ROOM = 32  # the first size of the cache, in tokens; it doubles when it is full
LEAVE = 4  # finished sentences leave once they are a quarter of the batch: leaving copies the caches
CHUNK = 64  # `best_of` looks for the greatest scores in chunks of so many


class Decoder:
    """The decoder and the output matrix of a seq2seq model; each call takes one more token of every prefix.

    Args:
        memory: (B, S, D), the encoder's output.
        real: (B, S), True where it is no padding; None: everywhere.
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
            keys_and_values = weights.memory(memory[real])
            source = keys_and_values.new_zeros(*real.shape, keys_and_values.shape[-1])
            source[real] = keys_and_values
            self.memory_mask = additive_mask(~real, dtype)[:, None, None]
        source = source.unflatten(-1, (depth, 2, weights.heads, -1))  # (B, S, blocks, 2, H, D/H)
        self.memory = source.permute(2, 3, 0, 4, 1, 5).contiguous()  # (blocks, 2, B, H, S, D/H)
        self.folded: list[tuple[Affine, Affine]] | None = None
        if size == 1 and real is None and memory.shape[1] * (weights.heads - 1) < width:
            self.folded = [self.fold(layer) for layer in range(depth)]

        self.past = source.new_empty(depth, size, ROOM, beams, 2, width)
        self.ancestry: Tensor | None = None  # (N, L K), added to scores: the token of place l, beam k is column l K + k
        if beams > 1:  # at places to come a beam sees its own tokens
            self.other_beams = additive_mask(torch.eye(beams, device=memory.device) == 0, dtype)  # (K, K)
            self.ancestry = self.other_beams.repeat(size, ROOM)
        self.make_views()

    def make_views(self) -> None:
        """Makes the views that steps read, anew whenever `memory` or `past` is another tensor."""
        self.source = [block.unbind() for block in self.memory]  # of each block twice (B, H, S, D/H)
        self.places = self.past.unbind()  # of each block (B, L, K, 2, D)
        flat = self.past.flatten(2, 3).unflatten(-1, (self.weights.heads, -1))  # (blocks, B, L K, 2, H, D/H)
        self.targets = [block.unbind() for block in flat.permute(0, 3, 1, 4, 2, 5)]  # of each twice (B, H, L K, D/H)

    def fold(self, layer: int) -> tuple[Affine, Affine]:
        """Cross-attention over one short source as two affine maps: D to H S scores, and H S weights back to D.

        With q = x W + b a score is q k = x (W k) + b k, and the output of weighted values is a weighted sum of outputs.
        Matrices with H S columns instead of D are less to read if S (H - 1) < D.
        """
        cross, (keys, values) = self.weights.decoder.blocks[layer].cross, self.memory[layer]
        assert cross is not None
        heads, keys = self.weights.heads, keys[0] * keys.shape[-1] ** -0.5  # (H, S, D/H)
        scores = cross.input.weight.unflatten(1, (heads, -1)).transpose(0, 1) @ keys.transpose(1, 2)  # (H, D, S)
        bias = cross.input.bias
        if bias is not None:
            bias = (keys @ bias.view(heads, -1, 1)).flatten()  # (H S,)
        outputs = values[0] @ cross.output.weight.unflatten(0, (heads, -1))  # (H, S, D)
        return Affine(scores.transpose(0, 1).flatten(1), bias), Affine(outputs.flatten(0, 1), cross.output.bias)

    def __call__(self, ids: Tensor) -> Tensor:
        """The last tokens (N,) to the logits (N, V) of the next, in float32."""
        weights, (embeddings, blocks, norm) = self.weights, self.weights.decoder
        embeddings.check_length(self.length + 1)
        x = embeddings(ids, self.length)  # (N, D)
        if self.length == self.past.shape[2]:  # full: double it
            self.past = torch.cat([self.past, torch.empty_like(self.past)], 2)
            if self.ancestry is not None:
                to_come = self.other_beams.repeat(len(x) // self.beams, self.length)
                self.ancestry = torch.cat([self.ancestry, to_come], 1)
            self.make_views()
        self.length += 1
        mask = None
        if self.ancestry is not None:
            mask = self.ancestry.view(-1, 1, self.beams, self.ancestry.shape[1])[..., : self.length * self.beams]
        for layer, block in enumerate(blocks):
            assert block.cross is not None
            x = weights.residual(block.attention.norm, x, partial(self.self_attention, layer, block.attention, mask))
            x = weights.residual(block.cross.norm, x, partial(self.cross_attention, layer, block.cross))
            x = weights.residual(block.norm, x, block.feed_forward)
        return weights.output(norm(x)).float()

    def self_attention(self, layer: int, attention: AttentionWeights, mask: Tensor | None, x: Tensor) -> Tensor:
        q, new = attention.input(x).split((self.width, 2 * self.width), 1)  # (N, D), (N, 2 D)
        self.places[layer].select(1, self.length - 1).copy_(new.view(-1, self.beams, 2, self.width))
        (keys, values), columns = self.targets[layer], self.length * self.beams
        return attention.output(self.attend(q, keys.narrow(2, 0, columns), values.narrow(2, 0, columns), mask))

    def cross_attention(self, layer: int, cross: AttentionWeights, x: Tensor) -> Tensor:
        if self.folded is not None:
            scores, output = self.folded[layer]
            return output(scores(x).view(len(x), self.weights.heads, -1).softmax(-1).flatten(1))
        keys, values = self.source[layer]
        return cross.output(self.attend(cross.input(x), keys, values, self.memory_mask))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (N, D), keys and values (B, H, L, D/H), and a mask to be added, to (N, D)."""
        q = q.view(-1, self.beams, self.weights.heads, k.shape[-1]).transpose(1, 2)  # (B, H, K, D/H)
        x = F.scaled_dot_product_attention(q, k, v, mask)
        return x.transpose(1, 2).reshape(-1, self.width)

    def follow(self, parents: Tensor) -> None:
        """Prefix n is from now on a continuation of prefix parents[n] (N,), of the same sentence."""
        assert self.ancestry is not None
        past = self.ancestry[:, : self.length * self.beams]
        past.copy_(past.index_select(0, parents))

    def keep(self, rows: Tensor) -> None:
        """Only these sentences (rows of the batch) stay."""
        places = self.past[:, : len(rows), : self.length]
        places.copy_(self.past[:, rows, : self.length])
        self.past, self.memory = self.past[:, : len(rows)], self.memory[:, :, rows]
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask[rows]
        if self.ancestry is not None:
            self.ancestry = self.ancestry.unflatten(0, (-1, self.beams))[rows].flatten(0, 1)
        self.make_views()


def likeliest(logits: Tensor) -> Tensor:
    """`argmax` over V, for which torch takes twenty times as long as numpy on a CPU: (B, V) to (B,)."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


def best_of(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk` of scores (B, X), several times as fast: only the `count` chunks with the greatest maxima are searched."""
    chunks = scores.shape[1] // CHUNK
    if chunks <= count:
        return scores.topk(count)
    maxima = scores[:, : chunks * CHUNK].unflatten(1, (chunks, CHUNK)).amax(-1)  # (B, chunks)
    columns = torch.arange(scores.shape[1], device=scores.device)
    inside = (maxima.topk(count).indices[..., None] * CHUNK + columns[:CHUNK]).flatten(1)  # (B, count CHUNK)
    rest = columns[chunks * CHUNK :].expand(len(scores), -1)  # the columns behind the last whole chunk
    index = torch.cat([inside, rest], 1)
    top, best = scores.gather(1, index).topk(count)
    return top, index.gather(1, best)


def greedy_search(decoder: Decoder, starts: Tensor, ends: list[int], filler: int, max_length: int) -> Tensor:
    """The likeliest next token, again and again.

    Args:
        decoder: new, of one beam.
        starts: (B,), the first token of every target.
        ends: the tokens that end a target; without one a target ends at `max_length`.
        filler: the token behind the end.
        max_length: the most tokens of a target, the first one counted.

    Returns:
        (B, T), T the length of the longest target.
    """
    targets = [[start] for start in starts.tolist()]
    tokens, batch, running = (
        starts,
        targets,
        [True] * len(targets),
    )  # the targets in the batch, and which do not end yet
    for _ in range(1, max_length):
        tokens = likeliest(decoder(tokens))
        for row, token in enumerate(tokens.tolist()):
            if running[row]:
                batch[row].append(token)
                running[row] = token not in ends
        stay = [row for row, runs in enumerate(running) if runs]
        if not stay:
            break
        if (len(batch) - len(stay)) * LEAVE >= len(batch):
            rows = torch.tensor(stay, device=starts.device)
            decoder.keep(rows)
            tokens, batch, running = tokens[rows], [batch[row] for row in stay], [True] * len(stay)
    longest = max(map(len, targets))
    return torch.tensor([target + [filler] * (longest - len(target)) for target in targets], device=starts.device)


class Finished(NamedTuple):
    """The K best finished targets of each sentence in the batch, the best first."""

    rows: Tensor  # (B,), the sentences' indices in the whole batch
    targets: Tensor  # (B, K, max_length)
    scores: Tensor  # (B, K)
    lengths: Tensor  # (B, K), without the first token; 0: no target yet

    def merge(self, targets: Tensor, scores: Tensor, lengths: Tensor) -> "Finished":
        """The K best of these and of others (B, K, max_length), (B, K), (B, K)."""
        scores, best = torch.cat([self.scores, scores], 1).topk(self.scores.shape[1])
        targets = torch.cat([self.targets, targets], 1).gather(1, best[..., None].expand_as(targets))
        return Finished(self.rows, targets, scores, torch.cat([self.lengths, lengths], 1).gather(1, best))

    def select(self, index: Tensor) -> "Finished":
        return Finished(*(state[index] for state in self))


def continuations(decoder: Decoder, prefixes: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best next tokens of all prefixes of a sentence.

    Args:
        prefixes: (N, length).
        scores: (B, K), the sums of their log-probabilities.
        count: X, how many are wanted.

    Returns:
        Each (B, X): the sums of log-probabilities, the prefixes that they continue (from 0 to N - 1), and the tokens.
    """
    size, beams = scores.shape
    logprobs = decoder(prefixes[:, -1]).log_softmax(-1)
    vocabulary = logprobs.shape[-1]
    logprobs = logprobs.view(size, beams, vocabulary).add_(scores[..., None])
    top, index = best_of(logprobs.flatten(1), count)  # index: beam * V + token
    beam = index // vocabulary
    first = torch.arange(size, device=scores.device)[:, None] * beams  # the sentence's first prefix
    return top, beam + first, index - beam * vocabulary


def beam_search(
    decoder: Decoder,
    starts: Tensor,
    ends: list[int],
    filler: int,
    max_length: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    num_return_sequences: int = 1,
) -> Tensor:
    """The likeliest targets (Vaswani 2017, 6.1) that K prefixes of each sentence lead to, as transformers has them.

    A target scores the sum of its tokens' log-probabilities over (its length without the first token) to the power
    of `length_penalty`, in place of the formula of Wu 2016, 7. When is a sentence done? If `early_stopping` is True,
    with K targets. Else when its best prefix scores no better than its worst target, measured by the prefix's present
    length (False) or by the length that would serve it best ("never").

    Args:
        decoder: new, of K beams.
        starts, ends, filler, max_length: as for `greedy_search`.

    Returns:
        The best R = num_return_sequences of each sentence, the best first: (B, R, T).
    """
    size, beams, device = len(starts), decoder.beams, starts.device
    finished = Finished(
        rows=torch.arange(size, device=device),
        targets=starts.new_full((size, beams, max_length), filler),
        scores=torch.full((size, beams), IMPOSSIBLE, device=device),
        lengths=torch.zeros((size, beams), dtype=torch.long, device=device),
    )
    left = []  # the finished targets of sentences that have left the batch
    done = torch.zeros(size, dtype=torch.bool, device=device)
    to_beat = torch.full((size,), IMPOSSIBLE, device=device)  # the score of each sentence's worst target, once it has K
    prefixes = starts[:, None].repeat_interleave(beams, 0)  # (N, length)
    running = torch.full((size, beams), IMPOSSIBLE, device=device)  # the prefixes' sums of log-probabilities
    running[:, 0] = 0.0  # of K equal prefixes one is enough
    count = max(2, 1 + len(ends)) * beams  # so many that at least K of them do not end
    ending = torch.tensor(ends, dtype=torch.long, device=device)

    for length in range(1, max_length):
        scores, parents, tokens = continuations(decoder, prefixes, running, count)
        last = length + 1 == max_length
        ended = (tokens[..., None] == ending).any(-1) | last

        # Of the K best, those that end are targets.
        new = ended[:, :beams] & ~done[:, None]
        if new.any():
            targets = torch.cat([prefixes[parents[:, :beams]], tokens[:, :beams, None]], 2)
            targets = F.pad(targets, (0, max_length - length - 1), value=filler)
            final = (scores[:, :beams] / length**length_penalty).masked_fill(~new, IMPOSSIBLE)
            finished = finished.merge(targets, final, new * length)
            worst = torch.full_like(to_beat, torch.inf) if early_stopping is True else finished.scores[:, -1]
            to_beat = torch.where(finished.lengths.all(-1), worst, IMPOSSIBLE)
        if last:
            break

        # The K best of those that do not end are the next prefixes.
        running, best = (scores + ended * IMPOSSIBLE).topk(beams)
        parents = parents.gather(1, best).flatten()
        decoder.follow(parents)
        prefixes = torch.cat([prefixes.index_select(0, parents), tokens.gather(1, best).view(-1, 1)], 1)

        # Sentences that are done leave the batch, several at a time.
        reach = max_length - 1 if early_stopping == "never" and length_penalty > 0 else length
        done |= running[:, 0] / reach**length_penalty <= to_beat
        num_done = int(done.sum())
        if num_done == len(done):
            break
        if num_done * LEAVE >= len(done):
            left.append(finished.select(done))
            stay = torch.nonzero(~done)[:, 0]
            decoder.keep(stay)
            prefixes = prefixes.unflatten(0, (-1, beams))[stay].flatten(0, 1)
            finished = finished.select(stay)
            done, to_beat, running = done[stay], to_beat[stay], running[stay]
    finished = Finished(*(torch.cat(states) for states in zip(*left, finished, strict=True)))
    longest = 1 + int(finished.lengths[:, :num_return_sequences].max())
    return finished.targets[finished.rows.argsort(), :num_return_sequences, :longest]


class Search:
    """The likeliest targets of sources, by greedy or beam search.

    The weights are laid out once, here, in the dtype of the autocast that is on; on a CPU most of them are copies. When
    the model has been trained further, make another `Search`.

    Args:
        model: a `KeelSeq2SeqForConditionalGeneration`; its `generation_config` has the ids of start, end and padding.

    Raises:
        ValueError: a layer is not the one that the model's class builds, so its weights may not tell what it computes.
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
        """Sources (B, S) to targets (B R, T), padded behind their ends: those that `generate()` gives.

        Positions count from a source's first token, so padding may be on either side.

        Args:
            attention_mask: (B, S), 0 for padding.
            max_length: the most tokens of a target, the start token counted.
            num_beams: K; 1: greedy search.
            num_return_sequences: R, how many targets of each source are returned, at most `num_beams`.
            length_penalty, early_stopping: as for `beam_search`.

        Raises:
            ValueError: an option is out of its range, or there are more tokens than positions.
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
            return beam_search(decoder, starts, self.ends, filler, max_length, *rules).flatten(0, 1)
