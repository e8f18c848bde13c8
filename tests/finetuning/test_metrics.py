"""Each metric against scikit-learn, SciPy, seqeval, or the same arithmetic written another way, on random data."""

import math
import random
import string
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics

from finetuning.glue_tasks import GLUE
from finetuning.metrics.answers import answer_metrics, best, is_exact, normalise, overlap
from finetuning.metrics.calibration import CalibrationError, fit_temperature, reliability_bins
from finetuning.metrics.classes import (
    Matthews,
    TopAccuracy,
    class_table,
    classification_metrics,
    confusion,
    multilabel_metrics,
)
from finetuning.metrics.regression import Pearson, Spearman, regression_metrics
from finetuning.metrics.tags import EntityF1, entity_table, is_bio, tag_metrics
from finetuning.pictures import draw_reliability
from finetuning.tasks.text import METRICS
from pretraining.objectives.base import LOWER_IS_BETTER, Scoring

DRAWS = range(20)


def numbers(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def no_warnings():
    """A metric that has nothing to divide by says so by its value."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Classes


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_classes_agree_with_counts(classes: int, seed: int):
    """Accuracy, F1 and Matthews' correlation from the counts of the confusion matrix, as textbooks write them."""
    draw = numbers(seed)
    true, predicted = draw.integers(classes, size=50), draw.integers(classes, size=50)
    scores = classification_metrics(predicted, true, classes)
    table = np.zeros((classes, classes), int)
    for row, column in zip(true, predicted, strict=True):
        table[row, column] += 1
    assert (confusion(predicted, true, classes) == table).all()
    f1 = [2 * table[k, k] / (table[k].sum() + table[:, k].sum()) for k in range(classes)]
    assert scores["accuracy"] == pytest.approx(table.trace() / 50)
    assert scores["macro_f1"] == pytest.approx(np.mean(f1))
    one_hot_true, one_hot_predicted = np.eye(classes)[true], np.eye(classes)[predicted]
    centred = [each - each.mean(0) for each in (one_hot_true, one_hot_predicted)]
    covariance = [[(one * other).sum() for one in centred] for other in centred]
    matthews = covariance[0][1] / math.sqrt(covariance[0][0] * covariance[1][1])
    assert scores["matthews"] == pytest.approx(matthews)
    assert ("f1" in scores) == (classes == 2)
    if classes == 2:
        assert scores["f1"] == pytest.approx(f1[1])
        assert scores["f1"] == pytest.approx(sklearn_metrics.f1_score(true, predicted))


def test_all_of_one_class():
    assert classification_metrics([1, 1], [1, 1], 2) == {"accuracy": 1, "macro_f1": 1, "matthews": 0, "f1": 1}
    assert classification_metrics([0, 0], [0, 0], 2) == {"accuracy": 1, "macro_f1": 1, "matthews": 0, "f1": 0}
    assert classification_metrics([0, 0], [1, 1], 2)["f1"] == 0


def test_nothing_has_no_metric():
    assert all(math.isnan(value) for value in classification_metrics([], [], 3).values())


def test_class_table_has_every_class():
    rows = class_table([0, 0, 2, 2], [0, 2, 2, 2], ["a", "b", "c"])
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    assert rows[0] == {"class": "a", "precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "support": 1}
    assert rows[1] == {"class": "b", "precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert rows[2]["recall"] == pytest.approx(2 / 3)


def test_top_accuracy():
    draw = numbers(0)
    scores, true = draw.normal(size=(60, 9)), draw.integers(9, size=60)
    likeliest = (-scores).argsort(1)[:, :5]
    expected = sklearn_metrics.top_k_accuracy_score(true, scores, k=5)
    assert TopAccuracy().score(likeliest, true) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_several_classes_an_example(seed: int):
    draw = numbers(seed)
    true, predicted = (draw.random((40, 5)) < [0.5, 0.5, 0.1, 0.9, 0] for _ in range(2))
    scores = multilabel_metrics(predicted.astype(int), true.astype(int))
    both, either = (true & predicted).sum(0), true.sum(0) + predicted.sum(0)
    assert scores["micro_f1"] == pytest.approx(2 * both.sum() / either.sum())
    assert scores["macro_f1"] == pytest.approx(np.mean(2 * both / np.maximum(either, 1)))
    assert scores["subset_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(true, predicted))
    recalls = [row["recall"] for row in class_table(predicted.astype(int), true.astype(int), list("abcde"))]
    assert recalls == pytest.approx((both / np.maximum(true.sum(0), 1)).tolist())


def test_batches_are_put_together():
    draw = numbers(0)
    true, predicted = draw.integers(3, size=30), draw.integers(3, size=30)
    metric = Matthews()
    for start in range(0, 30, 7):
        metric.add_batch(predictions=predicted[start : start + 7], references=true[start : start + 7])
    assert metric.compute()["score"] == pytest.approx(sklearn_metrics.matthews_corrcoef(true, predicted))


# Numbers


@pytest.mark.parametrize("seed", range(5))
def test_regression(seed: int):
    draw = numbers(seed)
    true = draw.integers(6, size=40).astype(float)  # with equal ones among them, as in STS-B
    predicted = true + draw.normal(size=40)
    scores = regression_metrics(predicted, true)
    assert scores["pearson"] == pytest.approx(np.corrcoef(predicted, true)[0, 1])
    ranks = [stats.rankdata(side) for side in (predicted, true)]
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert scores["mean_squared_error"] == pytest.approx(sklearn_metrics.mean_squared_error(true, predicted))


@pytest.mark.parametrize("metric", [Pearson, Spearman])
@pytest.mark.parametrize("predicted", [[2, 2, 2], [1, math.nan, 3], [1, math.inf, 3], [1]])
def test_correlation_of_nothing_is_nan(metric: type[Pearson | Spearman], predicted: list[float]):
    assert math.isnan(metric().score(predicted, [1, 2, 4][: len(predicted)]))
    assert math.isnan(metric().score([1, 2, 4][: len(predicted)], predicted))


# Confidence


def test_calibration_error_from_its_definition():
    for seed in DRAWS:
        draw = numbers(seed)
        confidence = np.concatenate([draw.random(80), np.arange(16) / 15])  # the bins' edges too
        correct = draw.random(len(confidence)) < confidence**2
        expected = 0.0
        for number in range(15):
            inside = [i for i, value in enumerate(confidence) if number / 15 < value <= (number + 1) / 15]
            if number == 0:
                inside += [i for i, value in enumerate(confidence) if value == 0]
            if inside:
                gap = abs(correct[inside].mean() - confidence[inside].mean())
                expected += len(inside) / len(confidence) * gap
        assert CalibrationError().score(confidence, correct) == pytest.approx(expected)


def test_bins_hold_every_example_once():
    confidence = np.array([0.0, 1 / 3, 0.34, 1.0, 1.0000001])
    bins = reliability_bins(confidence, [True, False, True, True, False], bins=3)
    assert [each.examples for each in bins] == [2, 1, 2]
    assert [each.accuracy for each in bins] == [0.5, 1, 0.5]
    assert [each.low for each in bins] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [each.high for each in bins] == pytest.approx([1 / 3, 2 / 3, 1])
    assert math.isnan(reliability_bins([0.9], [True])[0].accuracy)


def calibrated(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (2000, 4), and classes that are as likely as the logits say."""
    draw = numbers(seed)
    logits = 2 * draw.normal(size=(2000, 4))
    return logits, (logits + draw.gumbel(size=logits.shape)).argmax(1)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return torch.nn.functional.cross_entropy(torch.tensor(logits) / temperature, torch.tensor(labels)).item()


def test_temperature_undoes_a_scale():
    logits, labels = calibrated(0)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(1, abs=0.1)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * temperature, rel=1e-5)
    assert fit_temperature((logits + 100).astype(np.float32), labels) == pytest.approx(temperature, rel=1e-4)


def test_temperature_is_the_likeliest():
    logits, labels = calibrated(1)
    logits *= 2.5
    temperature = fit_temperature(logits, labels)
    least = negative_log_likelihood(logits, labels, temperature)
    assert all(
        least < negative_log_likelihood(logits, labels, temperature * factor) for factor in (0.3, 0.999, 1.001, 9)
    )
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = torch.tensor(logits) / log_temperature.exp()
        value = torch.nn.functional.cross_entropy(scaled, torch.tensor(labels))
        value.backward()
        return value

    optimizer.step(loss)
    assert temperature == pytest.approx(log_temperature.exp().item(), rel=1e-4)


def test_temperature_lessens_the_calibration_error():
    logits, labels = calibrated(2)

    def error(temperature: float) -> float:
        shares = torch.tensor(4 * logits / temperature).softmax(1)
        confidence, predicted = shares.max(1)
        return CalibrationError().score(confidence.numpy(), predicted.numpy() == labels)

    assert error(fit_temperature(4 * logits, labels)) < 0.2 * error(1)


@pytest.mark.parametrize("sign", [1, -1])
def test_temperature_of_what_is_all_right_or_all_wrong(sign: int):
    temperature = fit_temperature(sign * 5 * np.eye(3), np.arange(3))
    assert 0.01 <= temperature < 0.2 if sign > 0 else temperature == pytest.approx(100, rel=1e-3)


@pytest.mark.usefixtures("pictures")
def test_reliability_picture(tmp_path):
    logits, labels = calibrated(3)
    confidence, predicted = torch.tensor(2 * logits).softmax(1).max(1)
    path = tmp_path / "reliability.png"
    draw_reliability(reliability_bins(confidence.numpy(), predicted.numpy() == labels), path)
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]


# Answers


def normalise_by_scanning(text: str) -> list[str]:
    """The words of a normalised answer, letter by letter: a space stands for an article between two non-letters."""
    letters = [letter for letter in text.lower() if letter not in string.punctuation]
    out, run = "", ""
    for letter in [*letters, " "]:
        if letter.isalnum():
            run += letter
            continue
        out += (" " if run in ("a", "an", "the") else run) + letter
        run = ""
    return out.split()


def random_answer(draw: random.Random) -> str:
    pieces = [
        "The",
        "a",
        "AN",
        "then",
        "Paris",
        "paris",
        "in",
        " ",
        "  ",
        "\t",
        "-",
        ".",
        "'s",
        "“",
        "”",
        "—",
        "é",
        "5",
    ]
    return "".join(draw.choice(pieces) + draw.choice(["", " "]) for _ in range(draw.randint(0, 6)))


def words_f1(words: list[str], true: list[str]) -> float:
    """By precision and recall of words; every true word may be matched once."""
    if not words or not true:
        return float(words == true)
    left = list(true)
    for word in words:
        if word in left:
            left.remove(word)
    same = len(true) - len(left)
    precision, recall = same / len(words), same / len(true)
    return 2 * precision * recall / (precision + recall) if same else 0.0


def test_answers_by_another_arithmetic():
    draw = random.Random(0)
    questions = [(random_answer(draw), [random_answer(draw) for _ in range(draw.randint(0, 3))]) for _ in range(500)]
    exact, f1 = [], []
    for predicted, accepted in questions:
        words = normalise_by_scanning(predicted)
        assert normalise(predicted).split() == words
        true = [each for each in map(normalise_by_scanning, accepted) if each] or [[]]
        exact.append(float(words in true))
        f1.append(max(words_f1(words, each) for each in true))
        assert best(is_exact, predicted, accepted) == exact[-1]
        assert best(overlap, predicted, accepted) == pytest.approx(f1[-1])
    assert 0 < np.mean(exact) < np.mean(f1) < 1
    scores = answer_metrics(*zip(*questions, strict=True))
    assert scores == {"exact_match": pytest.approx(np.mean(exact)), "f1": pytest.approx(np.mean(f1))}


@pytest.mark.parametrize(
    ("predicted", "true", "exact", "f1"),
    [
        ("The Cat.", "cat", 1, 1),
        ("a cat  sat", "the cat, sat!", 1, 1),
        ("theatre", "atre", 0, 0),  # an article is a whole word
        ("U.S.A.", "usa", 1, 1),
        ("well-known", "well known", 0, 0),  # punctuation leaves no space
        ("cat cat", "cat", 0, 2 / 3),  # a word counts as often as it stands in both
        ("big cat", "the cat sat down", 0, 0.4),
        ("", "", 1, 1),
        ("the", "", 1, 1),
        ("cat", "", 0, 0),
        ("", "cat", 0, 0),
    ],
)
def test_answers_by_hand(predicted: str, true: str, exact: float, f1: float):
    assert is_exact(predicted, true) == exact
    assert overlap(predicted, true) == pytest.approx(f1)
    assert answer_metrics([predicted], [[true]]) == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_nearest_answer_and_no_answer():
    predicted = ["red fox", "", "something", "fox", ""]
    accepted: list[list[str]] = [["a fox", "the red fox", "bird"], [], [], ["fox", "the"], ["the", "fox"]]
    assert answer_metrics(predicted, accepted) == {"exact_match": 3 / 5, "f1": 3 / 5}


# Tags


def random_tags(draw: random.Random, sentences: int) -> list[list[str]]:
    tags = ["O", "O", "O", "O", *(f"{mark}-{name}" for mark in "BI" for name in ("PER", "LOC", "a-b"))]
    return [[draw.choice(tags) for _ in range(draw.randint(0, 9))] for _ in range(sentences)]


def near(draw: random.Random, true: list[list[str]]) -> list[list[str]]:
    """The tags, some of them replaced by their neighbour's on the left."""
    return [
        [tag if draw.random() < 0.7 else sentence[max(place - 1, 0)] for place, tag in enumerate(sentence)]
        for sentence in true
    ]


def entities(sentence: list[str]) -> set[tuple[int, int, str]]:
    """First word, word after the last, and type: every stretch is tried."""
    whole = set()
    for start in range(len(sentence)):
        for end in range(start + 1, len(sentence) + 1):
            name, before = sentence[start][2:], sentence[start - 1] if start else "O"
            begins = sentence[start] == f"B-{name}" or (sentence[start] == f"I-{name}" and before[2:] != name)
            goes_on = all(tag == f"I-{name}" for tag in sentence[start + 1 : end])
            stops = end == len(sentence) or sentence[end] != f"I-{name}"
            if name and begins and goes_on and stops:
                whole.add((start, end, name))
    return whole


def test_entities_by_conll_rules():
    for seed in DRAWS:
        draw = random.Random(seed)
        true = random_tags(draw, 12)
        predicted = near(draw, true)
        true_entities = {(i, *each) for i, sentence in enumerate(true) for each in entities(sentence)}
        predicted_entities = {(i, *each) for i, sentence in enumerate(predicted) for each in entities(sentence)}
        table = entity_table(predicted, true)
        for row in table:
            of_type = [
                {each for each in side if row["type"] in (each[-1], "all types")}
                for side in (predicted_entities, true_entities)
            ]
            right, lengths = len(of_type[0] & of_type[1]), [len(side) for side in of_type]
            assert row["precision"] == pytest.approx(right / max(lengths[0], 1))
            assert row["recall"] == pytest.approx(right / max(lengths[1], 1))
            assert row["f1"] == pytest.approx(2 * right / max(sum(lengths), 1))
            assert row["support"] == lengths[1]
        assert EntityF1().score(predicted, true) == pytest.approx(table[-1]["f1"])


def test_entities_agree_with_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics")
    for seed in DRAWS:
        draw = random.Random(seed)
        true = random_tags(draw, 12)
        predicted = near(draw, true)
        report = seqeval.classification_report(true, predicted, output_dict=True, zero_division=0)
        for row in entity_table(predicted, true):
            theirs = report["micro avg" if row["type"] == "all types" else row["type"]]
            for ours, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
                assert row[ours] == pytest.approx(theirs[name])


def test_an_inside_begins_an_entity():
    assert entity_table([["I-X", "I-X", "O", "I-Y"]], [["B-X", "I-X", "O", "B-Y"]])[-1]["f1"] == 1
    assert entity_table([["B-X", "I-Y"]], [["B-X", "B-Y"]])[-1]["f1"] == 1
    assert entity_table([["B-X", "B-X"]], [["B-X", "I-X"]])[-1]["f1"] == 0


def test_tags_word_by_word():
    for seed in DRAWS:
        draw = random.Random(seed)
        true = random_tags(draw, 12)
        predicted = near(draw, true)
        tags = sorted({tag for sentence in true + predicted for tag in sentence})
        scores = tag_metrics(predicted, true, tags)
        flat = [[tag for sentence in side for tag in sentence] for side in (true, predicted)]
        assert scores["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(*flat))
        assert scores["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(*flat, average="macro"))
        assert scores["entity_f1"] == pytest.approx(entity_table(predicted, true)[-1]["f1"])


def test_which_tags_mark_entities():
    assert is_bio(["O", "B-PER", "I-PER"]) and is_bio(["B-PER"])
    assert (
        not is_bio(["O"]) and not is_bio(["NOUN", "O"]) and not is_bio(["O", "B-", "I-"]) and not is_bio(["O", "S-X"])
    )
    assert set(tag_metrics([["NOUN", "VERB"]], [["NOUN", "NOUN"]], ["NOUN", "VERB"])) == {"accuracy", "macro_f1"}
    assert tag_metrics([["O"]], [["O"]], ["O", "B-X"])["entity_f1"] == 0  # no entity, neither true nor predicted


# Directions


def test_losses_and_errors_are_better_the_lower_they_are():
    found = classification_metrics([0, 1], [0, 1], 2)
    found |= multilabel_metrics([[0, 1]], [[0, 1]]) | regression_metrics([1, 2], [1, 2])
    found |= answer_metrics(["a"], [["a"]]) | tag_metrics([["B-X"]], [["B-X"]], ["B-X"])
    found |= {name: 0.0 for names in METRICS.values() for name in names}
    assert {name for name in found if "loss" in name or "error" in name} == LOWER_IS_BETTER - {"mlm_loss"}
    for task in GLUE.values():
        assert set(task.metrics) <= set(regression_metrics([1, 2], [1, 2]) | classification_metrics([0], [0], 2))


def test_best_is_least_and_never_nan():
    """The loop takes what ranks below the best one, and at first below infinity."""
    for name, better, worse in (("accuracy", 0.3, 0.1), ("mean_squared_error", 0.1, 0.3)):
        scoring: Any = SimpleNamespace(metric=name)
        first, second, none = (Scoring.rank(scoring, {name: value}) for value in (better, worse, math.nan))
        assert first < second < math.inf
        assert not none < first and not none < math.inf


# GLUE


def test_submissions():
    assert GLUE["mnli"].submission([2, 0]) == "index\tprediction\n0\tcontradiction\n1\tentailment\n"
    assert GLUE["stsb"].submission([5.2, -1, 2.34567]) == "index\tprediction\n0\t5.000\n1\t0.000\n2\t2.346\n"
    assert GLUE["cola"].submission([1, 0]) == "index\tprediction\n0\t1\n1\t0\n"
    names = [name for task in GLUE.values() for name in task.submissions.values()]
    assert len(GLUE) == 9 and len(set(names)) == 11  # MNLI has two test splits, and the diagnostic set
