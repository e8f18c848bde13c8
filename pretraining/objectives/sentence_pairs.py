"""MLM and NSP on pairs of sentences (Devlin 2018, 3.1).

An example is a chunk of text: it is split in two, its second part kept or exchanged (next sentence), and some of its
tokens hidden (masked tokens), all drawn from (seed, epoch, index).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling import KeelBertConfig, KeelBertForMaskedLM, KeelBertForPreTraining
from pretraining.data import draws
from pretraining.data.documents import load_text
from pretraining.data.filters import filter_text
from pretraining.data.parallel import count_processes
from pretraining.data.prepare import PreparedText, prepare_text
from pretraining.data.rows import IGNORED, Example, layout, pack_tokens, pack_values
from pretraining.data.settings import between
from pretraining.data.tokenizer import build_tokenizer, regular_ids, require_tokens, word_starts
from pretraining.settings import Settings

IS_NEXT, NOT_NEXT = 0, 1


@dataclass
class SentencePairsSettings:
    """MLM and NSP on pairs of sentences (Devlin 2018, 3.1)."""

    name: Literal["sentence_pairs"] = "sentence_pairs"
    """The objective."""
    next_sentence: Literal["nsp", "sop", "none"] = "nsp"
    """Second loss: `nsp` (B follows A, or comes from another document), `sop` (A and B in order, or swapped:
    Lan 2019, 3.1) or `none` (one segment, masked tokens alone)."""
    sequence_length: int = 128
    """Longest example in tokens, special tokens included."""
    row_length: int | None = None
    """Tokens in a packed row; null: sequence_length."""
    short_sequence_rate: float = 0.1
    """Share of the chunks cut to a random shorter length (Devlin 2018, released code)."""
    mask_rate: float = 0.15
    """Share of the tokens to predict."""
    mask_rate_end: float | None = None
    """Masking rate that the run ends with, on a line from `mask_rate` (Yang 2022); null: `mask_rate` throughout."""
    mask_token_rate: float = 0.8
    """Of the tokens to predict, the share that is replaced by [MASK]."""
    random_token_rate: float = 0.1
    """Of the tokens to predict, the share that is replaced by a random token; the rest is kept."""
    whole_words: bool = False
    """Mask whole words instead of single tokens."""
    unigram_bias: bool = True
    """Start the output biases at the logarithm of each token's frequency, so that no step is spent on learning it."""

    def __post_init__(self) -> None:
        for name in ("short_sequence_rate", "mask_rate", "mask_token_rate", "random_token_rate"):
            between(f"objective.{name}", getattr(self, name), 0, 1)
        between("objective.mask_rate_end", self.mask_rate_end or 0, 0, 1)
        between(
            "objective.mask_token_rate + objective.random_token_rate",
            self.mask_token_rate + self.random_token_rate,
            0,
            1,
        )
        between("objective.sequence_length", self.sequence_length, 8)
        self.row_length = self.row_length or self.sequence_length
        between("objective.row_length", self.row_length, self.sequence_length)


@dataclass(frozen=True)
class Pairs:
    """Where the two segments of some examples lie in the prepared tokens, arrays (N,); B is empty without pairs."""

    a_start: np.ndarray
    a_end: np.ndarray
    b_start: np.ndarray
    b_end: np.ndarray
    label: np.ndarray
    """0: B follows A; 1: it does not (nsp), or the two are swapped (sop); -100: no pair."""


