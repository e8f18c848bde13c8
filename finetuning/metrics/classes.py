"""Predicted classes against true ones, one class an example or several.

N examples, C classes. Classes are numbers from 0. F1 is 0 where there is nothing to divide by, as in scikit-learn.
"""

from collections.abc import Sequence

import numpy as np
from datasets import List

from finetuning.metrics.base import CLASS, Metric, Values

TOP = 5


class Accuracy(Metric):
    """Share of examples whose predicted class is the true one; of multiple choice, whose choice is."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"score": float(np.mean(np.equal(predictions, references)))}


class MacroF1(Metric):
    """Mean of the classes' F1, over the classes that are true or predicted anywhere."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        from sklearn.metrics import f1_score  # a second to import

        return {"score": f1_score(references, predictions, average="macro", zero_division=0)}


class PositiveF1(Metric):
    """F1 of class 1 of two, as in GLUE's MRPC and QQP."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        from sklearn.metrics import f1_score

        # Not `average="binary"`, which refuses predictions that are all of one class other than 0 or 1.
        return {"score": f1_score(references, predictions, labels=[1], average="micro", zero_division=0)}


class Matthews(Metric):
    """Matthews' correlation, of many classes too (Gorodkin 2004): 0 where all predictions are equal."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        from sklearn.metrics import matthews_corrcoef

        if len({*predictions, *references}) == 1:
            return {"score": 0.0}  # scikit-learn's value too, which it warns of
        return {"score": matthews_corrcoef(references, predictions)}


class TopAccuracy(Metric):
    """Share of examples whose true class is among the predicted ones: a prediction is a list, the likeliest classes."""

    prediction = List(CLASS)

    def _compute(self, predictions: list[list[int]], references: list[int]) -> dict[str, float]:
        among = [true in likeliest for likeliest, true in zip(predictions, references, strict=True)]
        return {"score": float(np.mean(among))}


class MultiLabel(Metric):
    """A metric of examples that bear several classes each: a prediction is a list of C zeros and ones."""

    prediction = reference = List(CLASS)


class MultiLabelMicroF1(MultiLabel):
    """F1 of all decisions of all classes together."""

    average = "micro"

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, float]:
        from sklearn.metrics import f1_score

        true, predicted = np.array(references), np.array(predictions)  # (N, C): lists would be refused
        return {"score": f1_score(true, predicted, average=self.average, zero_division=0)}


class MultiLabelMacroF1(MultiLabelMicroF1):
    """Mean of all classes' F1; a class that is neither true nor predicted anywhere counts 0."""

    average = "macro"


class SubsetAccuracy(MultiLabel):
    """Share of examples whose classes are all as they should be."""

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, float]:
        return {"score": float(np.mean(np.all(np.equal(predictions, references), axis=1)))}


def classification_metrics(predicted: Values, true: Values, classes: int) -> dict[str, float]:
    """Accuracy, macro-F1 and Matthews' correlation, and of two classes the second's F1.

    Args:
        predicted, true: classes (N,).
        classes: C.
    """
    metrics: dict[str, Metric] = {"accuracy": Accuracy(), "macro_f1": MacroF1(), "matthews": Matthews()}
    if classes == 2:
        metrics["f1"] = PositiveF1()
    return {name: metric.score(predicted, true) for name, metric in metrics.items()}


def multilabel_metrics(predicted: Values, true: Values) -> dict[str, float]:
    """Micro-F1, macro-F1 and subset accuracy of zeros and ones (N, C)."""
    metrics = {"micro_f1": MultiLabelMicroF1(), "macro_f1": MultiLabelMacroF1(), "subset_accuracy": SubsetAccuracy()}
    return {name: metric.score(predicted, true) for name, metric in metrics.items()}


def confusion(predicted: Values, true: Values, classes: int) -> np.ndarray:
    """How many examples of each true class (rows) were predicted to be of each class (columns): (C, C)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(true, predicted, labels=range(classes))


def class_table(predicted: Values, true: Values, classes: Sequence[str]) -> list[dict[str, str | float]]:
    """Each class's precision, recall, F1 and number of examples (`support`), in the order of `classes`.

    Args:
        predicted, true: classes (N,), or zeros and ones (N, C).
        classes: C names.
    """
    from sklearn.metrics import precision_recall_fscore_support

    numbers = range(len(classes))
    scores = precision_recall_fscore_support(np.array(true), np.array(predicted), labels=numbers, zero_division=0)
    columns = ("precision", "recall", "f1", "support")
    rows = []
    for number, name in enumerate(classes):
        values = {column: score[number].item() for column, score in zip(columns, scores, strict=True)}
        rows.append({"class": name, **values})
    return rows
