"""What is kept of an example with a class, several or a number, and what is said of classes: of texts and of images.

C classes.
"""

import numpy as np
import torch
from torch import Tensor

from finetuning.data.labels import MULTI, REGRESSION
from finetuning.metrics.calibration import CalibrationError
from finetuning.metrics.classes import TOP, classification_metrics
from finetuning.tasks.records import Record


def count_classes(classes: list[str], counts: np.ndarray) -> str:
    """The classes and how many examples each has, in words; of many the first ones."""
    shown = ", ".join(f"{name} {count:,}" for name, count in list(zip(classes, counts, strict=True))[:20])
    return f"{shown}, ..." if len(classes) > 20 else shown


def class_metrics(records: list[Record], classes: int) -> dict[str, float]:
    """The metrics of records of one class each."""
    predicted = [record["predicted"] for record in records]
    labels = [record["label"] for record in records]
    found = classification_metrics(predicted, labels, classes)
    correct = [one == other for one, other in zip(predicted, labels, strict=True)]
    found["calibration_error"] = CalibrationError().score([record["confidence"] for record in records], correct)
    if classes > TOP:
        found[f"top{TOP}_accuracy"] = float(np.mean([record["rank"] < TOP for record in records]))
    return found


def record_of(problem: str, scores: Tensor, label: Tensor) -> Record:
    """What is kept of an example with these logits (C,) and this label."""
    if problem == REGRESSION:
        value, true = float(scores[0]), float(label)
        return {"predicted": value, "label": true, "loss": (value - true) ** 2}
    if problem == MULTI:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, label.float())
        return {"predicted": (scores > 0).int().tolist(), "label": label.int().tolist(), "loss": float(loss)}
    log_probabilities, true = scores.log_softmax(-1), int(label)
    best = int(scores.argmax())
    return {
        "predicted": best,
        "label": true,
        "confidence": float(log_probabilities[best].exp()),
        "rank": int((scores > scores[true]).sum()),
        "loss": -float(log_probabilities[true]),
    }


def explain_class(record: Record, classes: list[str]) -> Record:
    """The true class, the predicted one and how sure the model is of it, in words."""
    return {
        "true": classes[record["label"]],
        "predicted": classes[record["predicted"]],
        "confidence": round(record["confidence"], 4),
    }
