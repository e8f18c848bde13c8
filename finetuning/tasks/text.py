"""Classification of texts and of pairs of texts, by one class or several, and regression (Devlin 2018, 4.1).

E examples of a batch, C classes.
"""

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from scipy.special import softmax
from torch import Tensor

from finetuning.data.labels import MULTI, REGRESSION, SINGLE, balanced
from finetuning.data.tables import Table, load_tables
from finetuning.metrics.calibration import Bin, CalibrationError, fit_temperature, reliability_bins
from finetuning.metrics.classes import TOP, class_table, confusion, multilabel_metrics
from finetuning.metrics.regression import regression_metrics
from finetuning.prepared import Reader, read_texts
from finetuning.tasks.base import FinetuneHead, WindowExamples
from finetuning.tasks.classes import class_metrics, count_classes, explain_class, record_of
from finetuning.tasks.records import Record, WindowScoring
from modeling import KeelBertConfig, KeelBertForSequenceClassification
from pretraining.data import draws
from pretraining.data.packing import Example
from pretraining.errors import UserError
from pretraining.objectives.base import Batch, Objective
from pretraining.settings import Settings

# The metrics of each problem; the first one decides which checkpoint is best, if none is named.
METRICS = {
    SINGLE: ["accuracy", "macro_f1", "matthews", "calibration_error", "loss"],
    MULTI: ["micro_f1", "macro_f1", "subset_accuracy", "loss"],
    REGRESSION: ["pearson", "spearman", "mean_squared_error", "loss"],
}


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

    def load(self) -> dict[str, Table]:
        asked = self.settings.problem
        return load_tables(
            self.run.data, self.kind, None if asked == "auto" else asked, known_names(self.run.init_from)
        )

    def read_labels(self) -> list[str]:
        labels = self.tables["train"].labels
        assert labels is not None
        self.problem, self.classes = labels.problem, labels.names
        if self.settings.calibration and self.problem != SINGLE:
            raise UserError(f"objective.calibration is for one class each, and this is {self.problem}: leave it out.")
        self.labels = {
            split: np.array([labels.target(label) for label in table.targets]) for split, table in self.tables.items()
        }
        if self.problem == REGRESSION:
            return [f"labels: numbers from {labels.low:g} to {labels.high:g}"]
        return [f"labels: {len(self.classes)} classes, {count_classes(self.classes, self.class_counts)}"]

    @property
    def class_counts(self) -> np.ndarray:
        """Training examples of each class (C,)."""
        labels = self.labels["train"]
        return np.bincount(labels, minlength=len(self.classes)) if self.problem == SINGLE else labels.sum(0).astype(int)

    @property
    def labels_name(self) -> str:
        return f"{self.problem} {' '.join(self.classes)}"

    @property
    def metric_names(self) -> list[str]:
        more = ["f1"] if len(self.classes) == 2 else [f"top{TOP}_accuracy"] if len(self.classes) > TOP else []
        return [*METRICS[self.problem], *(more if self.problem == SINGLE else [])]

    def class_weights(self) -> list[float] | None:
        """How much each class weighs in the loss; None: all alike."""
        asked = self.settings.class_weights
        if asked == "none":
            return None
        if self.problem == REGRESSION or len(self.classes) < 2:
            what = "labels are numbers" if self.problem == REGRESSION else "there is one class"
            raise UserError(f"objective.class_weights is set, and {what}: leave it out.")
        if asked == "balanced":
            counts = self.class_counts
            if self.problem == SINGLE:
                return balanced(counts.tolist())
            others = np.maximum(len(self.labels["train"]) - counts, 1)  # of a class that always holds, too
            return (others / np.maximum(counts, 1)).tolist()
        if len(asked) != len(self.classes):
            raise UserError(
                f"objective.class_weights has {len(asked)} numbers, and there are {len(self.classes)} classes, "
                f"{', '.join(self.classes)}: give one for each, in this order."
            )
        with np.errstate(over="ignore"):
            weights = np.array(asked).astype(np.float32)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
            raise UserError(
                f"objective.class_weights are {asked}: they must be finite numbers of at least 0, not all of them 0."
            )
        return list(asked)

    def targets_of(self, split: str, number: int) -> Example:
        return {"labels": self.labels[split][number]}

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        lines, tensors = self.lay_out(rows)
        labels = [example["labels"] for row in rows for example in row]
        kind = torch.long if self.problem == SINGLE else torch.float
        shape = (len(labels), len(self.classes)) if self.problem == MULTI else (len(labels),)
        tensors["labels"] = torch.from_numpy(np.array(labels)).to(kind).view(shape)
        # Each class of several is a target of its own, as in transformers, which takes the mean over them.
        units = int((tensors["sequence_ids"] != 0).sum())
        return Batch(tensors, {"labels": tensors["labels"].numel()}, units, lines.index)


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
        names = examples.classes if examples.problem != REGRESSION else ["LABEL_0"]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        config.problem_type = examples.problem
        config.class_weights = examples.class_weights()


