"""What all metrics of fine-tuning share: `evaluate`'s interface, with no download, and which way each is better."""

import math
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

from pretraining.errors import UserError

Values = Sequence | np.ndarray
"""One of each example."""

NUMBER, CLASS, TEXT = Value("float64"), Value("int64"), Value("string")

HIGHER_IS_BETTER = {
    "loss": False,
    "accuracy": True,
    "macro_f1": True,
    "micro_f1": True,
    "f1": True,
    "matthews": True,
    "top5_accuracy": True,
    "subset_accuracy": True,
    "pearson": True,
    "spearman": True,
    "mean_squared_error": False,
    "exact_match": True,
    "entity_precision": True,
    "entity_recall": True,
    "entity_f1": True,
    "bleu": True,
    "chrf": True,
    "calibration_error": False,
}


def rank(name: str, value: float) -> float:
    """Orders the values of a metric, so that the lower is the better and NaN is never best.

    Raises:
        UserError: there is no such metric.
    """
    if name not in HIGHER_IS_BETTER:
        raise UserError(f"There is no metric {name!r}: it is one of {', '.join(HIGHER_IS_BETTER)}.")
    if math.isnan(value):
        return math.inf
    return -value if HIGHER_IS_BETTER[name] else value


class Metric(evaluate.Metric):
    """One number from predictions and references."""

    prediction: Any = CLASS
    """The type of one prediction, as `datasets` declares it."""
    reference: Any = CLASS

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)  # else every metric writes a file into the user's cache

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": self.prediction, "references": self.reference})
        return evaluate.MetricInfo(description=type(self).__doc__ or "", citation="", features=features)

    def score(self, predictions: Values, references: Values) -> float:
        """The metric as a number; NaN of no predictions."""
        if not len(predictions):
            return math.nan
        return float(self.compute(predictions=predictions, references=references)["score"])
