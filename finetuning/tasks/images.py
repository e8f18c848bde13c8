"""Classification of images by a model that was pretrained on others, or without labels (Dosovitskiy 2020, 4.1)."""

from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from finetuning.adapt import adapt, merge
from finetuning.data.labels import SINGLE
from finetuning.metrics.classes import class_table, confusion
from finetuning.tasks.classes import class_metrics, explain_class, record_of
from finetuning.tasks.records import Record, RecordScoring
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


class ImageRecords(RecordScoring[LabelledImages], ClassificationScoring):
    """The metrics of classes, from a record of each held-out image."""

    unit = "images"

    def records(self, out: Any, batch: Batch) -> list[Record]:
        logits, labels = out.logits.float().cpu(), batch.tensors["labels"].cpu()  # (B, C), (B,)
        rows = zip(batch.tensors["index"].tolist(), logits, labels, strict=True)
        return [{"index": number, **record_of(SINGLE, *row)} for number, *row in rows if number >= 0]

    def score(self, records: list[Record], final: bool) -> dict[str, float]:
        classes = self.examples.classes
        if final:
            predicted, labels = ([record[name] for record in records] for name in ("predicted", "label"))
            self.confusion = confusion(predicted, labels, len(classes))
            self.class_rows = class_table(predicted, labels, classes)
        return class_metrics(records, len(classes))

    def score_outputs(self, model: Any, index: np.ndarray, accelerator: Any, final: bool) -> dict[str, float]:
        return {}  # the records know the classes' accuracies already

    def describe(self, record: Record) -> Record:
        place = self.examples.data["validation"].place(record["index"])
        return {"place": place, **explain_class(record, self.examples.classes), "loss": round(record["loss"], 4)}


def objective(settings: Settings) -> Objective:
    return Objective.of(NumberedImages(settings), ImageFinetuneHead, ImageRecords)
