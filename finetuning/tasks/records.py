"""Records: what is kept of each held-out example, the metrics of them, and what a run reports by them."""

import json
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from finetuning.summary import to_table
from finetuning.tasks.base import AnyWindows
from pretraining import files
from pretraining.objectives.base import Batch, Scoring

if TYPE_CHECKING:
    from finetuning.tasks.base import WindowExamples
    from pretraining.objectives.classification import LabelledImages

AnyRecorded = TypeVar("AnyRecorded", bound="WindowExamples | LabelledImages")
Record = dict[str, Any]
"""What is kept of a held-out example: its "index", its "loss", and what the model predicted."""


class RecordScoring(Scoring[AnyRecorded]):
    """Metrics of records: one of each held-out example, a few numbers, so that no logits are kept."""

    worst: list[Record] = []
    class_rows: list[dict[str, str | float]] = []
    """A row for each class or type, after the final scores."""
    confusion: np.ndarray | None = None
    """(classes, classes): how many of each true class are predicted to be of each one, after the final scores."""
    unit = "texts"
    """What the confusion matrix counts, in the plural."""

    def sums(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def observe(self, model: nn.Module, inputs: dict[str, Tensor], batch: Batch) -> tuple[dict, list[Record]]:
        unlabelled = {name: x for name, x in inputs.items() if name not in batch.targets}
        out = model(**unlabelled)
        return {}, self.records(out, batch)

    @abstractmethod
    def records(self, out: Any, batch: Batch) -> list[Record]:
        """A record of each of the batch's examples."""

    @abstractmethod
    def score(self, records: list[Record], final: bool) -> dict[str, float]:
        """The metrics of records, one of each example; at the end also those of each class."""

    def score_records(self, records: list[Record], final: bool) -> dict[str, float]:
        records = sorted(records, key=lambda record: record["index"])
        metrics = {"loss": float(np.mean([record["loss"] for record in records]))}
        if final:
            by_loss = sorted(records, key=lambda record: -record["loss"])
            self.worst = by_loss[: self.examples.settings.worst]
        return metrics | self.score(records, final)

    @abstractmethod
    def describe(self, record: Record) -> Record:
        """A record with the texts and names that it is about, for people."""

    def draw_pictures(self, folder: Path) -> list[Path]:
        paths = write_report(folder, [self.describe(record) for record in self.worst], self.class_rows)
        if self.confusion is not None:
            from pretraining.pictures.charts import draw_confusion

            paths.append(folder / "confusion.png")
            draw_confusion(self.confusion, self.examples.classes, paths[-1], self.unit)
        return paths


class WindowScoring(RecordScoring[AnyWindows]):
    """Records of the rows of a table, whose texts are cut into windows."""

    @property
    def metric(self) -> str:
        return self.examples.metric

    def describe(self, record: Record) -> Record:
        table = self.examples.tables["validation"]
        row = table.dataset[record["index"]]
        texts = {name: row[name] for name in self.examples.shown}
        return {"place": row["name"], **texts, **self.explain(record, row), "loss": round(record["loss"], 4)}

    @abstractmethod
    def explain(self, record: Record, row: dict[str, Any]) -> Record:
        """What is true and what was predicted, in words."""

    def samples(self, model: Any, count: int) -> list[str]:
        """Some held-out examples, and what the model predicts."""
        examples = self.examples
        index = examples.index("validation", 0)[:count]
        if not len(index):
            return []
        batch = examples.collate([examples.examples("validation", 0, index)], count)
        device = next(model.parameters()).device
        tensors = {name: x.to(device) for name, x in batch.tensors.items()}
        with torch.no_grad():
            _, records = self.observe(model, tensors, batch)
        return [json.dumps(self.describe(record), ensure_ascii=False) for record in records]


def write_report(folder: Path, worst: list[Record], classes: list[dict[str, str | float]]) -> list[Path]:
    """Writes the worst examples and the table of classes into the run's folder; returns what it wrote."""
    written = []
    if worst:
        written.append(folder / "worst.jsonl")
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in worst]
        files.write_text(written[-1], "".join(lines))
    if classes:
        written.append(folder / "classes.md")
        rows = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in classes]
        files.write_text(written[-1], "".join(line + "\n" for line in to_table(list(classes[0]), rows)))
    return written