def draw_pairs(data: PreparedText, kind: str, seed: int, epoch: int, index: np.ndarray) -> Pairs:
    """The pairs of examples `index` (N,) in this epoch; every pass over the chunks draws its own.

    A and B are the two sides of a split at one of the chunk's sentences (inside its one sentence, where it has no
    second). For `nsp`, half of the B are replaced by as many tokens from another document, beginning at a sentence
    too and early enough to be as long: a pair's length must not tell whether it is a true one.
    """

    def draw(high: np.ndarray, purpose: int) -> np.ndarray:
        return draws.below(high, seed, epoch, purpose, index)

    chunk = index % len(data)
    start, end = data.chunks[chunk], data.chunks[chunk + 1]
    if kind == "none":
        return Pairs(start, end, end, end, np.full(len(index), IGNORED))
    first = np.searchsorted(data.sentences, start, side="right")
    inside = np.searchsorted(data.sentences, end, side="left") - first  # sentences that begin inside the chunk
    at_sentence = inside > 0
    split = np.where(
        at_sentence,
        data.sentences[first + draw(np.maximum(inside, 1), draws.SPLIT) * at_sentence],
        start + 1 + draw(end - start - 1, draws.SPLIT),
    )
    true = draws.uniform(seed, epoch, draws.IS_NEXT, index) < 0.5
    label = np.where(true, IS_NEXT, NOT_NEXT)
    if kind == "sop":
        a_start, a_end = np.where(true, start, split), np.where(true, split, end)
        b_start, b_end = np.where(true, split, start), np.where(true, end, split)
        return Pairs(a_start, a_end, b_start, b_end, label)

    # A chunk of another document: one number below the count of the others' chunks, own ones stepped over.
    document = data.chunk_document[chunk]
    own_first = data.document_chunk[document]
    own = data.document_chunk[document + 1] - own_first
    partner = draw(len(data) - own, draws.PARTNER)
    partner = partner + np.where(partner >= own_first, own, 0)
    first = np.searchsorted(data.sentences, data.chunks[partner], side="left")
    inside = np.searchsorted(data.sentences, data.chunks[partner + 1], side="left") - first
    by_sentence = at_sentence & (inside > 0)
    chosen = np.where(
        by_sentence,
        data.sentences[first + draw(np.maximum(inside, 1), draws.PARTNER_START) * by_sentence],
        data.chunks[partner] + draw(data.chunks[partner + 1] - data.chunks[partner], draws.PARTNER_START),
    )
    partner_document = data.chunk_document[partner]
    bounds = data.documents[partner_document], data.documents[partner_document + 1]
    latest = np.maximum(bounds[1] - (end - split), bounds[0])
    last_sentence = data.sentences[np.searchsorted(data.sentences, latest, side="right") - 1]
    latest = np.where(at_sentence, last_sentence, latest)
    other_start = np.minimum(chosen, latest)
    other_end = np.minimum(other_start + (end - split), bounds[1])
    return Pairs(start, split, np.where(true, split, other_start), np.where(true, end, other_end), label)


