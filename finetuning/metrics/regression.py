"""Predicted numbers against true ones."""

import math
import warnings
from collections.abc import Callable

import numpy as np

from finetuning.metrics.base import NUMBER, Metric, Values


class Regression(Metric):
    """A metric of numbers."""

    prediction = reference = NUMBER


class MeanSquaredError(Regression):
    """Mean of the squared differences."""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"score": float(np.mean(np.square(np.subtract(predictions, references))))}


def correlate(function: Callable, predictions: list[float], references: list[float]) -> float:
    """SciPy's correlation `function` of two sides: NaN where one is constant or not finite, or a single number."""
    both = np.array([predictions, references])  # (2, N)
    if both.shape[1] < 2 or not np.isfinite(both).all():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns of a constant, which the NaN tells already
        return float(function(*both).statistic)


class Pearson(Regression):
    """Pearson's correlation, -1 to 1: how near the predictions are to a linear function of the references."""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        from scipy.stats import pearsonr  # half a second to import

        return {"score": correlate(pearsonr, predictions, references)}


class Spearman(Regression):
    """Spearman's correlation, -1 to 1: Pearson's of the ranks, equal numbers sharing their mean rank."""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        from scipy.stats import spearmanr

        return {"score": correlate(spearmanr, predictions, references)}


def regression_metrics(predicted: Values, true: Values) -> dict[str, float]:
    """Pearson's and Spearman's correlation and the mean squared error of numbers (N,)."""
    metrics = {"pearson": Pearson(), "spearman": Spearman(), "mean_squared_error": MeanSquaredError()}
    return {name: metric.score(predicted, true) for name, metric in metrics.items()}
