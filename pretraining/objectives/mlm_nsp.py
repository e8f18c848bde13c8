"""MLM and NSP on pairs of sentences (Devlin 2018, 3.1).

An example is a chunk of text: it is split in two, its second part kept or exchanged
(`data/text/next_sentence.py`), and some of its tokens are masked (`data/text/masking.py`).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling import KeelBertConfig, KeelBertForMaskedLM, KeelBertForPreTraining
from pretraining.data import draws
from pretraining.data.packing import IGNORED, Example, layout, pack_tokens, pack_values
from pretraining.data.text.corpus import TextCorpus, prepare_corpus
from pretraining.data.text.masking import mask_tokens
from pretraining.data.text.next_sentence import VERSION, SegmentPairs, draw_pairs
from pretraining.data.text.prepared import LIBRARIES
from pretraining.data.tokenise import BLOCK
from pretraining.data.tokenizer import regular_ids, require_tokens, word_starts
from pretraining.errors import UserError
from pretraining.objectives.base import Batch, Objective, Scoring
from pretraining.objectives.text import TokenExamples, TokenHead
from pretraining.settings import Settings

SHORTEST, LONGEST = 1.01, 10.0  # tokens of a word in the mean, beyond which a text has no words to mask
SAMPLE = 2**14  # examples of a split by which the share of those that bear a pair label is told


def log_frequencies(tokens: np.ndarray, vocab_size: int, block: int = BLOCK) -> np.ndarray:
    """The logarithm of each token's share of the text (V,), one more counted of each; in blocks, for memory's sake."""
    counts = np.ones(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), block):
        counts += np.bincount(tokens[start : start + block], minlength=vocab_size)
    return np.log(counts / counts.sum())


class SentencePairExamples(TokenExamples):
    """A chunk of text each, as one segment or as a pair of them."""

    libraries = LIBRARIES
    corpus: TextCorpus

    @property
    def pairs(self) -> bool:
        """Whether an example has two segments and the label of the second loss."""
        return self.settings.next_sentence != "none"

    @property
    def chunk_length(self) -> int:
        """Tokens of text in the longest example, whose special tokens are [CLS] and one or two [SEP]."""
        return self.settings.sequence_length - (3 if self.pairs else 2)

    def prepare(self, is_builder: bool) -> list[str]:
        if self.pairs and self.run.model.type_vocab_size < 2:
            raise UserError(
                f"model.type_vocab_size is {self.run.model.type_vocab_size}, and a pair has two segments: set it to 2, "
                "or objective.next_sentence to none."
            )
        cache, short_rate = Path(self.run.cache).expanduser(), self.settings.short_sequence_rate
        self.corpus = prepare_corpus(
            self.run.data,
            self.run.tokenizer,
            self.chunk_length,
            short_rate,
            cache,
            is_builder,
            self.check_documents,
            self.check_tokenizer,
        )
        self.tokenizer = self.corpus.tokenizer
        self.special = np.zeros(len(self.tokenizer), dtype=bool)
        self.special[self.tokenizer.all_special_ids] = True
        self.regular = regular_ids(self.tokenizer)
        self.check_maskable()
        self.index_examples()
        return [
            *self.corpus.describe(self.chunk_length, self.run.seed),
            *self.describe_unknown({split: data.unknown for split, data in self.corpus.splits.items()}),
            *self.describe_case(source.language for source in self.run.data.sources),
            *self.describe_words(),
            *self.describe_pairs(),
        ]

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError where a token is missing that examples are made with, or words are asked for and unseen."""
        require_tokens(tokenizer, ("cls_token", "sep_token", "mask_token", "pad_token"))
        if self.settings.whole_words:
            word_starts(tokenizer)

    def check_documents(self, counts: dict[str, int]) -> None:
        """Raises UserError where a split has too few documents for NSP."""
        for split, count in counts.items():
            if self.settings.next_sentence == "nsp" and count < 2:
                raise UserError(
                    f"The {split} split has {count} document, and NSP needs two (B comes from another document half of "
                    "the time): add documents, cut the text into more (data.document), or set "
                    "objective.next_sentence to sop or none."
                )

    def check_maskable(self) -> None:
        """Raises UserError where no token of a split can be masked."""
        for split, data in self.corpus.splits.items():
            blocks = (data.tokens[start : start + BLOCK] for start in range(0, len(data.tokens), BLOCK))
            if all(self.special[block].all() for block in blocks):
                raise UserError(
                    f"No token of the {split} split can be masked, for all are {self.tokenizer.unk_token}: "
                    f"{self.mend_unknown()}."
                )

    def describe_words(self) -> list[str]:
        """A line where whole words are to be masked, and the text has none that the tokenizer sees."""
        if self.word_starts is None:
            return []
        tokens = self.data["train"].tokens[:BLOCK]
        length = len(tokens) / max(int(self.word_starts[tokens].sum()), 1)
        if SHORTEST < length < LONGEST:
            return []
        return [
            f"objective.whole_words: a word has {length:.1f} tokens in the mean, as in scripts without spaces, so that "
            + ("single tokens are masked" if length <= SHORTEST else "whole lines are masked: set it to false")
        ]

    def index_examples(self) -> None:
        self.row_lengths = (self.settings.row_size,)
        self.corpus = self.corpus.rechunk(self.chunk_length, self.settings.short_sequence_rate)
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
        self.check_documents({split: len(data.documents) - 1 for split, data in self.data.items()})
        for split, data in self.data.items():
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

    def index(self, split: str, epoch: int) -> np.ndarray:
        return self.corpus.index(split, epoch, self.seed(split))

    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        return self.draw(split, epoch, index).lengths + (3 if self.pairs else 2)

    def draw(self, split: str, epoch: int, index: np.ndarray) -> SegmentPairs:
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

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        (length,) = self.row_lengths
        tensors = {
            "input_ids": pack_tokens(rows, "input_ids", length, self.tokenizer.pad_token_id),
            "token_type_ids": pack_tokens(rows, "token_type_ids", length, 0),
            "labels": pack_tokens(rows, "labels", length, IGNORED),  # (rows, length)
            **layout(rows, "input_ids", length, sequences),
        }
        # Logits are computed at labels alone, 15 % of the tokens: the decoder's matrix is the model's largest.
        tensors["logits_to_keep"] = torch.nonzero(tensors["labels"].flatten() != IGNORED).flatten()
        targets = {"labels": len(tensors["logits_to_keep"])}
        if self.pairs:
            tensors["next_sentence_label"] = pack_values(rows, "next_sentence_label", sequences)  # (rows, sequences)
            targets["next_sentence_label"] = int((tensors["next_sentence_label"] != IGNORED).sum())
        return Batch(tensors, targets, units=int((tensors["sequence_ids"] != 0).sum()))


