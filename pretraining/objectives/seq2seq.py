"""What translation and denoising share: a source and a target in one packed row, and texts that a model generates.

N examples, R rows.
"""

import re
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling import KeelSeq2SeqConfig, KeelSeq2SeqForConditionalGeneration
from modeling.search import Search
from pretraining.data.packing import IGNORED, Example, layout, pack_tokens
from pretraining.data.plan import choose_row_lengths
from pretraining.data.text.filters import UNSPACED
from pretraining.metrics import Bleu, ChrF, ExactMatch, TextMetric
from pretraining.objectives.base import Batch, Scoring, by_all_processes
from pretraining.objectives.text import TokenExamples, TokenHead

AT_A_TIME = 64  # texts generated; those that are finished leave the batch


class Seq2SeqExamples(TokenExamples):
    """Examples of `input_ids` and `labels`, both with their end token, whatever they come from."""

    @property
    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """Each side's; ids of padding and end, and the number of entries, are the same."""
        target = self.tokenizer if self.target_tokenizer is None else self.target_tokenizer
        return {"input_ids": self.tokenizer, "labels": target}

    @abstractmethod
    def all_examples(self, split: str) -> np.ndarray:
        """The examples that the split has in one epoch or another: (N,)."""

    def index_examples(self) -> None:
        longest = [self.lengths(split, 0, self.all_examples(split)).max(0) for split in ("train", "validation")]
        train = self.lengths("train", 0, self.index("train", 0))
        self.row_lengths = choose_row_lengths(train, np.max(longest, axis=0), self.settings.row_length)

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        source, target = self.row_lengths
        pad = self.tokenizer.pad_token_id
        encoder = layout(rows, "input_ids", source, sequences)
        decoder = layout(rows, "labels", target, sequences)
        labels = pack_tokens(rows, "labels", target, IGNORED)  # (rows, target)
        # Teacher forcing: a token is predicted from its predecessors. An example's first token follows padding, as in
        # Marian, never the last token of the example before it in the row.
        predecessors = labels.roll(1, 1)
        is_first = decoder["position_ids"] == 0
        tensors = {
            "input_ids": pack_tokens(rows, "input_ids", source, pad),
            "decoder_input_ids": predecessors.masked_fill(is_first | (labels == IGNORED), pad),
            "labels": labels,
            "sequence_ids": encoder["sequence_ids"],
            "decoder_sequence_ids": decoder["sequence_ids"],
            "cu_seq_lens_q": decoder["cu_seq_lens_q"],
            "cu_seq_lens_k": encoder["cu_seq_lens_k"],
        }
        units = int((encoder["sequence_ids"] != 0).sum() + (decoder["sequence_ids"] != 0).sum())
        return Batch(tensors, {"labels": int((labels != IGNORED).sum())}, units)

    def decode(self, side: str, ids: np.ndarray | Tensor) -> str:
        """The text of tokens of a side ("input_ids" or "labels")."""
        return str(self.tokenizers[side].decode(ids.tolist(), skip_special_tokens=True)).strip()

    def references(self, index: np.ndarray, examples: list[Example]) -> list[str]:
        """The texts that the model should generate for held-out examples `index` (N,), as their source has them."""
        return [self.decode("labels", example["labels"]) for example in examples]

    def describe_bleu(self) -> list[str]:
        """A line where BLEU counts words by spaces, and the held-out targets are written without."""
        options = self.settings
        if not options.generate_examples or options.bleu_tokenize not in ("13a", "intl"):
            return []
        index = self.index("validation", 0)[: options.generate_examples]
        text = "".join(self.references(index, self.examples("validation", 0, index)))
        unspaced = len(re.findall(f"[{UNSPACED}]", text))
        if unspaced <= 0.5 * sum(map(str.isalpha, text)):
            return []
        return [
            f"bleu: objective.bleu_tokenize is {options.bleu_tokenize}, which cuts words at spaces, and the targets "
            "have none: set it to zh, ja-mecab or char"
        ]

    def group(self, number: int) -> str:
        """The kind of a held-out example, which is scored by itself too; empty: there are no kinds."""
        return ""


