"""The best of several continuations, each scored by itself (Devlin 2018, 4.4).

E examples of a batch.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from finetuning.metrics.classes import Accuracy
from finetuning.prepared import PreparedTexts, Reader
from finetuning.tasks.base import FinetuneHead, WindowExamples
from finetuning.tasks.records import Record, WindowScoring
from finetuning.windows import Windows
from modeling import KeelBertForMultipleChoice
from pretraining.data.packing import Example
from pretraining.objectives.base import Batch, Objective
from pretraining.settings import Settings


def read_choices(dataset: Dataset, choices: int, rows: range) -> list[str]:
    """What is before the choices of each row, then its choices, filled up to `choices` of them."""
    texts: list[str] = []
    for row in dataset.select(rows):
        before = " ".join(filter(None, (row["context"], row["question"])))
        texts += [before, *row["choices"], *[""] * (choices - len(row["choices"]))]
    return texts


class ChoiceExamples(WindowExamples):
    """A context and its choices each; every choice is a sequence, and all lie in one packed row."""

    kind = "choice"

    @property
    def shown(self) -> list[str]:
        return ["context", "question", "choices"]

    @property
    def sides(self) -> int:
        return 1 + self.most_choices

    @property
    def reader(self) -> Reader:
        return partial(read_choices, choices=self.most_choices)

    def read_labels(self) -> list[str]:
        self.counts: dict[str, np.ndarray] = {}
        self.labels: dict[str, np.ndarray] = {}
        for split, table in self.tables.items():
            self.counts[split] = np.array([len(choices) for choices in table.values("choices")])
            self.labels[split] = np.array(table.targets, dtype=np.int64)
        self.most_choices = int(max(counts.max() for counts in self.counts.values()))
        chance = float((1 / self.counts["validation"]).mean())
        right = np.bincount(self.labels["train"])
        return [f"choices: at most {self.most_choices}, right by chance {chance:.1%}; right are {right.tolist()}"]

    @property
    def metric_names(self) -> list[str]:
        return ["accuracy", "loss"]

    def cut(self, split: str) -> Windows:
        """Of what is before the choices, and each of them, one behind the other: each is one window."""
        data = self.data[split]
        context = np.repeat(data.lengths[:, 0], self.most_choices)
        self.has_context = bool(self.data["train"].lengths[:, 0].any())
        lengths = np.stack([context, data.lengths[:, 1:].ravel()], axis=1)
        if not self.has_context:
            lengths = lengths[:, ::-1]
        return Windows.of(lengths, self.has_context, replace(self.settings, windows=1))

    def count_tokens(self, split: str) -> np.ndarray:
        lengths = self.windows[split].lengths.reshape(-1, self.most_choices)
        there = np.arange(self.most_choices) < self.counts[split][:, None]
        return (lengths * there).sum(1)

    def window_lengths(self, split: str) -> np.ndarray:
        return self.windows[split].lengths.reshape(-1, self.most_choices).max(1)

    def window_tokens(self, data: PreparedTexts, windows: Windows, number: int) -> Example:
        cls, sep = (np.array([getattr(self.tokenizer, f"{name}_token_id")]) for name in ("cls", "sep"))
        split = next(split for split, found in self.data.items() if found is data)
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        for choice in range(int(self.counts[split][number])):
            texts = [data.tokens[data.span(number, side)] for side in (0, 1 + choice)]
            ((first, second),) = windows.cut(number * self.most_choices + choice)
            if self.has_context:
                before = np.concatenate([cls, texts[0][first], sep])
                window = np.concatenate([before, texts[1][second], sep])
            else:
                window = before = np.concatenate([cls, texts[1][first], sep])
            segment = np.zeros(len(window), dtype=np.int64)
            segment[len(before) :] = 1
            ids.append(window)
            types.append(segment)
        return {
            "input_ids": np.concatenate(ids).astype(np.int64),
            "token_type_ids": np.concatenate(types),
            "window_lengths": np.array(list(map(len, ids))),
        }

    def tokens_of(self, data: PreparedTexts, windows: Windows, numbers: np.ndarray) -> list[Example]:
        return [self.window_tokens(data, windows, number) for number in numbers.tolist()]

    def targets_of(self, split: str, number: int) -> Example:
        return {"labels": self.labels[split][number]}

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        lines, tensors = self.lay_out(rows)
        choices = lines.sequences_of(tensors["example_ids"].shape[1])
        right = [int(example["labels"]) for row in rows for example in row]
        labels = [places[number] for places, number in zip(choices, right, strict=True)]
        tensors["labels"] = torch.tensor(labels, dtype=torch.long)
        return Batch(tensors, {"labels": len(labels)}, int((tensors["sequence_ids"] != 0).sum()), lines)


class ChoiceHead(FinetuneHead[ChoiceExamples]):
    model_class = KeelBertForMultipleChoice


class ChoiceScoring(WindowScoring[ChoiceExamples]):
    """Loss, and how often the right choice has the highest score."""

    def records(self, out: Any, batch: Batch) -> list[Record]:
        lines, logits = batch.source, out.logits.float().cpu()  # (lines, columns)
        choices = lines.sequences_of(logits.shape[1])
        found: list[Record] = []
        for number, places in zip(lines.index, choices, strict=True):
            log_probabilities = logits.flatten()[places].log_softmax(0)  # (choices,)
            label, best = int(self.examples.labels["validation"][number]), int(log_probabilities.argmax())
            found.append(
                {
                    "index": number,
                    "predicted": best,
                    "label": label,
                    "confidence": float(log_probabilities[best].exp()),
                    "loss": -float(log_probabilities[label]),
                }
            )
        return found

    def score(self, records: list[Record], final: bool) -> dict[str, float]:
        predicted, labels = ([record[key] for record in records] for key in ("predicted", "label"))
        return {"accuracy": Accuracy().score(predicted, labels)}

    def explain(self, record: Record, row: dict[str, Any]) -> Record:
        return {"true": record["label"], "predicted": record["predicted"], "confidence": round(record["confidence"], 4)}


def objective(settings: Settings) -> Objective:
    return Objective.of(ChoiceExamples(settings), ChoiceHead, ChoiceScoring)
