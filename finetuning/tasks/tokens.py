"""A tag for each word: named entities and parts of speech (Devlin 2018, 5.3).

A word's tag is read at its first token. A word that several windows have is learnt in the one in which it has the most
context; its logits in all of them are brought together by their mean.

N examples, R rows, L tokens in a row, P the most windows in a row, C tags.
"""

import json
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from finetuning import metrics
from finetuning.data.labels import Labels
from finetuning.prepared import Reader
from finetuning.tasks.base import FinetuneHead, Record, RecordScoring, WindowExamples, members
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
        values = {split: table.dataset["tags"][:] for split, table in self.tables.items()}
        every = [json.dumps(tag) for tags in values["train"] for tag in tags]
        self.label_set = Labels.of(every, "single_label_classification", None)
        self.labels: dict[str, list[np.ndarray]] = {}
        for split, rows in values.items():
            lengths = [len(tags) for tags in rows]
            flat = [json.dumps(tag) for tags in rows for tag in tags]
            owners = np.repeat(np.arange(len(rows)), lengths)
            numbers = self.label_set.numbers(flat, self.tables[split], owners)
            self.labels[split] = np.split(numbers, np.cumsum(lengths)[:-1])
        counts = np.bincount(np.concatenate(self.labels["train"]), minlength=len(self.classes))
        # What is said of a word that no token stands for.
        self.usual = self.classes.index("O") if "O" in self.classes else int(counts.argmax())
        shown = ", ".join(f"{name} {count:,}" for name, count in list(zip(self.classes, counts, strict=True))[:20])
        return [f"tags: {len(self.classes)}, {shown}{', ...' if len(self.classes) > 20 else ''}"]

    @property
    def classes(self) -> list[str]:
        return self.label_set.names

    @property
    def labels_name(self) -> str:
        return " ".join(self.classes)

    @property
    def entities(self) -> bool:
        """Whether tags are B-, I- and O."""
        return any(name.startswith("B-") for name in self.classes)

    @property
    def metric_names(self) -> list[str]:
        return [*(["entity_f1"] if self.entities else []), "accuracy", "macro_f1", "loss"]

    def targets_of(self, split: str, number: int, example: Example) -> Example:
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
        (length,) = self.row_lengths
        tensors = self.pack_windows(rows, sequences)
        del tensors["sequence_starts"], tensors["example_ids"]  # nothing is pooled
        tensors["labels"] = pack_tokens(rows, "labels", length, IGNORED)
        tensors["word_ids"] = pack_tokens(rows, "word_ids", length, NO_WORD)
        targets = int((tensors["labels"] != IGNORED).sum())
        return Batch(tensors, {"labels": targets}, units=int((tensors["sequence_ids"] != 0).sum()))


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


class TokenScoring(RecordScoring[TokenExamples]):
    """Loss and accuracy of words, and of entities F1 by type."""

    confusion: np.ndarray | None = None

    def records(self, out: Any, batch: Batch) -> list[Record]:
        examples = self.examples
        logits, word_ids = out.logits.float().cpu(), batch.tensors["word_ids"].cpu()  # (R, L, C), (R, L)
        lengths = examples.example_lengths["validation"]
        found: list[Record] = []
        row_now, at = -1, 0
        for row, _, number in members(batch.tensors["index"]):
            at = at if row == row_now else 0
            row_now, span = row, slice(at, at + int(lengths[number]))
            at = span.stop
            true = torch.from_numpy(examples.labels["validation"][number])
            means, read = word_logits(logits[row, span], word_ids[row, span], len(true))
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
        classes = self.examples.classes
        predicted = np.array([tag for record in records for tag in record["predicted"]])
        true = np.array([tag for record in records for tag in record["label"]])
        scores = metrics.classification(predicted, true, classes, by_class=final and not self.examples.entities)
        found = {name: scores[name] for name in scores if name != "matthews"}
        if self.examples.entities:
            sequences = (
                [[classes[tag] for tag in record[key]] for record in records] for key in ("predicted", "label")
            )
            found |= metrics.entities(*sequences, by_type=final)
        if final:
            self.confusion = metrics.confusion(predicted, true, len(classes))
        return found

    def explain(self, record: Record, row: dict[str, Any]) -> Record:
        names = self.examples.classes
        return {
            "true": [names[tag] for tag in record["label"]],
            "predicted": [names[tag] for tag in record["predicted"]],
        }

    def draw_pictures(self, folder: Any) -> list[Any]:
        paths = super().draw_pictures(folder)
        if self.confusion is not None:
            from pretraining.pictures.charts import draw_confusion

            draw_confusion(self.confusion, self.examples.classes, folder / "confusion.png")
            paths.append(folder / "confusion.png")
        return paths


def objective(settings: Settings) -> Objective:
    return Objective.of(TokenExamples(settings), TokenHead, TokenScoring)
