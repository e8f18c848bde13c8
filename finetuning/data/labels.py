"""Labels: which problem they pose, their names in an order that is frozen from the training data, their weights."""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from pretraining.data.find import nearest
from pretraining.data.readers import listed
from pretraining.errors import UserError

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
SINGLE, MULTI, REGRESSION = get_args(Problem)
MANY = 50  # different numbers from which on they may be no classes
NONE = ("-1", "-1.0", "-100", "-100.0")  # numbers that say "no class" nearly everywhere
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
SET_PROBLEM = f"set objective.problem to {SINGLE} or {REGRESSION}"


def _as_number(value: object) -> float | None:
    """A label as a number, also where a .csv spells it; None where it is none."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return float(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # of a whole number
        return math.inf


def class_name(value: object) -> str:
    """The name of a class, given as a label's JSON value: true is "true", 2.0 is "2"."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def is_missing(label: str | None, problem: Problem) -> bool:
    """Whether a label (JSON text) is none: null, and for classes also -1, -100 and what is not a number."""
    if label is None:
        return True
    return problem != REGRESSION and (label == "NaN" or label.strip('"') in NONE)


def guess_problem(values: Sequence[str | None], place: Callable[[int], str]) -> Problem:
    """The problem that labels (JSON texts) pose.

    Lists are several classes at once. Numbers, if one has a fraction, are a regression. All else is one class each.

    Args:
        place: how messages name the label of a row.

    Raises:
        UserError: they may be either.
    """

    def where(text: str) -> str:
        return place(values.index(text))

    labels = {text: json.loads(text) for text in sorted({value for value in values if value is not None})}
    lists = [text for text, label in labels.items() if isinstance(label, list)]
    if lists:
        if len(lists) < len(labels):
            other = next(text for text in labels if text not in lists)
            raise UserError(
                f"{where(other)} holds {labels[other]!r:.40}, but other labels are lists of classes: write a list of "
                "one."
            )
        return MULTI
    if labels and all(isinstance(label, str) and re.fullmatch(r"\[.*\]", label, re.S) for label in labels.values()):
        return MULTI  # lists in the cells of a .csv
    numbers: list[float] = []
    texts: list[str] = []  # JSON texts of labels that are no numbers
    for text, label in labels.items():
        number = _as_number(label)
        if number is None:
            texts.append(text)
        elif math.isfinite(number):
            numbers.append(number)
    if texts and all(isinstance(labels[text], str) and DECIMAL_COMMA.fullmatch(labels[text]) for text in texts):
        raise UserError(
            f"{where(texts[0])} holds {labels[texts[0]]!r}, a number with a comma: write decimal points, or set "
            f"objective.problem to {SINGLE} if labels are names."
        )
    fractions = [number for number in numbers if not number.is_integer()]
    if fractions and texts and len(numbers) >= len(texts):
        raise UserError(
            f"{where(texts[0])} holds {labels[texts[0]]!r:.40}, but other labels are numbers such as {fractions[0]:g}: "
            f"mend it, or set objective.problem to {SINGLE} if they are names."
        )
    if fractions and not texts:
        return REGRESSION
    if len(numbers) > max(MANY, len(texts)):
        raise UserError(
            f"{place(0)} and the other labels are {len(numbers)} different numbers, which may be classes or "
            f"quantities: {SET_PROBLEM}."
        )
    return SINGLE


def number_of(label: str, place: str) -> float:
    """The number of a regression's label (JSON text).

    Raises:
        UserError: it is no finite number of 32 bits, or -100, which losses take for a label that is not there.
    """
    value = json.loads(label)
    number = _as_number(value)
    if number is None and isinstance(value, str) and value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        number = float(value)
    if number is None:
        raise UserError(
            f"{place} holds {value!r:.40} instead of a number: mend it, or set objective.problem to {SINGLE} if labels "
            "are names."
        )
    with np.errstate(over="ignore"):
        learnt = float(np.float32(number))
    if not math.isfinite(learnt):
        raise UserError(
            f"{place} holds {value!r:.40}: a regression learns finite numbers of 32 bits, mend it or delete the row."
        )
    if learnt == -100:
        raise UserError(
            f"{place} holds {value}, and -100 means no label to every loss: write a number such as -100.01, scale the "
            "labels, or delete the row."
        )
    return number


