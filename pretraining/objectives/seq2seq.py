"""What translation and denoising share: a source and a target in one packed row, and texts that a model writes."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling import KeelSeq2SeqConfig, KeelSeq2SeqForConditionalGeneration
from modeling.search import Search
from pretraining.data.packing import IGNORED, Example, layout, pack_tokens
from pretraining.data.plan import choose_row_lengths
from pretraining.data.settings import between
from pretraining.errors import UserError
from pretraining.metrics import Bleu, ChrF, ExactMatch, TextMetric
from pretraining.objectives.base import TokenObjective, TokenObjectiveSettings, by_all_processes
from pretraining.settings import Settings

AT_A_TIME = 64  # texts written; those that are finished leave the batch


@dataclass
class Seq2SeqSettings(TokenObjectiveSettings):
    """Lengths, and how a model's own writing is judged."""

    sequence_length: int = 128
    """Longest source or target in tokens, their end token included."""
    row_length: int | None = None
    """Tokens in a packed row, on the side that has more of them; null: as the data's lengths ask for."""
    metric: Literal["loss", "bleu", "chrf", "exact_match"] = "loss"
    """The measure that decides which checkpoint is best."""
    bleu_tokenize: Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char"] = "13a"
    """How sacreBLEU cuts the targets into words: zh, ja-mecab, ko-mecab or char for those without spaces."""
    written: int = 256
    """Held-out examples of which, at each evaluation, the model writes the target by itself, greedily; 0: none."""
    beams: int = 4
    """Beams with which the exported model writes the held-out targets at the end, and by default ever after."""
    length_penalty: float = 1.0
    """Of a beam: its log-probability is divided by its length to this power."""

    def __post_init__(self) -> None:
        between("objective.sequence_length", self.sequence_length, 4)
        between("objective.row_length", self.row_length or self.sequence_length, self.sequence_length)
        between("objective.written", self.written, 0)
        between("objective.beams", self.beams, 1)
        if self.metric != "loss" and not self.written:
            raise UserError(f"objective.metric is {self.metric}, of what the model writes: set objective.written.")


def compare(found: list[tuple[str, str, str]], metric: TextMetric) -> float:
    """A measure of what was written, from (group, written, reference)."""
    _, written, references = zip(*found, strict=True)
    return metric.score(written, references)


