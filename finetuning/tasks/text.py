"""Classification of texts and of pairs of texts, by one class or several, and regression (Devlin 2018, 4.1).

N examples, R rows, P the most windows in a row, C classes.
"""

from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetuning import metrics
from finetuning.data.labels import Labels, balanced, guess_problem
from finetuning.prepared import Reader, read_texts
from finetuning.tasks.base import FinetuneHead, Record, RecordScoring, WindowExamples, members, pack_labels
from modeling import KeelBertConfig, KeelBertForSequenceClassification
from pretraining.data.packing import Example
from pretraining.errors import UserError
from pretraining.objectives.base import Batch, Objective
from pretraining.settings import Settings

PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
# The metrics of each problem; the first one decides which checkpoint is best, if none is named.
METRICS = {
    "single_label_classification": ["accuracy", "macro_f1", "matthews", "ece", "loss"],
    "multi_label_classification": ["micro_f1", "macro_f1", "subset_accuracy", "loss"],
    "regression": ["pearson", "spearman", "mse", "loss"],
}
TOP = 5


class TextExamples(WindowExamples):
    """A text or a pair each, with its label."""

    kind = "text"

    @cached_property
    def shown(self) -> list[str]:
        has_pair = any(pair is not None for pair in self.tables["train"].dataset["pair"])
        return ["text", "pair"] if has_pair else ["text"]

    @property
    def reader(self) -> Reader:
        return partial(read_texts, columns=self.shown)

    def read_labels(self) -> list[str]:
        values = {split: table.dataset["label"][:] for split, table in self.tables.items()}
        asked = self.settings.problem
        self.problem = guess_problem(values["train"]) if asked == "auto" else PROBLEMS[asked]
        self.label_set = Labels.of(values["train"], self.problem, known_names(self.run.init_from))
        self.labels: dict[str, np.ndarray] = {
            split: self.label_set.numbers(values[split], self.tables[split]) for split in values
        }
        if self.problem == "regression":
            low, high = self.labels["train"].min(), self.labels["train"].max()
            return [f"labels: numbers from {low:g} to {high:g}"]
        if self.problem == "single_label_classification":
            counts = np.bincount(self.labels["train"], minlength=len(self.classes))
        else:
            counts = self.labels["train"].sum(0).astype(int)
        shown = ", ".join(f"{name} {count:,}" for name, count in list(zip(self.classes, counts, strict=True))[:20])
        return [f"labels: {len(self.classes)} classes, {shown}{', ...' if len(self.classes) > 20 else ''}"]

    @property
    def classes(self) -> list[str]:
        return self.label_set.names

    @property
    def labels_name(self) -> str:
        return f"{self.problem} {' '.join(self.label_set.names)}"

    @property
    def metric_names(self) -> list[str]:
        names = METRICS[self.problem]
        return [*names, f"top{TOP}_accuracy"] if len(self.classes) > TOP else names

    def class_weights(self) -> list[float] | None:
        """How much each class weighs in the loss; None: all alike."""
        asked = self.settings.class_weights
        if asked == "none":
            return None
        if self.problem == "regression":
            raise UserError("objective.class_weights is set, and labels are numbers: leave it out.")
        if asked == "balanced":
            if self.problem == "single_label_classification":
                return balanced(np.bincount(self.labels["train"], minlength=len(self.classes)))
            positive = self.labels["train"].sum(0)
            return ((len(self.labels["train"]) - positive) / np.maximum(positive, 1)).tolist()
        if len(asked) != len(self.classes):
            raise UserError(
                f"objective.class_weights has {len(asked)} numbers, and there are {len(self.classes)} classes, "
                f"{', '.join(self.classes)}: give one for each, in this order."
            )
        return list(asked)

    def targets_of(self, split: str, number: int, example: Example) -> Example:
        return {"labels": self.labels[split][number]}

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        tensors = self.pack_windows(rows, sequences)
        several = self.problem == "multi_label_classification"
        shape = (len(self.classes),) if several else ()
        kind = np.int64 if self.problem == "single_label_classification" else np.float32
        tensors["labels"] = pack_labels(rows, tensors["index"].shape[1], shape, kind)
        if self.most_windows == 1:  # a window is an example
            del tensors["example_ids"]
        # Each class of several is a target of its own, as in transformers, which takes the mean over them.
        targets = sum(map(len, rows)) * max(1, *shape) if several else sum(map(len, rows))
        return Batch(tensors, {"labels": targets}, units=int((tensors["sequence_ids"] != 0).sum()))


