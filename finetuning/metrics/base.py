"""What all metrics of fine-tuning share: `evaluate`'s interface, with no download."""

import math
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

Values = Sequence | np.ndarray
"""One of each example."""

NUMBER, CLASS, TEXT = Value("float64"), Value("int64"), Value("string")


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
