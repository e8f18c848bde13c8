"""Predicted answers of questions against the accepted ones, by the rules of SQuAD's script (Rajpurkar 2016, 2018)."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from datasets import List

from finetuning.metrics.base import TEXT, Metric

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLE = re.compile(r"\b(?:an?|the)\b")


def normalise(answer: str) -> str:
    """An answer without capitals, ASCII punctuation and English articles, its words parted by single spaces."""
    bare = answer.lower().translate(NO_PUNCTUATION)
    return " ".join(ARTICLE.sub(" ", bare).split())


def is_exact(predicted: str, true: str) -> float:
    """1 where two answers are equal when normalised, else 0."""
    return float(normalise(predicted) == normalise(true))


def overlap(predicted: str, true: str) -> float:
    """F1 of the words of two normalised answers, 0 to 1; no answer is like no answer only."""
    words, true_words = normalise(predicted).split(), normalise(true).split()
    if not words or not true_words:
        return float(words == true_words)
    # A word counts as often as it stands in both: 2 P R / (P + R), with P and R written out.
    return 2 * (Counter(words) & Counter(true_words)).total() / (len(words) + len(true_words))


def best(likeness: Callable[[str, str], float], predicted: str, accepted: Sequence[str]) -> float:
    """How alike an answer and the nearest of the accepted ones are.

    An accepted answer of which normalising leaves nothing is none; a question with none has no answer (SQuAD 2), and
    the right prediction is then an empty text.
    """
    answers = [answer for answer in accepted if normalise(answer)] or [""]
    return max(likeness(predicted, answer) for answer in answers)


class Answers(Metric):
    """A metric of answers: a reference is the list of those that are accepted, empty where there is no answer."""

    prediction, reference = TEXT, List(TEXT)
    likeness: Callable[[str, str], float]

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"score": sum(best(self.likeness, *pair) for pair in pairs) / len(predictions)}


class AnswerExactMatch(Answers):
    """Share of questions whose answer equals an accepted one, 0 to 1 (SQuAD's script prints a hundredfold)."""

    likeness = staticmethod(is_exact)


class AnswerF1(Answers):
    """Mean F1 of each answer's words with those of the nearest accepted one, 0 to 1 (the script: a hundredfold)."""

    likeness = staticmethod(overlap)


def answer_metrics(predicted: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of N answers; `accepted` are each question's right answers, none where it has no answer."""
    metrics = {"exact_match": AnswerExactMatch(), "f1": AnswerF1()}
    return {name: metric.score(predicted, accepted) for name, metric in metrics.items()}
