"""A tag for each word: named entities and parts of speech (Devlin 2018, 5.3).

A word's tag is read at its first token. A word that several windows have is learnt in the one in which it has the most
context; its logits in all of them are brought together by their mean.

E examples of a batch, C tags.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from finetuning.metrics.classes import class_table, confusion
from finetuning.metrics.tags import entity_table, is_bio, tag_metrics
from finetuning.prepared import Reader
from finetuning.tasks.base import FinetuneHead, WindowExamples
from finetuning.tasks.classes import count_classes
from finetuning.tasks.records import Record, WindowScoring
from modeling import KeelBertConfig, KeelBertForTokenClassification
from pretraining.data.packing import IGNORED, Example, pack_tokens
from pretraining.objectives.base import Batch, Objective
from pretraining.settings import Settings

NO_WORD = -1


def read_words(dataset: Dataset, rows: range) -> list[str]:
    """The words of some rows, with spaces between."""
    return [" ".join(words) for words in dataset.select(rows)["words"][:]]


def first_tokens_of_words(words: list[str], places: np.ndarray) -> np.ndarray:
    """The number of the word that each token begins, -1 where it begins none: (T,).

    Args:
        places: where each token begins and ends in the words with spaces between (T, 2).
    """
    ends = np.cumsum([len(word) + 1 for word in words])  # behind the space behind each word
    # A token may begin with the space before its word, so that its end tells where it is.
    word = np.searchsorted(ends, np.maximum(places[:, 1] - 1, 0), side="right")
    begins = np.append(True, word[1:] != word[:-1])[: len(word)]
    return np.where(begins, word, NO_WORD)


class TokenExamples(WindowExamples):
    """A sentence of words each, with their tags."""

    kind = "tokens"
    places = True

    @property
    def shown(self) -> list[str]:
        return ["words"]

    @property
    def reader(self) -> Reader:
        return partial(read_words)

    def read_labels(self) -> list[str]:
        labels = self.tables["train"].labels
        assert labels is not None
        self.classes = labels.names
        number = {name: number for number, name in enumerate(self.classes)}
        self.labels = {
            split: [np.array([number[tag] for tag in tags], dtype=np.int64) for tags in table.targets]
            for split, table in self.tables.items()
        }
        counts = np.bincount(np.concatenate(self.labels["train"]), minlength=len(self.classes))
        # What is said of a word that no token stands for.
        self.usual = self.classes.index("O") if "O" in self.classes else int(counts.argmax())
        return [f"tags: {len(self.classes)}, {count_classes(self.classes, counts)}"]

    @property
    def labels_name(self) -> str:
        return " ".join(self.classes)

    @property
    def entities(self) -> bool:
        """Whether tags are B-, I- and O."""
        return is_bio(self.classes)

    @property
    def metric_names(self) -> list[str]:
        return [*(["entity_f1"] if self.entities else []), "accuracy", "macro_f1", "loss"]

    def targets_of(self, split: str, number: int) -> Example:
        data, windows = self.data[split], self.windows[split]
        span = data.span(number, 0)
        assert data.places is not None
        words = first_tokens_of_words(self.tables[split].dataset[number]["words"], data.places[span].astype(np.int64))
        parts: list[np.ndarray] = []
        context: list[np.ndarray] = []
        for part, _ in windows.cut(number):
            window = words[part]
            left = np.arange(len(window))
            parts.append(np.concatenate([[NO_WORD], window, [NO_WORD]]))
            context.append(np.concatenate([[NO_WORD], np.minimum(left, left[::-1]), [NO_WORD]]))
        word_ids = np.concatenate(parts)
        labels = np.full(len(word_ids), IGNORED, dtype=np.int64)
        found = np.flatnonzero(word_ids != NO_WORD)
        # Of a word's places the one with the most context, the first of equals.
        order = found[np.argsort(-np.concatenate(context)[found], kind="stable")]
        _, first = np.unique(word_ids[order], return_index=True)
        chosen = order[first]
        labels[chosen] = self.labels[split][number][word_ids[chosen]]
        return {"labels": labels, "word_ids": word_ids}

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        lines, tensors = self.lay_out(rows)
        del tensors["sequence_starts"], tensors["example_ids"]  # nothing is pooled
        tensors["labels"] = pack_tokens(lines.lines, "labels", self.row_lengths[0], IGNORED)
        targets = int((tensors["labels"] != IGNORED).sum())
        units = int((tensors["sequence_ids"] != 0).sum())
        return Batch(tensors, {"labels": targets}, units, lines)


def word_logits(logits: Tensor, word_ids: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """The mean of each word's logits (W, C) over the windows that have it, and which words any has (W,).

    Args:
        logits: of an example's tokens, window behind window (T, C).
        word_ids: the word that each token begins (T,), -1 for none.
    """
    begins = word_ids != NO_WORD
    sums = torch.zeros(words, logits.shape[1]).index_add(0, word_ids[begins], logits[begins])
    counts = torch.bincount(word_ids[begins], minlength=words)
    return sums / counts.clamp(min=1)[:, None], counts > 0


class TokenHead(FinetuneHead[TokenExamples]):
    model_class = KeelBertForTokenClassification

    def configure(self, config: KeelBertConfig) -> None:
        config.id2label = dict(enumerate(self.examples.classes))
        config.label2id = {name: number for number, name in enumerate(self.examples.classes)}


class TokenScoring(WindowScoring[TokenExamples]):
    """Loss and accuracy of words, and of entities F1 by type."""

    unit = "words"

    def records(self, out: Any, batch: Batch) -> list[Record]:
        examples, lines = self.examples, batch.source
        found: list[Record] = []
        for number, logits in zip(lines.index, lines.windows_of(out.logits.float().cpu()), strict=True):
            word_ids = torch.from_numpy(examples.targets_of("validation", number)["word_ids"])
            true = torch.from_numpy(examples.labels["validation"][number])
            means, read = word_logits(torch.cat(logits), word_ids, len(true))
            predicted = means.argmax(-1).where(read, torch.tensor(examples.usual))
            losses = torch.nn.functional.cross_entropy(means, true, reduction="none")
            found.append(
                {
                    "index": number,
                    "predicted": predicted.tolist(),
                    "label": true.tolist(),
                    "loss": float(losses[read].mean()) if read.any() else 0.0,
                }
            )
        return found

    def score(self, records: list[Record], final: bool) -> dict[str, float]:
        names = self.examples.classes
        predicted, true = (
            [[names[tag] for tag in record[key]] for record in records] for key in ("predicted", "label")
        )
        if final:
            tags, labels = ([tag for record in records for tag in record[key]] for key in ("predicted", "label"))
            self.confusion = confusion(tags, labels, len(names))
            entities = self.examples.entities
            self.class_rows = entity_table(predicted, true) if entities else class_table(tags, labels, names)
        return tag_metrics(predicted, true, names)

    def explain(self, record: Record, row: dict[str, Any]) -> Record:
        names = self.examples.classes
        return {
            "true": [names[tag] for tag in record["label"]],
            "predicted": [names[tag] for tag in record["predicted"]],
        }


def objective(settings: Settings) -> Objective:
    return Objective.of(TokenExamples(settings), TokenHead, TokenScoring)