def names_of(label: str, problem: Problem, place: str) -> list[str]:
    """The names of the classes in a label (JSON text).

    Raises:
        UserError: there are several of a problem of one, or one twice.
    """
    value = json.loads(label)
    if problem == MULTI:
        if isinstance(value, str) and value.startswith("["):  # as a cell of a .csv holds it
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f'{place} holds {value!r:.40}, which is no list as ["a", "b"]: mend it, or set objective.problem '
                    f"to {SINGLE} if it is a name."
                ) from error
        values = value if isinstance(value, list) else [value]
        for each in values:
            is_odd = isinstance(each, list | dict) or (isinstance(each, float) and not math.isfinite(each))
            if is_odd or each is None or class_name(each) in NONE:
                raise UserError(
                    f"{place} lists {each!r:.40}, which is no class: write names or numbers, and an empty list where "
                    "no class holds."
                )
        names = [class_name(each) for each in values]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"{place} names the class {name!r} twice: list the classes that hold, each once, and no zero or "
                    "one for each class."
                )
        return names
    if isinstance(value, list):
        raise UserError(f"{place} is a list: set objective.problem to {MULTI}, or write one class.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place} holds {value}, which is no class: mend it, or leave it empty.")
    return [class_name(value)]


def _sorted(names: Iterable[str]) -> list[str]:
    """Names in order; those that are all numbers are sorted as numbers."""
    names = sorted(names)
    if all(NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=float)
    return names


def _check_spellings(names: Iterable[str], place: str) -> None:
    """Raises UserError where two names say one thing, as 1 and 1.0, or true and True, do in files of several makers."""
    seen: dict[float | str, str] = {}
    for name in sorted(names):
        if NUMBER.fullmatch(name) and not re.match(r"[+-]?0\d", name):  # 01 is a code
            meaning: float | str = float(name)
        else:
            meaning = {"true": 1.0, "false": 0.0}.get(name.lower(), name)
        if meaning in seen:
            raise UserError(
                f"{place} have both {seen[meaning]!r} and {name!r}, which are one class in two spellings: write it in "
                "one everywhere."
            )
        seen[meaning] = name


@dataclass(frozen=True)
class Labels:
    """What a head learns to say, frozen from the training data."""

    problem: Problem
    names: list[str] = field(default_factory=list)
    """The class of each number; empty for a regression."""
    low: float = 0.0
    """A regression's least label."""
    high: float = 0.0
    """A regression's greatest label."""

    @classmethod
    def of(
        cls,
        values: Iterable[str | None],
        problem: Problem,
        known: Sequence[str] | None = None,
        classes: Sequence[str] = (),
        place: str = "the training labels",
    ) -> "Labels":
        """The labels of the training data.

        Args:
            values: JSON texts; those that are missing do not count.
            known: the names that a checkpoint has in its `id2label`; their order is kept if they are the same names.
            classes: names in an order of their own, as the data set's features have them.
            place: the labels, for messages.

        Raises:
            UserError: a label is malformed, or there are not two classes.
        """
        distinct = sorted({value for value in values if value is not None and not is_missing(value, problem)})
        if problem == REGRESSION:
            numbers = [number_of(value, place) for value in distinct]
            if len(numbers) < 2:
                raise UserError(
                    f"{place} are all {listed(distinct) or 'missing'}: there must be two different numbers."
                )
            return cls(problem, low=min(numbers), high=max(numbers))
        found = {name for value in distinct for name in names_of(value, problem, place)}
        if len(found) < 2 and (problem == SINGLE or not found):
            raise UserError(
                f"{place} are all {listed(sorted(found)) or 'missing'}: there must be two classes at least."
            )
        _check_spellings(found, place)
        unnamed = found - set(classes)
        if numbered := [name for name in unnamed if classes and name.isdecimal() and int(name) < len(classes)]:
            raise UserError(
                f"{place} are numbers as {min(numbered)} in one place and names as {classes[0]!r} in another: write "
                "the names, or the numbers, everywhere."
            )
        names = [name for name in dict.fromkeys(classes) if name in found]
        names += _sorted(found - set(names))
        if known is not None and set(known) == found and len(known) == len(found):
            names = list(known)
        return cls(problem, names)

    def index(self, name: str, place: str = "a label") -> int:
        """The number of a class, by its name.

        Raises:
            UserError: no training example has it.
        """
        if name not in self._numbers:
            raise UserError(
                f"{place} is {name!r:.60}, which no training example has{nearest(name, self.names)}: mend it, add "
                f"training examples of it, or delete the row; the classes are {listed(self.names)}."
            )
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def target(self, label: str, place: str = "a label") -> Any:
        """What is learnt of a label (JSON text): a number, a class number, or a list of 0.0 and 1.0 for each class."""
        if self.problem == REGRESSION:
            return number_of(label, place)
        numbers = [self.index(name, place) for name in names_of(label, self.problem, place)]
        if self.problem == SINGLE:
            return numbers[0]
        return [float(number in numbers) for number in range(len(self.names))]


def balanced(counts: Sequence[int]) -> list[float]:
    """The weight of each class, from its number of training examples: n / (k * n_c), as in scikit-learn.

    With them each class has the same part in the loss. A class without examples has the weight 1, and counts nowhere.
    """
    used = sum(count > 0 for count in counts)
    return [sum(counts) / (used * count) if count else 1.0 for count in counts]