class TextScoring(WindowScoring[TextExamples]):
    """Loss and metrics by the kind of label; of classes at the end also each class's, and a confusion matrix."""

    bins: list[Bin] = []

    def records(self, out: Any, batch: Batch) -> list[Record]:
        labels, index = batch.tensors["labels"].cpu(), batch.source
        logits = out.logits.float().cpu()[: len(index)]  # (E, C)
        rows = zip(index, logits, labels, strict=True)
        return [{"index": number, **record_of(self.examples.problem, *row)} for number, *row in rows]

    def score(self, records: list[Record], final: bool) -> dict[str, float]:
        problem, classes = self.examples.problem, self.examples.classes
        predicted = [record["predicted"] for record in records]
        labels = [record["label"] for record in records]
        if problem == REGRESSION:
            return regression_metrics(predicted, labels)
        if final:
            self.class_rows = class_table(predicted, labels, classes)
        if problem == MULTI:
            return multilabel_metrics(predicted, labels)
        if final:
            self.confusion = confusion(predicted, labels, len(classes))
            correct = [one == other for one, other in zip(predicted, labels, strict=True)]
            self.bins = reliability_bins([record["confidence"] for record in records], correct)
        return class_metrics(records, len(classes))

    def calibrate(
        self, model: Any, batches: Iterator[tuple[Batch, dict[str, Tensor]]], accelerator: Accelerator
    ) -> str:
        if not self.examples.settings.calibration:
            return ""
        kept: list[tuple[int, int, list[float]]] = []  # the number, class and logits of each example
        for batch, inputs in batches:
            index, labels = batch.source, batch.tensors["labels"].tolist()
            out = model(**{name: x for name, x in inputs.items() if name not in batch.targets})
            kept += zip(index, labels, out.logits[: len(index)].double().tolist(), strict=True)
        rows = sorted(gather_object(kept))
        true, logits = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
        is_fitted = draws.uniform(draws.SUBSET, np.array([row[0] for row in rows])) < 0.5
        if len(rows) < 2 or is_fitted.all() or not is_fitted.any():
            return "calibration: too few held-out examples to fit a temperature on half of them"
        temperature = fit_temperature(logits[is_fitted], true[is_fitted])
        before, after = (
            calibration_error(logits[~is_fitted] / divisor, true[~is_fitted]) for divisor in (1.0, temperature)
        )
        # Logits divided by T are those of a head divided by T: every tool that opens the model is calibrated.
        for parameter in model.classifier.parameters():
            parameter.div_(temperature)
        return (
            f"calibration: temperature {temperature:.3f}, fitted on {is_fitted.sum():,} held-out examples and divided "
            f"out of the classifier; calibration error of the other {(~is_fitted).sum():,}: {before:.4f} -> {after:.4f}"
        )

    def explain(self, record: Record, row: dict[str, Any]) -> Record:
        problem, classes = self.examples.problem, self.examples.classes
        if problem == REGRESSION:
            return {"true": record["label"], "predicted": round(record["predicted"], 4)}
        if problem == MULTI:
            true, predicted = (
                [label for label, holds in zip(classes, record[key], strict=True) if holds]
                for key in ("label", "predicted")
            )
            return {"true": true, "predicted": predicted}
        return explain_class(record, classes)

    def draw_pictures(self, folder: Any) -> list[Any]:
        paths = super().draw_pictures(folder)
        if self.bins:
            from finetuning.pictures import draw_reliability

            draw_reliability(self.bins, folder / "reliability.png")
            paths.append(folder / "reliability.png")
        return paths


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error of logits (N, C) and their true classes (N,)."""
    confidence = softmax(logits, axis=1).max(1)
    return CalibrationError().score(confidence.tolist(), (logits.argmax(1) == labels).tolist())


def objective(settings: Settings) -> Objective:
    return Objective.of(TextExamples(settings), TextHead, TextScoring)