def mask_tokens(
    ids: np.ndarray,
    maskable: np.ndarray,
    word_start: np.ndarray | None,
    random: np.random.Generator,
    settings: SentencePairsSettings,
    rate: float,
    mask_id: int,
    replacements: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Hides `rate` of the maskable tokens, at least one: 80 % [MASK], 10 % random, 10 % kept (Devlin 2018, 3.1).

    Args:
        ids, maskable: (T,).
        word_start: (T,), where words begin, to hide whole words; None: single tokens.
        replacements: the ids that random tokens are drawn from.

    Returns:
        Inputs and labels, (T,) each; labels are -100 where nothing is to be predicted.
    """
    candidates = np.flatnonzero(maskable)
    inputs, labels = ids.copy(), np.full(len(ids), IGNORED, dtype=np.int64)
    if not rate or not len(candidates):
        return inputs, labels
    count = max(1, round(rate * len(candidates)))
    if word_start is None:
        chosen = random.permutation(candidates)[:count]
    else:
        gap = np.diff(candidates, prepend=-2) > 1  # a word never reaches across a special token
        words = np.split(candidates, np.flatnonzero(word_start[candidates] | gap)[1:])
        picked: list[np.ndarray] = []
        room = count
        for word in random.permutation(len(words)):
            if len(words[word]) <= room or not picked:
                picked.append(words[word])
                room -= len(words[word])
            if room <= 0:
                break
        chosen = np.concatenate(picked)
    labels[chosen] = ids[chosen]
    fate = random.random(len(chosen))
    inputs[chosen[fate < settings.mask_token_rate]] = mask_id
    replaced = chosen[
        (fate >= settings.mask_token_rate) & (fate < settings.mask_token_rate + settings.random_token_rate)
    ]
    inputs[replaced] = random.choice(replacements, len(replaced))
    return inputs, labels


def log_frequencies(tokens: np.ndarray, vocab_size: int, block: int = 2**24) -> np.ndarray:
    """The logarithm of each token's share of the text (V,), one more counted of each; in blocks, for memory's sake."""
    counts = np.ones(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), block):
        counts += np.bincount(tokens[start : start + block], minlength=vocab_size)
    return np.log(counts / counts.sum())


class SentencePairs:
    """The objective of BERT."""

    targets: tuple[str, ...] = ("labels", "next_sentence_label")
    metric, lower_is_better = "mlm_loss", True

    def __init__(self, settings: Settings):
        self.run = settings
        self.settings = settings.objective
        self.row_length = settings.objective.row_length or settings.objective.sequence_length
        self.pairs = settings.objective.next_sentence != "none"
        if not self.pairs:
            self.targets = ("labels",)

    def prepare(self, writer: bool) -> list[str]:
        """Loads or makes tokenizer and prepared data.

        Args:
            writer: whether this process makes what is not in the cache yet; the others wait for it.

        Returns:
            Lines that tell what was found.

        Raises:
            ValueError: whatever is wrong with the files, the text or the tokenizer.
        """
        cache, options = Path(self.run.cache).expanduser(), self.run.data
        documents = load_text(options)
        if not len(documents["validation"]):
            raise ValueError(
                f"Nothing is held out for evaluation ({len(documents['train'])} document in all): name "
                "data.validation_files, or cut the text into more documents (data.document: blank_line)."
            )
        documents, left_out = filter_text(documents, options, cache, writer)
        self.check_pairs({split: len(documents[split]) for split in documents})
        self.tokenizer: PreTrainedTokenizerBase = build_tokenizer(self.run.tokenizer, documents["train"], cache, writer)
        require_tokens(self.tokenizer, ("cls_token", "sep_token", "mask_token", "pad_token"))
        self.special = np.zeros(len(self.tokenizer), dtype=bool)
        self.special[self.tokenizer.all_special_ids] = True
        self.regular = regular_ids(self.tokenizer)
        self.word_starts = word_starts(self.tokenizer) if self.settings.whole_words else None
        self.data = {
            split: prepare_text(
                documents[split],
                self.tokenizer,
                [source.language for source in options.sources],
                self.settings.sequence_length,
                self.settings.short_sequence_rate,
                count_processes(options.processes),
                cache,
                writer,
            )
            for split in ("train", "validation")
        }
        self.check_pairs({split: len(data.documents) - 1 for split, data in self.data.items()})
        self.weights = [source.weight for source in options.sources]
        self.fingerprint = f"{self.data['train'].name} {self.data['validation'].name} weights {self.weights}"
        report = [
            f"text {' + '.join(source.source for source in options.sources)}, "
            f"fingerprint {documents['train'].fingerprint}"
        ]
        for split, data in self.data.items():
            report.append(self.describe(split, left_out[split] | {"empty": data.dropped}))
        return report

    def describe(self, split: str, left_out: dict[str, int]) -> str:
        """What the split has and how long its examples are, what was left out and why, and each source's share."""
        data = self.data[split]
        sizes = np.diff(data.chunks)
        longest = self.settings.sequence_length - 3
        line = (
            f"{split}: {len(data.documents) - 1:,} documents, {len(data.sentences) - 1:,} sentences, "
            f"{len(data.tokens):,} tokens, {len(data):,} examples (median {np.median(sizes) + 3:.0f} tokens, "
            f"{(sizes == longest).mean():.0%} of full length)"
        )
        if found := [f"{count:,} {reason}" for reason, count in left_out.items() if count]:
            line += f"; documents left out: {', '.join(found)}"
        if len(self.weights) > 1:
            source = self.source(split)
            held = np.bincount(source, minlength=len(self.weights))
            seen = np.bincount(source[self.index(split, 0) % len(data)], minlength=len(self.weights))
            parts = zip(self.run.data.sources, held / held.sum(), seen / seen.sum(), strict=True)
            line += "; " + ", ".join(
                f"{part.source} {share:.0%} of the examples" + (f", {turn:.0%} of an epoch" if split == "train" else "")
                for part, share, turn in parts
            )
        return line

    def check_pairs(self, documents: dict[str, int]) -> None:
        """Raises ValueError where a split has too few documents for the next-sentence loss."""
        for split, count in documents.items():
            if self.settings.next_sentence == "nsp" and count < 2:
                raise ValueError(
                    f"The {split} split has {count} document, and NSP needs two (B comes from another document half of "
                    "the time): add documents, cut the text into more (data.document), or set "
                    "objective.next_sentence to sop or none."
                )

    def build_model(self, config: KeelBertConfig) -> PreTrainedModel:
        """The model with fresh weights, its vocabulary the tokenizer's."""
        config.vocab_size = len(self.tokenizer)
        config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.model_max_length = config.max_position_embeddings
        model = KeelBertForPreTraining(config) if self.pairs else KeelBertForMaskedLM(config)
        if self.settings.unigram_bias:
            with torch.no_grad():
                model.mlm.decoder.bias.copy_(
                    torch.from_numpy(log_frequencies(self.data["train"].tokens, len(self.tokenizer)))
                )
        return model

    def source(self, split: str) -> np.ndarray:
        """The source of each chunk of the split."""
        data = self.data[split]
        return data.sources[data.chunk_document]

    def index(self, split: str, epoch: int) -> np.ndarray:
        """The examples that the split has in this epoch: (N,). Example c + p * C is chunk c of C in its pass p.

        A source of weight 2.5 gives two passes and a half of its chunks, drawn from (seed, epoch). Held-out text
        gives each chunk once, in an order that is drawn, so that the first few are from everywhere.
        """
        chunks = np.arange(len(self.data[split]))
        drawn = draws.mix(self.seed(split), epoch, draws.SUBSET, chunks)
        if split != "train":
            return np.argsort(drawn, kind="stable")
        source = self.source(split)
        passes: list[np.ndarray] = []
        for number, weight in enumerate(self.weights):
            own = chunks[source == number]
            whole = int(weight)
            passes += [own + turn * len(chunks) for turn in range(whole)]
            part = np.argsort(drawn[own], kind="stable")[: math.ceil((weight - whole) * len(own))]
            passes.append(np.sort(own[part]) + whole * len(chunks))
        return np.concatenate(passes)

    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        """Tokens of examples `index` (N,) in this epoch, special tokens included: (N,)."""
        pairs = self.draw(split, epoch, index)
        special = 3 if self.pairs else 2
        return (pairs.a_end - pairs.a_start) + (pairs.b_end - pairs.b_start) + special

    def draw(self, split: str, epoch: int, index: np.ndarray) -> Pairs:
        return draw_pairs(self.data[split], self.settings.next_sentence, self.seed(split), epoch, index)

    def mask_rate(self, split: str, progress: float) -> float:
        """Share of the tokens to predict; held-out text keeps the one that the run ends with."""
        start, end = self.settings.mask_rate, self.settings.mask_rate_end
        if end is None:
            return start
        return end if split != "train" else start + (end - start) * progress

    def seed(self, split: str) -> int:
        """The run's, but one for all runs on held-out text: models that differ in their seed are asked the same."""
        return self.run.seed if split == "train" else 0

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Examples `index` as this epoch sees them: token arrays, and the label of the pair.

        Args:
            progress: share of the run's budget that is spent, 0 to 1: it decides the masking rate.
        """
        rate = self.mask_rate(split, progress)
        pairs = self.draw(split, epoch, index)
        tokens = self.data[split].tokens
        cls, sep = (np.array([getattr(self.tokenizer, f"{name}_token_id")]) for name in ("cls", "sep"))
        examples: list[Example] = []
        for i, number in enumerate(index):
            a = tokens[pairs.a_start[i] : pairs.a_end[i]]
            b = tokens[pairs.b_start[i] : pairs.b_end[i]]
            first = [cls, a, sep]
            ids = np.concatenate([*first, b, sep] if self.pairs else first).astype(np.int64)
            types = np.zeros(len(ids), dtype=np.int64)
            types[len(a) + 2 :] = 1
            inputs, labels = mask_tokens(
                ids,
                ~self.special[ids],
                None if self.word_starts is None else self.word_starts[ids],
                draws.generator(self.seed(split), epoch, draws.MASK, int(number)),
                self.settings,
                rate,
                self.tokenizer.mask_token_id,
                self.regular,
            )
            examples.append(
                {
                    "input_ids": inputs,
                    "token_type_ids": types,
                    "labels": labels,
                    "next_sentence_label": pairs.label[i],
                }
            )
        return examples

    def collate(self, rows: list[list[Example]], sequences: int) -> dict[str, Tensor]:
        """Rows of examples to the model's arguments, `sequences` places for examples in each row."""
        batch = {
            "input_ids": pack_tokens(rows, "input_ids", self.row_length, self.tokenizer.pad_token_id),
            "token_type_ids": pack_tokens(rows, "token_type_ids", self.row_length, 0),
            "labels": pack_tokens(rows, "labels", self.row_length, IGNORED),
            **layout(rows, "input_ids", self.row_length, sequences),
        }
        batch["read_at"] = torch.nonzero(batch["labels"].flatten() != IGNORED).flatten()
        if self.pairs:
            batch["next_sentence_label"] = pack_values(rows, "next_sentence_label", sequences)
        return batch

    def tokens(self, batch: dict[str, Tensor]) -> int:
        """Tokens of a batch that are no padding."""
        return int((batch["sequence_ids"] != 0).sum())

    def evaluate(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Each measure's sum and count over the batch."""
        one = torch.ones((), device=batch["labels"].device)
        out = model(**batch, num_items_in_batch=dict.fromkeys(self.targets, one))
        labels = batch["labels"].flatten()[batch["read_at"]]
        count = torch.as_tensor(len(labels), device=labels.device)
        logits = out.prediction_logits if self.pairs else out.logits
        sums = {
            "mlm_loss": (out.mlm_loss if self.pairs else out.loss, count),
            "mlm_accuracy": ((logits.argmax(-1) == labels).sum(), count),
        }
        if self.pairs:
            label = batch["next_sentence_label"]
            count = (label != IGNORED).sum()
            sums["nsp_loss"] = (out.nsp_loss, count)
            sums["nsp_accuracy"] = ((out.seq_relationship_logits.argmax(-1) == label).sum(), count)
        return sums

    @torch.no_grad()
    def samples(self, model: torch.nn.Module, count: int) -> list[str]:
        """Held-out sentences with one word hidden, and the model's three best guesses for it."""
        data = self.data["validation"]
        starts = data.sentences
        sizes = np.diff(starts)
        fit = np.flatnonzero((sizes >= 8) & (sizes <= 40))
        order = np.argsort(draws.mix(draws.MASK, fit), kind="stable")
        device = next(model.parameters()).device
        shown: list[str] = []
        for sentence in fit[order]:
            if len(shown) == count:
                break
            ids = np.array(data.tokens[starts[sentence] : starts[sentence + 1]], dtype=np.int64)
            words = [i for i, token in enumerate(ids) if self.text(token).isalpha()]
            if not words:
                continue
            at = words[int(draws.below(len(words), draws.SPLIT, int(sentence)))]
            hidden = np.concatenate([[self.tokenizer.cls_token_id], ids, [self.tokenizer.sep_token_id]])
            hidden[at + 1] = self.tokenizer.mask_token_id
            out = model(input_ids=torch.from_numpy(hidden)[None].to(device))
            logits = (out.prediction_logits if self.pairs else out.logits)[0, at + 1]
            guesses = zip(*logits.softmax(-1).topk(3), strict=True)
            best = ", ".join(f"{self.text(guess)} {probability:.0%}" for probability, guess in guesses)
            shown.append(f"{self.text(*hidden[1:-1])}\n    was: {self.text(ids[at])}; guessed: {best}")
        return shown

    def text(self, *ids: int) -> str:
        return str(self.tokenizer.decode([int(i) for i in ids])).strip()