class Seq2Seq(TokenObjective):
    """The part of an objective that does not ask where examples come from.

    An example has `input_ids` and `labels`, both with their end token.
    """

    targets: tuple[str, ...] = ("labels",)
    resume_exempt = ("beams", "length_penalty")

    def configure(self, settings: Settings) -> None:
        super().configure(settings)
        self.metric = self.settings.metric
        self.lower_is_better = self.metric == "loss"
        self.signatures = {name: metric.signature() for name, metric in self.metrics().items()}

    def metrics(self) -> dict[str, TextMetric]:
        """What is measured of written texts, by name."""
        return {"bleu": Bleu(self.settings.bleu_tokenize), "chrf": ChrF(), "exact_match": ExactMatch()}

    def open(self) -> None:
        splits = ("train", "validation")
        longest = [self.lengths(split, 0, self.in_any_epoch(split)).max(0) for split in splits]
        train = self.lengths("train", 0, self.index("train", 0))
        self.row_lengths = choose_row_lengths(train, np.max(longest, axis=0), self.settings.row_length)

    @property
    def writes_by(self) -> str:
        counts = {"objective.written": self.settings.written, "evaluation.samples": self.run.evaluation.samples}
        return next((f"{name} above 0" for name, count in counts.items() if count), "")

    @abstractmethod
    def in_any_epoch(self, split: str) -> np.ndarray:
        """The examples that the split has in one epoch or another: (N,)."""

    @property
    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """Each side's; ids of padding and end, and the number of entries, are the same."""
        target = self.tokenizer if self.target_tokenizer is None else self.target_tokenizer
        return {"input_ids": self.tokenizer, "labels": target}

    def group(self, number: int) -> str:
        """What kind of held-out example it is; empty: there are no kinds."""
        return ""

    def build_model(self, config: KeelSeq2SeqConfig) -> PreTrainedModel:
        """Its vocabulary is the tokenizer's; it starts a target with padding, as Marian."""
        config.vocab_size = len(self.tokenizer)
        config.pad_token_id = config.decoder_start_token_id = self.tokenizer.pad_token_id
        config.eos_token_id = self.tokenizer.eos_token_id
        config.share_encoder_decoder_embeddings = self.target_tokenizer is None
        for tokenizer in self.tokenizers.values():
            tokenizer.model_max_length = config.max_position_embeddings
        model = KeelSeq2SeqForConditionalGeneration(config)
        defaults: Any = model.generation_config
        defaults.max_length = self.settings.sequence_length + 1  # the start token
        defaults.num_beams = self.settings.beams
        if self.settings.beams > 1:  # transformers saves no penalty of what no beam pays
            defaults.length_penalty = self.settings.length_penalty
        return model

    def collate(self, rows: list[list[Example]], sequences: int) -> dict[str, Tensor]:
        source, target = self.row_lengths
        pad = self.tokenizer.pad_token_id
        memory, written = layout(rows, "input_ids", source, sequences), layout(rows, "labels", target, sequences)
        labels = pack_tokens(rows, "labels", target, IGNORED)
        before = labels.roll(1, 1)  # each token's predecessor; an example's first one follows padding
        return {
            "input_ids": pack_tokens(rows, "input_ids", source, pad),
            "decoder_input_ids": before.masked_fill((written["position_ids"] == 0) | (labels == IGNORED), pad),
            "labels": labels,
            "sequence_ids": memory["sequence_ids"],
            "decoder_sequence_ids": written["sequence_ids"],
            "cu_seq_lens_q": written["cu_seq_lens_q"],
            "cu_seq_lens_k": memory["cu_seq_lens_k"],
        }

    def count(self, batch: dict[str, Tensor]) -> int:
        return int((batch["sequence_ids"] != 0).sum() + (batch["decoder_sequence_ids"] != 0).sum())

    def evaluate(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Each measure's sum and count over the batch; the loss is without label smoothing, in nats a token."""
        labels = batch["labels"]
        count = (labels != IGNORED).sum()
        out = model(**self.judged(batch), num_items_in_batch={"labels": torch.ones((), device=labels.device)})
        return {"loss": (out.loss, count), "token_accuracy": ((out.logits.argmax(-1) == labels).sum(), count)}

    def judged(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The arguments that an evaluation's loss is of."""
        return batch

    def write(self, model: PreTrainedModel, sources: list[np.ndarray], beams: int) -> list[str]:
        """The texts that the model writes for sources, their end token included."""
        device, pad = next(model.parameters()).device, self.tokenizer.pad_token_id
        texts = [""] * len(sources)
        order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))  # alike in length, little padding
        search = Search(model)
        for first in range(0, len(order), AT_A_TIME):
            some = order[first : first + AT_A_TIME]
            ids = np.full((len(some), len(sources[some[0]])), pad, dtype=np.int64)
            for row, i in zip(ids, some, strict=True):
                row[: len(sources[i])] = sources[i]
            inputs = torch.from_numpy(ids).to(device)
            targets = search(
                inputs,
                inputs != pad,
                max_length=self.settings.sequence_length + 1,  # the start token
                num_beams=beams,
                length_penalty=self.settings.length_penalty,
            )
            for i, target in zip(some, targets, strict=True):
                texts[i] = self.text("labels", target)
        return texts

    def text(self, side: str, ids: np.ndarray | Tensor) -> str:
        """What tokens of a side ("input_ids" or "labels") say."""
        return str(self.tokenizers[side].decode(ids.tolist(), skip_special_tokens=True)).strip()

    def references(self, index: np.ndarray, examples: list[Example]) -> list[str]:
        """What the model should write for held-out examples `index` (N,), as their source has it."""
        return [self.text("labels", example["labels"]) for example in examples]

    @torch.no_grad()
    def judge(
        self, model: Any, index: np.ndarray, accelerator: Accelerator, thorough: bool = False
    ) -> dict[str, float]:
        """What the model writes for held-out examples by itself, compared with their targets, all processes together.

        Args:
            index: the held-out examples.
            thorough: all of them, by beam search, and each group's exact matches; else a few, greedily.
        """
        if not self.settings.written:
            return {}
        index = index if thorough else index[: self.settings.written]
        beams = self.settings.beams if thorough else 1

        def write(own: np.ndarray) -> list[tuple[str, str, str]]:
            examples = self.examples("validation", 0, own)
            sources = [example["input_ids"] for example in examples]
            written = self.write(model, sources, beams)
            return list(zip(map(self.group, own.tolist()), written, self.references(own, examples), strict=True))

        found = by_all_processes(index, accelerator, write)
        measures = {name: compare(found, metric) for name, metric in self.metrics().items()}
        if thorough:
            for group in sorted({group for group, *_ in found} - {""}):
                measures[f"exact_match {group}"] = compare([row for row in found if row[0] == group], ExactMatch())
        return measures

    @torch.no_grad()
    def samples(self, model: Any, count: int) -> list[str]:
        """Some sources, what the model makes of them, and what was right."""
        index = self.index("validation", 0)[:count]
        examples = self.examples("validation", 0, index)
        sources = [example["input_ids"] for example in examples]
        written, right = self.write(model, sources, 1), self.references(index, examples)
        return [
            f"{self.text('input_ids', source)}\n    written: {text}\n    right:   {target}"
            for source, text, target in zip(sources, written, right, strict=True)
        ]
