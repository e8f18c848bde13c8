"""Classification of images by a model that was pretrained on others, or without labels (Dosovitskiy 2020, 4.1)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetuning import metrics
from finetuning.adapt import adapt, merge
from finetuning.tasks.base import Record
from finetuning.tasks.text import TOP, record_of
from pretraining import files
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

    def observe(self, model: nn.Module, inputs: dict[str, Tensor], batch: Batch) -> tuple[dict, list[Record]]:
        logits = model(pixel_values=inputs["pixel_values"]).logits.float().cpu()  # (B, C)
        labels, index = batch.tensors["labels"].cpu(), batch.tensors["index"].tolist()
        rows = zip(index, logits, labels, strict=True)
        return {}, [
            {"index": number, **record_of("single_label_classification", scores, label)}
            for number, scores, label in rows
            if number >= 0
        ]

    def score_outputs(self, model: Any, index: np.ndarray, accelerator: Any, final: bool) -> dict[str, float]:
        return {}

    def score_records(self, records: list[Record], final: bool) -> dict[str, float]:
        classes = self.examples.classes
        predicted, labels, confidence, losses = (
            np.array([record[name] for record in records]) for name in ("predicted", "label", "confidence", "loss")
        )
        found = {"loss": float(losses.mean()), **metrics.classification(predicted, labels, classes, by_class=final)}
        found["ece"] = metrics.expected_calibration_error(confidence, predicted == labels)
        if len(classes) > TOP:
            found[f"top{TOP}_accuracy"] = float(np.mean([record["rank"] < TOP for record in records]))
        if final:
            by_loss = sorted(records, key=lambda record: -record["loss"])
            self.worst = by_loss[: self.examples.settings.worst]
            self.confusion = metrics.confusion(predicted, labels, len(classes))
        return found

    def draw_pictures(self, folder: Path) -> list[Path]:
        classes, data = self.examples.classes, self.examples.data["validation"]
        lines = [
            json.dumps(
                {
                    "place": data.place(record["index"]),
                    "true": classes[record["label"]],
                    "predicted": classes[record["predicted"]],
                    "confidence": round(record["confidence"], 4),
                    "loss": round(record["loss"], 4),
                },
                ensure_ascii=False,
            )
            for record in self.worst
        ]
        files.write_text(folder / "worst.jsonl", "".join(line + "\n" for line in lines))
        return [folder / "worst.jsonl", *super().draw_pictures(folder)]


def objective(settings: Settings) -> Objective:
    return Objective.of(NumberedImages(settings), ImageFinetuneHead, ImageRecords)
