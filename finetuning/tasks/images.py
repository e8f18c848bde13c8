"""Classification of images by a model that was pretrained on others, or without labels (Dosovitskiy 2020, 4.1)."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetuning.adapt import adapt, merge
from finetuning.data.labels import SINGLE
from finetuning.metrics.base import rank
from finetuning.metrics.classes import class_table, confusion
from finetuning.tasks.records import Record, write_report
from finetuning.tasks.text import class_metrics, record_of
from pretraining.data.packing import Example
from pretraining.objectives.base import Batch, Objective
from pretraining.objectives.classification import ClassificationHead, ClassificationScoring, LabelledImages
from pretraining.settings import Settings


class NumberedImages(LabelledImages):
    """Images that know their number, for their records."""

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        examples = super().examples(split, epoch, index, progress)
        for example, number in zip(examples, index.tolist(), strict=True):
            example["index"] = np.array(number)
        return examples

    def blank(self) -> Example:
        return super().blank() | {"index": np.array(-1)}


class ImageFinetuneHead(ClassificationHead):
    """A body that is pretrained, or fresh, and a classifier that is fresh."""

    def adapt(self, model: PreTrainedModel) -> None:
        adapt(model, self.examples.settings)

    def merge(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return merge(weights, self.examples.settings)


class ImageRecords(ClassificationScoring):
    """The metrics of classes, from a record of each held-out image."""

    worst: list[Record] = []
    class_rows: list[dict[str, str | float]] = []

    def observe(self, model: nn.Module, inputs: dict[str, Tensor], batch: Batch) -> tuple[dict, list[Record]]:
        logits = model(pixel_values=inputs["pixel_values"]).logits.float().cpu()  # (B, C)
        labels, index = batch.tensors["labels"].cpu(), batch.tensors["index"].tolist()
        rows = zip(index, logits, labels, strict=True)
        return {}, [
            {"index": number, **record_of(SINGLE, scores, label)} for number, scores, label in rows if number >= 0
        ]

    def score_outputs(self, model: Any, index: np.ndarray, accelerator: Any, final: bool) -> dict[str, float]:
        return {}

    def rank(self, metrics: dict[str, float]) -> float:
        return rank(self.examples.settings.metric, metrics[self.examples.settings.metric])

    def score_records(self, records: list[Record], final: bool) -> dict[str, float]:
        classes = self.examples.classes
        if final:
            by_loss = sorted(records, key=lambda record: -record["loss"])
            self.worst = by_loss[: self.examples.settings.worst]
            predicted, labels = ([record[name] for record in records] for name in ("predicted", "label"))
            self.confusion = confusion(predicted, labels, len(classes))
            self.class_rows = class_table(predicted, labels, classes)
        loss = float(np.mean([record["loss"] for record in records]))
        return {"loss": loss, **class_metrics(records, len(classes))}

    def draw_pictures(self, folder: Path) -> list[Path]:
        classes, data = self.examples.classes, self.examples.data["validation"]
        worst = [
            {
                "place": data.place(record["index"]),
                "true": classes[record["label"]],
                "predicted": classes[record["predicted"]],
                "confidence": round(record["confidence"], 4),
                "loss": round(record["loss"], 4),
            }
            for record in self.worst
        ]
        return [*write_report(folder, worst, self.class_rows), *super().draw_pictures(folder)]


def objective(settings: Settings) -> Objective:
    return Objective.of(NumberedImages(settings), ImageFinetuneHead, ImageRecords)
