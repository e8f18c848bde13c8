"""Predicted tags of words against true ones: word by word, and as entities that the tags mark.

An entity is found by CoNLL's rules: it begins at a B-, or at an I- that follows O, another type, or nothing.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from datasets import List

from finetuning.metrics.base import TEXT, Metric

Tags = Sequence[Sequence[str]]  # one list of tags a sentence
ALL = "all types"


def is_bio(tags: Sequence[str]) -> bool:
    """Whether tags mark entities: each is O, B-type or I-type, and not all are O."""
    marks = [tag for tag in tags if tag != "O"]
    return bool(marks) and all(tag[:2] in ("B-", "I-") and len(tag) > 2 for tag in marks)


def entity_table(predicted: Tags, true: Tags) -> list[dict[str, str | float]]:
    """Precision, recall and F1 of the entities of each type, in the alphabet's order, at last of all types together.

    An entity is right where its words and its type are. Numbers that have nothing to divide by are 0. `support` is the
    number of true entities.

    Args:
        predicted, true: the tags of N sentences, one at least, of equal lengths, which `is_bio`.
    """
    from nervaluate import Evaluator

    types = {tag[2:] for tag in chain(*predicted, *true) if tag != "O"}
    evaluator = Evaluator([list(tags) for tags in true], [list(tags) for tags in predicted], sorted(types), "list")
    # The other ways of counting, by parts of entities, would take three quarters of the time.
    evaluator.strategies = {"strict": evaluator.strategies["strict"]}
    found = evaluator.evaluate()
    results = {name: found["entities"][name]["strict"] for name in sorted(types)}
    results[ALL] = found["overall"]["strict"]  # micro: the counts of all types are added
    return [
        {"type": name, "precision": each.precision, "recall": each.recall, "f1": each.f1, "support": each.possible}
        for name, each in results.items()
    ]


class TagMetric(Metric):
    """A metric of sentences' tags."""

    prediction = reference = List(TEXT)


class TagAccuracy(TagMetric):
    """Share of words whose tag is right."""

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        tags = zip(chain(*predictions), chain(*references), strict=True)
        return {"score": float(np.mean([one == other for one, other in tags]))}


class TagMacroF1(TagMetric):
    """Mean of the tags' F1 over words, over the tags that are true or predicted anywhere."""

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        from sklearn.metrics import f1_score  # a second to import

        true, predicted = list(chain(*references)), list(chain(*predictions))
        return {"score": f1_score(true, predicted, average="macro", zero_division=0)}


class EntityF1(TagMetric):
    """F1 of the entities of all types together (CoNLL's)."""

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        return {"score": float(entity_table(predictions, references)[-1]["f1"])}


def tag_metrics(predicted: Tags, true: Tags, tags: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro-F1 over words, and where tags mark entities their precision, recall and F1.

    Args:
        predicted, true: the tags of N sentences, one at least, of equal lengths.
        tags: all tags that there are, in these sentences or not.
    """
    scores = {"accuracy": TagAccuracy().score(predicted, true), "macro_f1": TagMacroF1().score(predicted, true)}
    if is_bio(tags):
        together = entity_table(predicted, true)[-1]
        scores |= {f"entity_{name}": float(together[name]) for name in ("precision", "recall", "f1")}
    return scores
