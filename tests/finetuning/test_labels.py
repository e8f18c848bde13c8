"""Labels: the problem that they pose, their order, their weights."""

import json
import random

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from finetuning.data.labels import MANY, MULTI, REGRESSION, SINGLE, Labels, balanced, guess_problem, is_missing
from tests.pretraining.mistakes import one_sentence


def texts(values: list) -> list[str | None]:
    return [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["good", "bad", None], SINGLE),
        ([0, 1, 1], SINGLE),
        ([True, False], SINGLE),
        ([1.0, 2.0, float("nan")], SINGLE),  # whole numbers beside empty cells, as pandas writes them
        (["1", "2"], SINGLE),
        (["v1.5", "2.5", "GPT-2", "BERT"], SINGLE),
        ([0.0, 2.5, 5], REGRESSION),
        (["0.0", "2.5", "5"], REGRESSION),
        ([["a"], ["a", "b"], []], MULTI),
        ([[0, 3], [1]], MULTI),
    ],
)
def test_the_problem_is_guessed_where_labels_tell_it(values, problem):
    assert guess_problem(texts(values), str) == problem


def test_what_may_be_classes_or_quantities_is_asked():
    assert guess_problem(texts(list(range(MANY))), str) == SINGLE
    with one_sentence("51 different numbers", "objective.problem"):
        guess_problem(texts(list(range(MANY + 1))), "row {}".format)
    with one_sentence("row 2", "'high'", "2.5", "objective.problem"):
        guess_problem(texts([2.5, 3.0, "high"]), "row {}".format)
    with one_sentence("row 1", "'a'", "list of one"):
        guess_problem(texts([["a"], "a"]), "row {}".format)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 2, 1], ["1", "2", "10"]),
        (["10", "2", "1"], ["1", "2", "10"]),
        ([2.0, 1.0, 10.0], ["1", "2", "10"]),
        ([1.5, 10, 2], ["1.5", "2", "10"]),
        ([True, False], ["false", "true"]),
        (["b", "10", "2"], ["10", "2", "b"]),
        (["좋음", "나쁨"], ["나쁨", "좋음"]),
    ],
)
def test_classes_are_in_order_whatever_comes_first(values, names):
    for seed in range(3):
        random.Random(seed).shuffle(values)
        assert Labels.of(texts([*values, None]), SINGLE).names == names


def test_an_order_that_is_there_is_kept():
    values = texts(["a", "b", "c"])
    assert Labels.of(values, SINGLE, classes=["c", "a", "b"]).names == ["c", "a", "b"]
    assert Labels.of(values, SINGLE, known=["b", "c", "a"], classes=["c", "a", "b"]).names == ["b", "c", "a"]
    assert Labels.of(values, SINGLE, known=["b", "c", "d"]).names == ["a", "b", "c"]
    assert Labels.of(texts(["LABEL_1", "x"]), SINGLE, known=["x", "LABEL_1"]).names == ["x", "LABEL_1"]


def test_targets():
    single = Labels.of(texts([3, 1]), SINGLE)
    assert [single.target(label) for label in texts([1, "3", 3.0])] == [0, 1, 1]
    assert single.names == ["1", "3"]
    several = Labels.of(texts([["b"], ["a", "c"]]), MULTI)
    assert several.target(json.dumps(["c", "a"])) == [1.0, 0.0, 1.0]
    assert several.target("[]") == [0.0, 0.0, 0.0]
    assert several.target(json.dumps('["a", "b"]')) == [1.0, 1.0, 0.0]  # a list in a cell of a .csv
    number = Labels.of(texts([0.5, 2, "1.5"]), REGRESSION)
    assert (number.low, number.high, number.target('"1.25"')) == (0.5, 2.0, 1.25)


def test_an_unknown_label_is_told_with_what_is_like_it():
    with one_sentence("a.csv:3", "'goood'", "did you mean 'good'"):
        Labels.of(texts(["good", "bad"]), SINGLE).target('"goood"', "a.csv:3")


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"nan"', "-100", "-100.0", '"-100"', '"high"', "true", '"-inf"'])
def test_what_a_regression_cannot_learn_is_told(value):
    with one_sentence("a.csv:3"):
        Labels.of(["1.5", "2"], REGRESSION).target(value, "a.csv:3")


def test_minus_one_is_no_class_but_a_quantity():
    for label in ("-1", "-1.0", '"-1"', "NaN", None):
        assert is_missing(label, SINGLE)
        assert is_missing(label, MULTI)
    assert not is_missing("-1", REGRESSION)
    assert Labels.of(["-1", "0", "1"], SINGLE).names == ["0", "1"]


@pytest.mark.parametrize("problem", [SINGLE, MULTI, REGRESSION])
def test_one_label_is_nothing_to_learn(problem):
    with one_sentence("missing"):
        Labels.of([None], problem)
    if problem != MULTI:
        with one_sentence("1", "two"):
            Labels.of(["1", "1"], problem)


def test_a_label_of_another_problem_is_told():
    with one_sentence("row 1", "list", MULTI):
        Labels.of(texts(["a", "b"]), SINGLE).target('["a"]', "row 1")
    with one_sentence("row 1", "'0'", "twice"):
        Labels.of(texts([["0"], ["1"]]), MULTI).target("[0, 1, 0]", "row 1")


def test_balanced_weights_are_scikit_learns():
    labels = np.random.default_rng(0).choice(5, 200, p=[0.5, 0.3, 0.1, 0.05, 0.05])
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels)
    counts = np.bincount(labels, minlength=5).tolist()
    assert balanced(counts) == pytest.approx(expected.tolist())
    assert sum(np.array(balanced(counts))[labels]) == pytest.approx(len(labels))