class MlmNspHead(TokenHead[SentencePairExamples]):
    """BERT with the heads of both losses, or of masked tokens alone."""

    def build_model(self, config: KeelBertConfig) -> PreTrainedModel:
        examples = self.examples
        config.vocab_size = len(examples.tokenizer)
        config.pad_token_id = examples.tokenizer.pad_token_id
        examples.tokenizer.model_max_length = config.max_position_embeddings
        model = KeelBertForPreTraining(config) if examples.pairs else KeelBertForMaskedLM(config)
        if examples.settings.unigram_bias:
            frequencies = log_frequencies(examples.data["train"].tokens, len(examples.tokenizer))
            with torch.no_grad():
                model.mlm.decoder.bias.copy_(torch.from_numpy(frequencies))
        return model


class MlmNspScoring(Scoring[SentencePairExamples]):
    """Loss and accuracy of masked tokens and of pairs."""

    metric = "mlm_loss"

    def sums(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        one, pairs = torch.ones((), device=inputs["labels"].device), "next_sentence_label" in inputs
        out = model(
            **inputs, num_items_in_batch={"labels": one, "next_sentence_label": one} if pairs else {"labels": one}
        )
        labels = inputs["labels"].flatten()[inputs["logits_to_keep"]]  # (M,)
        logits = out.prediction_logits if pairs else out.logits  # (M, V)
        count = torch.as_tensor(len(labels), device=labels.device)
        sums = {
            "mlm_loss": (out.mlm_loss if pairs else out.loss, count),
            "mlm_accuracy": ((logits.argmax(-1) == labels).sum(), count),
        }
        if pairs:
            label = inputs["next_sentence_label"]
            count = (label != IGNORED).sum()
            sums["nsp_loss"] = (out.nsp_loss, count)
            sums["nsp_accuracy"] = ((out.seq_relationship_logits.argmax(-1) == label).sum(), count)
        return sums

    @torch.no_grad()
    def samples(self, model: nn.Module, count: int) -> list[str]:
        """Held-out sentences with one word masked, and the model's three best predictions for it."""
        data, tokenizer = self.examples.data["validation"], self.examples.tokenizer
        starts = data.sentences
        sizes = np.diff(starts)
        longest = min(40, self.examples.settings.sequence_length - 2)  # [CLS] and [SEP] besides
        candidates = np.flatnonzero((sizes >= min(8, longest)) & (sizes <= longest))
        order = np.argsort(draws.hash_key(draws.MASK, candidates), kind="stable")
        device = next(model.parameters()).device
        lines: list[str] = []
        for sentence in candidates[order]:
            if len(lines) == count:
                break
            ids = np.array(data.tokens[starts[sentence] : starts[sentence + 1]], dtype=np.int64)
            words = [i for i, token in enumerate(ids) if self.decode(token).isalpha()]
            if not words:
                continue
            place = words[int(draws.integers(len(words), draws.SPLIT, int(sentence)))]
            masked = np.concatenate([[tokenizer.cls_token_id], ids, [tokenizer.sep_token_id]])
            masked[place + 1] = tokenizer.mask_token_id
            out = model(input_ids=torch.from_numpy(masked)[None].to(device))
            logits = (out.prediction_logits if self.examples.pairs else out.logits)[0, place + 1]  # (V,)
            best = zip(*logits.softmax(-1).topk(3), strict=True)
            predicted = ", ".join(f"{self.decode(token)} {probability:.0%}" for probability, token in best)
            lines.append(f"{self.decode(*masked[1:-1])}\n    true: {self.decode(ids[place])}; predicted: {predicted}")
        return lines

    def decode(self, *ids: int) -> str:
        return str(self.examples.tokenizer.decode([int(i) for i in ids])).strip()


def objective(settings: Settings) -> Objective:
    return Objective.of(SentencePairExamples(settings), MlmNspHead, MlmNspScoring)
