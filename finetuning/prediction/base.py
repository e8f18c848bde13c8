"""What every predictor is: which columns it reads and writes, and what it makes of a block of lines."""

import re
from abc import ABC, abstractmethod
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from scipy import special
from transformers import PreTrainedModel

from finetuning.data.columns import Found, Kind, find_columns
from finetuning.data.rows import READ
from finetuning.data.settings import (
    ChoiceTableSettings,
    SpanTableSettings,
    TableSettings,
    TextTableSettings,
    TokenTableSettings,
)
from finetuning.prediction.compute import Computer
from finetuning.prediction.lines import Bad, Line, Source
from finetuning.prediction.settings import PredictSettings
from pretraining.data.readers import Row, check_columns, listed
from pretraining.errors import UserError

DIGITS = 6  # of a probability that is written
FEW, BEST = 20, 5  # classes whose probabilities are all written, and how many of more are

TABLE_SETTINGS: dict[Kind, type[TableSettings]] = {
    "text": TextTableSettings,
    "tokens": TokenTableSettings,
    "spans": SpanTableSettings,
    "choice": ChoiceTableSettings,
}
PROBABILITIES = pa.map_(pa.string(), pa.float64())


class Predictor(ABC):
    """A model with one of its heads."""

    writes: dict[str, pa.DataType]
    """The columns of a prediction."""
    block: ClassVar[int] = 4096
    """Lines that are in memory at a time."""

    def __init__(self, folder: Path, model: PreTrainedModel, settings: PredictSettings):
        self.folder, self.settings = folder, settings
        self.computer = Computer(model, settings)
        self.model: Any = model
        self.config: Any = model.config
        self.notes: dict[str, int] = {}
        """What is told at the end, each with its count of lines."""

    @abstractmethod
    def find_columns(self, source: Source) -> list[str]:
        """Finds the columns that are read; a UserError where one is not there."""

    def describe(self) -> list[str]:
        """Lines that tell what was found."""
        return []

    @abstractmethod
    def read(self, line: Line) -> Any:
        """The example that a line holds; raises Bad where it holds none."""

    @property
    def resolved(self) -> dict[str, Any]:
        """Settings that were null, as they are used."""
        return {}

    @abstractmethod
    def predict(self, examples: list[Any]) -> list[Row]:
        """A prediction of each example of a block."""


class TablePredictor(Predictor):
    """A predictor of texts, which stand in the columns that fine-tuning finds them in."""

    kind: Kind

    def find_columns(self, source: Source) -> list[str]:
        columns = self.table_settings(source)
        try:
            found = find_columns(self.kind, columns, source.columns, source.name, needs_label=False)
            self.found = found.without("label", "tags", "answers", "start", "id")
            check_columns(self.found.settings, source.columns, source.name)
        except UserError as error:
            raise UserError(in_own_words(str(error))) from error
        return [*self.found.columns.values(), *self.found.choices]

    def table_settings(self, source: Source) -> TableSettings:
        """The columns that the command names, as those of a table to fine-tune on."""
        kind, given = TABLE_SETTINGS[self.kind], vars(self.settings)
        columns = {field.name: given[field.name] for field in fields(kind) if field.name in given}
        return kind(files=[source.name], **columns)

    def describe(self) -> list[str]:
        return [f"columns: {self.found}"]

    def read(self, line: Line) -> Any:
        return read_row(self.kind, self.found, line)


def in_own_words(message: str) -> str:
    """A message of fine-tuning's tables with the names that the settings have here."""
    return re.sub(r"data\.(\w+_columns?)", r"--\1", message)


def check_keys(line: Line, columns: list[str]) -> None:
    """Raises Bad where a line lacks a column."""
    for column in columns:
        if column not in line.row:
            raise Bad(f"it has no {column!r}, but {listed(line.row) or 'nothing'}")


def read_row(kind: Kind, found: Found, line: Line) -> Row:
    """A line's texts as fine-tuning reads them; raises Bad."""
    check_keys(line, [*found.columns.values(), *found.choices])
    name = f"line {line.number}"
    try:
        return READ[kind](name, line.row, found, None)
    except UserError as error:
        raise Bad(in_own_words(str(error)).removeprefix(f"{name}, ")) from error


# ---- classes ----


def finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError("the model's outputs are not finite: its weights are broken, or give --precision fp32.")
    return values


def softmax(logits: np.ndarray) -> np.ndarray:
    """(..., C) in double precision."""
    probabilities: np.ndarray = special.softmax(logits.astype(np.float64), axis=-1)
    return probabilities


def class_names(config: Any) -> list[str]:
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def named(probabilities: np.ndarray, names: list[str], top: int | None) -> list[dict[str, float]]:
    """The probabilities (N, C) of the likeliest classes by name, the likeliest first."""
    if top is None:
        top = len(names) if len(names) <= FEW else BEST
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    values = np.take_along_axis(probabilities, order, 1).round(DIGITS)
    return [
        {names[number]: value for number, value in zip(numbers, row, strict=True)}
        for numbers, row in zip(order.tolist(), values.tolist(), strict=True)
    ]


ONE_CLASS = {"label": pa.string(), "score": pa.float64(), "probabilities": PROBABILITIES}


def one_class(logits: np.ndarray, names: list[str], top: int | None) -> list[Row]:
    """The likeliest class of each example, from logits (N, C)."""
    probabilities = softmax(finite(logits))
    best = probabilities.argmax(1)
    scores = probabilities.max(1).round(DIGITS).tolist()
    rows = zip(best.tolist(), scores, named(probabilities, names, top), strict=True)
    return [{"label": names[number], "score": score, "probabilities": every} for number, score, every in rows]