def known_names(checkpoint: str | None) -> list[str] | None:
    """The classes of a checkpoint that is a classifier already, in its order; None: it has no names for them."""
    if checkpoint is None:
        return None
    from transformers import AutoConfig

    names = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).id2label or {}
    ordered = [str(names[number]) for number in sorted(names)]
    return None if ordered == [f"LABEL_{number}" for number in range(len(ordered))] else ordered


class TextHead(FinetuneHead[TextExamples]):
    model_class = KeelBertForSequenceClassification

    def configure(self, config: KeelBertConfig) -> None:
        examples = self.examples
        names = examples.classes if examples.problem != "regression" else ["LABEL_0"]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        config.problem_type = examples.problem
        config.class_weights = examples.class_weights()


class TextScoring(RecordScoring[TextExamples]):
    """Loss and metrics by the kind of label; of classes at the end also each class's, and a confusion matrix."""

    confusion: np.ndarray | None = None

    def records(self, out: Any, batch: Batch) -> list[Record]:
        problem = self.examples.problem
        logits = out.logits.float().cpu()  # (R, P, C)
        labels = batch.tensors["labels"].cpu()
        found: list[Record] = []
        for row, place, number in members(batch.tensors["index"]):
            scores, label = logits[row, place], labels[row, place]
            found.append({"index": number, **record_of(problem, scores, label)})
        return found

    def score(self, records: list[Record], final: bool) -> dict[str, float]:
        problem, classes = self.examples.problem, self.examples.classes
        predicted = np.array([record["predicted"] for record in records])
        labels = np.array([record["label"] for record in records])
        if problem == "regression":
            return metrics.regression(predicted, labels)
        if problem == "multi_label_classification":
            return metrics.multi_label(predicted, labels, classes, by_class=final)
        confidence = np.array([record["confidence"] for record in records])
        found = metrics.classification(predicted, labels, classes, by_class=final)
        found["ece"] = metrics.expected_calibration_error(confidence, predicted == labels)
        if len(classes) > TOP:
            found[f"top{TOP}_accuracy"] = float(np.mean([record["rank"] < TOP for record in records]))
        if final:
            self.confusion = metrics.confusion(predicted, labels, len(classes))
        return found

    def explain(self, record: Record, row: dict[str, Any]) -> Record:
        name, classes = self.examples.problem, self.examples.classes
        if name == "regression":
            return {"true": record["label"], "predicted": round(record["predicted"], 4)}
        if name == "multi_label_classification":
            true, predicted = (
                [label for label, holds in zip(classes, record[key], strict=True) if holds]
                for key in ("label", "predicted")
            )
            return {"true": true, "predicted": predicted}
        return {
            "true": classes[record["label"]],
            "predicted": classes[record["predicted"]],
            "confidence": round(record["confidence"], 4),
        }

    def draw_pictures(self, folder: Any) -> list[Any]:
        paths = super().draw_pictures(folder)
        if self.confusion is not None:
            from pretraining.pictures.charts import draw_confusion

            draw_confusion(self.confusion, self.examples.classes, folder / "confusion.png")
            paths.append(folder / "confusion.png")
        return paths


def record_of(problem: str, scores: Tensor, label: Tensor) -> Record:
    """What is kept of an example with these logits (C,) and this label."""
    if problem == "regression":
        value, true = float(scores[0]), float(label)
        return {"predicted": value, "label": true, "loss": (value - true) ** 2}
    if problem == "multi_label_classification":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, label.float())
        return {"predicted": (scores > 0).tolist(), "label": (label > 0.5).tolist(), "loss": float(loss)}
    log_probabilities, true = scores.log_softmax(-1), int(label)
    best = int(scores.argmax())
    return {
        "predicted": best,
        "label": true,
        "confidence": float(log_probabilities[best].exp()),
        "rank": int((scores > scores[true]).sum()),
        "loss": -float(log_probabilities[true]),
    }


def objective(settings: Settings) -> Objective:
    return Objective.of(TextExamples(settings), TextHead, TextScoring)
