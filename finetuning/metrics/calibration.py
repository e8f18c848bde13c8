"""Whether a model is right as often as it says (Guo 2017), and the temperature that mends it.

N examples, C classes, M bins.
"""

import math
from typing import NamedTuple

import numpy as np
from datasets import Value

from finetuning.metrics.base import NUMBER, Metric, Values

BINS = 15  # as in Guo's tables


class Bin(NamedTuple):
    """The examples whose confidence lies in (low, high]."""

    low: float
    high: float
    confidence: float
    """Their mean confidence; NaN where there are none."""
    accuracy: float
    """The share of them that is predicted correctly; NaN where there are none."""
    examples: int
    """How many they are."""


def reliability_bins(confidences: Values, correct: Values, bins: int = BINS) -> list[Bin]:
    """What is drawn as a reliability diagram (section 2): M bins of equal width.

    Args:
        confidences: probability of the predicted class (N,), 0 to 1.
        correct: whether that is the true class (N,).
        bins: M.
    """
    confidence, is_correct = np.asarray(confidences, float), np.asarray(correct, float)
    edges = np.linspace(0, 1, bins + 1)
    # The first upper edge that is not below; what rounding has put above 1 belongs to the last bin.
    places = np.searchsorted(edges[1:], confidence, side="left").clip(max=bins - 1)  # (N,)
    counts = np.bincount(places, minlength=bins)  # (M,)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        confidence_means = np.bincount(places, confidence, bins) / counts
        accuracies = np.bincount(places, is_correct, bins) / counts
    columns = (edges[:-1], edges[1:], confidence_means, accuracies, counts)
    return [Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


class CalibrationError(Metric):
    """Expected calibration error (section 2, equation 3): the mean distance of confidence and accuracy over bins.

    A prediction is the confidence in the predicted class; a reference is whether that class was the true one.
    """

    prediction, reference = NUMBER, Value("bool")

    def _compute(self, predictions: list[float], references: list[bool]) -> dict[str, float]:
        filled = [each for each in reliability_bins(predictions, references) if each.examples]
        distances = [each.examples * abs(each.accuracy - each.confidence) for each in filled]
        return {"score": math.fsum(distances) / len(predictions)}


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that makes held-out examples likeliest under softmax(logits / T) (Guo 2017, 4.2).

    The predicted classes stay as they are. Needs 24 N C bytes at most beside the logits. T is kept within 0.01 to 100:
    where all predictions are correct it would sink to 0.

    Args:
        logits: of held-out examples, which the model has not learnt from (N, C).
        labels: their true classes (N,).
    """
    from scipy.optimize import minimize_scalar  # half a second to import

    # Only differences between logits matter: the largest of each example becomes 0, and no exponential overflows.
    centred = np.asarray(logits, np.float64)
    centred = centred - centred.max(1, keepdims=True)  # (N, C)
    true = np.take_along_axis(centred, np.asarray(labels)[:, None], axis=1)[:, 0]  # (N,)

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        scaled = centred / temperature  # (N, C)
        sums = np.exp(scaled, out=scaled).sum(1)  # (N,)
        return float((np.log(sums) - true / temperature).mean())

    # The loss is convex in 1 / T, so that it has one minimum in log T too.
    bounds = (math.log(0.01), math.log(100))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)
