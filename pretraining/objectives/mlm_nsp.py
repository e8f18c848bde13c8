"""MLM and NSP on pairs of sentences (Devlin 2018, 3.1).

An example is a chunk of text: it is split in two, its second part kept or exchanged (`data/next_sentence.py`), and some
of its tokens are hidden (`data/masking.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling import KeelBertConfig, KeelBertForMaskedLM, KeelBertForPreTraining
from pretraining.data import draws
from pretraining.data.packing import IGNORED, Example, layout, pack_tokens, pack_values
from pretraining.data.settings import between
from pretraining.data.text.corpus import Text, prepare
from pretraining.data.text.masking import mask_tokens
from pretraining.data.text.next_sentence import VERSION, Pairs, draw_pairs
from pretraining.data.text.prepared import LIBRARIES
from pretraining.data.tokenizer import regular_ids, require_tokens, word_starts
from pretraining.errors import UserError
from pretraining.objectives.base import TokenObjective, TokenObjectiveSettings
from pretraining.settings import Settings

SAMPLE = 2**14  # examples of a split by which the share of those that bear a pair label is told


@dataclass
class SentencePairsSettings(TokenObjectiveSettings):
    """MLM and NSP on pairs of sentences (Devlin 2018, 3.1)."""

    name: Literal["sentence_pairs"] = "sentence_pairs"
    """The objective."""
    next_sentence: Literal["nsp", "sop", "none"] = "nsp"
    """Second loss: `nsp` (B follows A, or comes from another document), `sop` (the whole sentences of A and B in
    order, or exchanged: Lan 2019, 3.1) or `none` (one segment, masked tokens alone)."""
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


def log_frequencies(tokens: np.ndarray, vocab_size: int, block: int = 2**24) -> np.ndarray:
    """The logarithm of each token's share of the text (V,), one more counted of each; in blocks, for memory's sake."""
    counts = np.ones(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), block):
        counts += np.bincount(tokens[start : start + block], minlength=vocab_size)
    return np.log(counts / counts.sum())


class SentencePairs(TokenObjective):
    """The objective of BERT."""

    metric, lower_is_better = "mlm_loss", True
    libraries = LIBRARIES
    corpus: Text

    def configure(self, settings: Settings) -> None:
        super().configure(settings)
        self.row_lengths = (self.settings.row_length,)
        self.pairs = self.settings.next_sentence != "none"
        self.targets = ("labels", "next_sentence_label") if self.pairs else ("labels",)
        self.longest = self.settings.sequence_length - (3 if self.pairs else 2)

    def prepare(self, is_builder: bool) -> list[str]:
        if self.pairs and self.run.model.type_vocab_size < 2:
            raise UserError(
                f"model.type_vocab_size is {self.run.model.type_vocab_size}, and a pair has two segments: set it to 2, "
                "or objective.next_sentence to none."
            )
        cache, short_rate = Path(self.run.cache).expanduser(), self.settings.short_sequence_rate
        self.corpus = prepare(self.run.data, self.run.tokenizer, self.longest, short_rate, cache, is_builder)
        self.tokenizer = self.corpus.tokenizer
        require_tokens(self.tokenizer, ("cls_token", "sep_token", "mask_token", "pad_token"))
        self.special = np.zeros(len(self.tokenizer), dtype=bool)
        self.special[self.tokenizer.all_special_ids] = True
        self.regular = regular_ids(self.tokenizer)
        self.open()
        return [*self.corpus.describe(self.longest, self.run.seed), *self.describe_pairs()]

    def open(self) -> None:
        self.corpus = self.corpus.cut(self.longest, self.settings.short_sequence_rate)
        self.data, self.fingerprint = self.corpus.splits, self.corpus.fingerprint
        if self.pairs:
            self.fingerprint += f" pairs {VERSION}"
        self.word_starts = word_starts(self.tokenizer) if self.settings.whole_words else None
        self.pair_shares: dict[str, float] = {}
        if self.pairs:
            self.check_pairs()

    def check_pairs(self) -> None:
        """Raises UserError where the next-sentence loss has nothing to ask of a split."""
        kind = self.settings.next_sentence
        for split, data in self.data.items():
            count = len(data.documents) - 1
            if kind == "nsp" and count < 2:
                raise UserError(
                    f"The {split} split has {count} document, and NSP needs two (B comes from another document half of "
                    "the time): add documents, cut the text into more (data.document), or set "
                    "objective.next_sentence to sop or none."
                )
            # Of a sample, evenly spread: the text may be large.
            sample = np.unique(np.linspace(0, len(data) - 1, SAMPLE).astype(np.int64))
            self.pair_shares[split] = float((self.draw(split, 0, sample).label != IGNORED).mean())
            if not self.pair_shares[split]:
                wanting = {
                    "nsp": "a B of another document that looks like the one behind its A: add documents",
                    "sop": "two whole sentences behind the one that it begins in: raise objective.sequence_length, cut "
                    "the text into longer documents (data.document)",
                }
                raise UserError(
                    f"No example of the {split} split has {wanting[kind]}, or set objective.next_sentence to none."
                )

    def describe_pairs(self) -> list[str]:
        """A line that tells how many examples the next-sentence loss has, where there is one."""
        if not self.pairs:
            return []
        shares = [f"{share:.0%} of the {split} examples" for split, share in self.pair_shares.items()]
        return [f"pairs ({self.settings.next_sentence}): {' and '.join(shares)} bear a label, the others masks alone"]

    def build_model(self, config: KeelBertConfig) -> PreTrainedModel:
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

    def index(self, split: str, epoch: int) -> np.ndarray:
        return self.corpus.index(split, epoch, self.seed(split))

    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        return self.draw(split, epoch, index).lengths + (3 if self.pairs else 2)

    def draw(self, split: str, epoch: int, index: np.ndarray) -> Pairs:
        return draw_pairs(self.data[split], self.settings.next_sentence, self.seed(split), epoch, index)

    def mask_rate(self, split: str, progress: float) -> float:
        """Share of the tokens to predict; held-out text keeps the one that the run ends with."""
        start, end = self.settings.mask_rate, self.settings.mask_rate_end
        if end is None:
            return start
        return end if split != "train" else start + (end - start) * progress

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Token arrays, and the label of the pair; the progress decides the masking rate."""
        rate = self.mask_rate(split, progress)
        pairs = self.draw(split, epoch, index)
        tokens = self.data[split].tokens
        cls, sep = (np.array([getattr(self.tokenizer, f"{name}_token_id")]) for name in ("cls", "sep"))
        examples: list[Example] = []
        for i, number in enumerate(index):
            a, b = ([tokens[start:end] for start, end in segment[i]] for segment in (pairs.a, pairs.b))
            first = [cls, *a, sep]
            ids = np.concatenate([*first, *b, sep] if self.pairs else first).astype(np.int64)
            types = np.zeros(len(ids), dtype=np.int64)
            types[sum(map(len, a)) + 2 :] = 1
            inputs, labels = mask_tokens(
                ids,
                ~self.special[ids],
                None if self.word_starts is None else self.word_starts[ids],
                draws.generator(self.seed(split), epoch, draws.MASK, int(number)),
                rate,
                self.settings.mask_token_rate,
                self.settings.random_token_rate,
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
        batch = {
            "input_ids": pack_tokens(rows, "input_ids", self.settings.row_length, self.tokenizer.pad_token_id),
            "token_type_ids": pack_tokens(rows, "token_type_ids", self.settings.row_length, 0),
            "labels": pack_tokens(rows, "labels", self.settings.row_length, IGNORED),
            **layout(rows, "input_ids", self.settings.row_length, sequences),
        }
        batch["logits_to_keep"] = torch.nonzero(batch["labels"].flatten() != IGNORED).flatten()
        if self.pairs:
            batch["next_sentence_label"] = pack_values(rows, "next_sentence_label", sequences)
        return batch

    def count(self, batch: dict[str, Tensor]) -> int:
        return int((batch["sequence_ids"] != 0).sum())

    def evaluate(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        one = torch.ones((), device=batch["labels"].device)
        out = model(**batch, num_items_in_batch=dict.fromkeys(self.targets, one))
        labels = batch["labels"].flatten()[batch["logits_to_keep"]]
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
        most = min(40, self.settings.sequence_length - 2)  # [CLS] and [SEP] besides
        fit = np.flatnonzero((sizes >= min(8, most)) & (sizes <= most))
        order = np.argsort(draws.hash_key(draws.MASK, fit), kind="stable")
        device = next(model.parameters()).device
        shown: list[str] = []
        for sentence in fit[order]:
            if len(shown) == count:
                break
            ids = np.array(data.tokens[starts[sentence] : starts[sentence + 1]], dtype=np.int64)
            words = [i for i, token in enumerate(ids) if self.text(token).isalpha()]
            if not words:
                continue
            at = words[int(draws.integers(len(words), draws.SPLIT, int(sentence)))]
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