class Seq2SeqHead(TokenHead[Seq2SeqExamples]):
    """An encoder-decoder whose vocabulary is the tokenizer's."""

    def build_model(self, config: KeelSeq2SeqConfig) -> PreTrainedModel:
        examples, settings = self.examples, self.examples.settings
        config.vocab_size = len(examples.tokenizer)
        config.pad_token_id = config.decoder_start_token_id = examples.tokenizer.pad_token_id
        config.eos_token_id = examples.tokenizer.eos_token_id
        config.share_encoder_decoder_embeddings = examples.target_tokenizer is None
        for tokenizer in examples.tokenizers.values():
            tokenizer.model_max_length = config.max_position_embeddings
        model = KeelSeq2SeqForConditionalGeneration(config)
        defaults: Any = model.generation_config
        defaults.max_length = settings.sequence_length + 1  # the start token
        defaults.num_beams = settings.beams
        if settings.beams > 1:  # transformers refuses to save a penalty that no beam pays
            defaults.length_penalty = settings.length_penalty
        return model


class Seq2SeqScoring(Scoring[Seq2SeqExamples]):
    """The loss of held-out targets, and metrics of the texts that the model generates for their sources."""

    def __init__(self, examples: Seq2SeqExamples):
        super().__init__(examples)
        tokenize = examples.settings.bleu_tokenize
        self.metrics: dict[str, TextMetric] = {"bleu": Bleu(tokenize), "chrf": ChrF(), "exact_match": ExactMatch()}
        self.signatures = {name: metric.signature() for name, metric in self.metrics.items()}

    def sums(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """The loss is without label smoothing and alignments, in nats a token."""
        inputs = {name: value for name, value in inputs.items() if name != "alignment_labels"}
        labels = inputs["labels"]
        count = (labels != IGNORED).sum()
        out = model(**inputs, num_items_in_batch={"labels": torch.ones((), device=labels.device)})
        return {"loss": (out.loss, count), "token_accuracy": ((out.logits.argmax(-1) == labels).sum(), count)}

    def generate(self, model: PreTrainedModel, sources: list[np.ndarray], beams: int) -> list[str]:
        """The texts that the model generates for sources, their end token included."""
        device, settings = next(model.parameters()).device, self.examples.settings
        texts = [""] * len(sources)
        longest_first = sorted(range(len(sources)), key=lambda i: -len(sources[i]))  # alike in length, little padding
        search = Search(model)
        for first in range(0, len(sources), AT_A_TIME):
            members = longest_first[first : first + AT_A_TIME]
            shape = len(members), len(sources[members[0]])
            ids = np.full(shape, self.examples.tokenizer.pad_token_id, dtype=np.int64)
            for row, i in zip(ids, members, strict=True):
                row[: len(sources[i])] = sources[i]
            input_ids = torch.from_numpy(ids).to(device)
            targets = search(
                input_ids,
                input_ids != self.examples.tokenizer.pad_token_id,
                max_length=settings.sequence_length + 1,  # the start token
                num_beams=beams,
                length_penalty=settings.length_penalty,
            )
            for i, target in zip(members, targets, strict=True):
                texts[i] = self.examples.decode("labels", target)
        return texts

    @torch.no_grad()
    def score_outputs(self, model: Any, index: np.ndarray, accelerator: Accelerator, final: bool) -> dict[str, float]:
        """Metrics of generated texts against their references.

        Args:
            final: of all examples, by beam search, and each group's exact matches; else of a few, greedily.
        """
        settings = self.examples.settings
        if not settings.generate_examples:
            return {}
        index = index if final else index[: settings.generate_examples]
        beams = settings.beams if final else 1

        def work(part: np.ndarray) -> list[tuple[str, str, str]]:
            examples = self.examples.examples("validation", 0, part)
            texts = self.generate(model, [example["input_ids"] for example in examples], beams)
            groups = map(self.examples.group, part.tolist())
            return list(zip(groups, texts, self.examples.references(part, examples), strict=True))

        rows = by_all_processes(index, accelerator, work)  # group, generated text, reference
        _, texts, references = zip(*rows, strict=True)
        scores = {name: metric.score(texts, references) for name, metric in self.metrics.items()}
        if final:
            for group in sorted({group for group, *_ in rows} - {""}):
                _, texts, references = zip(*(row for row in rows if row[0] == group), strict=True)
                scores[f"exact_match {group}"] = ExactMatch().score(texts, references)
        return scores

    @torch.no_grad()
    def samples(self, model: Any, count: int) -> list[str]:
        """Some sources, what the model makes of each, and the reference."""
        index = self.examples.index("validation", 0)[:count]
        examples = self.examples.examples("validation", 0, index)
        sources = [example["input_ids"] for example in examples]
        texts, references = self.generate(model, sources, beams=1), self.examples.references(index, examples)
        return [
            f"{self.examples.decode('input_ids', source)}\n    generated: {text}\n    reference: {reference}"
            for source, text, reference in zip(sources, texts, references, strict=True)
        ]
