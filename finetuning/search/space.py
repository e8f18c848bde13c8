"""The space of a search: which settings differ between its trials, and over what, from a YAML file."""

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations, islice, product
from pathlib import Path
from typing import Any

import yaml

from finetuning.cli import PROGRAM, parse_finetune
from finetuning.settings import FinetuneSettings
from pretraining.autotune import AUTOTUNED
from pretraining.cli import SECTIONS, OneKey
from pretraining.errors import UserError, one_line
from pretraining.settings import Settings

# What no trial can have of its own, and why.
FIXED = {
    **dict.fromkeys(
        ("name", "runs", "resume", "cache", "config"), "each trial has its own folder, which the search names"
    ),
    "seeds": "a trial is one run: search over seed: [0, 1, 2]",
    **dict.fromkeys(("model.family", "objective.name"), "all trials learn one task"),
    **dict.fromkeys(("objective.metric", "evaluation.examples", "evaluation.every"), "all trials are judged alike"),
    **dict.fromkeys((f"train.{name}" for name in AUTOTUNED), "it decides how fast a trial is, and not what it learns"),
}
PAIRS = 300  # The most pairs of values that are checked together.
RANGE = ("low", "high", "log", "step")


class Loader(OneKey):
    """YAML in which 1e-5 is a number, as in YAML 1.2: in YAML 1.1 that is a text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def as_text(value: Any) -> str:
    """A value as the command line takes it."""
    # What JSON has no form of, as a date, becomes its text: the setting refuses it with a sentence of its own.
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class Choices:
    """A setting that takes one of some values."""

    key: str
    values: tuple[Any, ...]
    """What is no plain value, as a list, is its JSON."""

    def __str__(self) -> str:
        return f"[{', '.join(map(as_text, self.values))}]"

    def suggest(self, trial: Any) -> Any:
        """The value of an Optuna trial."""
        return trial.suggest_categorical(self.key, self.values)

    @property
    def corners(self) -> tuple[Any, ...]:
        """The values that are checked before any trial."""
        return self.values

    def grid(self) -> tuple[Any, ...]:
        """The values that a grid has."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A setting that takes a number between two bounds, both included."""

    key: str
    low: float
    high: float
    log: bool
    """Whether it is drawn evenly on a logarithmic scale."""
    step: float | None
    """Between neighbouring values; None: every number, or of whole ones each."""
    whole: bool

    def __str__(self) -> str:
        scale = ", log" if self.log else ""
        step = f", step {self.step}" if self.step is not None else ""
        return f"{self.low} to {self.high}{scale}{step}"

    def suggest(self, trial: Any) -> Any:
        """The value of an Optuna trial."""
        if self.whole:
            return trial.suggest_int(self.key, self.low, self.high, log=self.log, step=self.step or 1)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)

    @property
    def corners(self) -> tuple[Any, ...]:
        """The values that are checked before any trial."""
        return self.low, self.high

    def grid(self) -> tuple[Any, ...]:
        """The values that a grid has.

        Raises:
            UserError: they are not countable.
        """
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            raise UserError(
                f"the space's {self.key} is a range without a step, which has no grid: give it a step, or a list."
            )
        # In decimals, as they are written: 3 * 0.1 is 0.30000000000000004.
        low, high, each = (Decimal(str(number)) for number in (self.low, self.high, step))
        kind = int if self.whole else float
        return tuple(kind(low + number * each) for number in range(int((high - low) / each) + 1))


Dimension = Choices | Range
Space = list[Dimension]


def points(space: Space) -> list[dict[str, Any]]:
    """Every point of the grid, the last setting changing fastest.

    Raises:
        UserError: a range has no grid.
    """
    keys = [dimension.key for dimension in space]
    return [dict(zip(keys, values, strict=True)) for values in product(*(dimension.grid() for dimension in space))]


# ---- reading ----


def value_of(settings: Settings, key: str) -> Any:
    """The value of a setting; None where there is no such setting, which the check tells."""
    section, _, name = key.rpartition(".")
    holder = getattr(settings, section, None) if section else settings
    return getattr(holder, name, None)


def read_range(key: str, content: dict[str, Any], usual: Any) -> Range:
    """A range as it stands in the file.

    Args:
        usual: the setting's value without a search, which tells whether it is a whole number.

    Raises:
        UserError: it is none.
    """
    if unknown := [name for name in content if name not in RANGE]:
        raise UserError(f"the range of {key} has {unknown[0]!r}: what a range takes is {', '.join(RANGE)}.")
    if missing := [name for name in ("low", "high") if name not in content]:
        raise UserError(f"the range of {key} has no {missing[0]}: give it both bounds, low and high.")
    for name in ("low", "high", "step"):
        value = content.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise UserError(f"the range of {key} has {name}: {value!r:.40}, which is no number.")
    low, high, log, step = content["low"], content["high"], content.get("log", False), content.get("step")
    if not isinstance(log, bool):
        raise UserError(f"the range of {key} has log: {log!r}: it is true or false.")
    if not low < high:
        raise UserError(f"the range of {key} is from {low} to {high}: low must be below high.")
    if log and low <= 0:
        raise UserError(f"the range of {key} begins at {low}, and on a logarithmic scale there is nothing up to 0.")
    if step is not None and (log or not 0 < step <= high - low):
        why = (
            "evenly spaced values are not so on a logarithmic scale" if log else f"it must fit between {low} and {high}"
        )
        raise UserError(f"the range of {key} has step: {step}: {why}.")
    if isinstance(usual, bool | str | list | dict):
        raise UserError(f"{key} is {usual!r} without a search, which is no number: give it a list of values.")
    numbers = [low, high, *([step] if step is not None else [])]
    whole = all(isinstance(number, int) for number in numbers) and not isinstance(usual, float)
    if isinstance(usual, int) and not whole:
        raise UserError(f"the range of {key} has bounds or a step with a fraction: it is a whole number.")
    if whole:
        return Range(key, low, high, log, step, whole)
    return Range(key, float(low), float(high), log, None if step is None else float(step), whole)


def read_choices(key: str, content: list[Any]) -> Choices:
    """A list of values as it stands in the file.

    Raises:
        UserError: it is empty, or has a value twice.
    """
    plain = str | int | float | bool | None
    values = tuple(value if isinstance(value, plain) else as_text(value) for value in content)
    texts = [as_text(value) for value in values]
    if not texts:
        raise UserError(f"{key} has an empty list: give it the values that are tried.")
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise UserError(f"{key} has {twice[0]} twice: leave one of them out.")
    return Choices(key, values)


def read_space(path: str, settings: Settings) -> Space:
    """The settings that differ between trials, by their names.

    Args:
        settings: those of a trial where the space says nothing.

    Raises:
        UserError: the file cannot be read, or what it says is no space.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise UserError(f"--space: {path} cannot be read ({error.strerror}): name a YAML file.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--space: {path} is no YAML ({one_line(error)}).") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"--space: {path} holds no settings: write some, as in optim.learning_rate: [1e-5, 1e-4].")
    space: Space = []
    for key, values in content.items():
        try:
            if not isinstance(key, str):
                raise UserError(f"{key!r} is no setting.")
            if key in SECTIONS:
                name = next(iter(values), "key") if isinstance(values, dict) else "key"
                raise UserError(f"{key} is a section: write each of its settings whole, as {key}.{name}.")
            if key in FIXED:
                raise UserError(f"{key} cannot be searched: {FIXED[key]}.")
            if isinstance(values, dict):
                space.append(read_range(key, values, value_of(settings, key)))
            elif isinstance(values, list):
                if key == "start" and "both" in values:
                    raise UserError("start lists both, and a trial is one run: list pretrained and scratch.")
                space.append(read_choices(key, values))
            else:
                raise UserError(f"{key} is {values!r}: give it a list of values, or a range {{low: ..., high: ...}}.")
        except UserError as error:
            raise UserError(f"--space: {path}: {error}") from error
    return sorted(space, key=lambda dimension: dimension.key)


# ---- checking ----


def options(values: dict[str, Any]) -> list[str]:
    """A point of the space as arguments."""
    return [f"--{key}={as_text(value)}" for key, value in values.items()]


def parse(arguments: list[str]) -> FinetuneSettings:
    """The settings of a trial, by the parser of finetune.py.

    Raises:
        UserError: what that would end the program with.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_finetune(arguments)
    except SystemExit as end:
        sentence = said.getvalue().strip().splitlines()[-1].removeprefix(f"{PROGRAM}: error: ")
        raise UserError(sentence.removesuffix(" (--help lists every setting)")) from end


def check_space(path: str, arguments: list[str], space: Space) -> FinetuneSettings:
    """The settings of the space's first corner, when every value and every two values together are settings.

    Each value is parsed with the first value of all others, as a trial will be. Two values at once are put into parsed
    settings, which is a hundred times faster; there may be too many of them for all.

    Raises:
        UserError: a value is refused, or two are at odds.
    """
    first = {dimension.key: dimension.corners[0] for dimension in space}

    def attempt(point: dict[str, Any]) -> FinetuneSettings:
        try:
            return parse([*arguments, *options(first | point)])
        except UserError as error:
            raise UserError(f"--space: {path}: {' '.join(options(point))}: {error}") from error

    parsed: dict[tuple[str, str], FinetuneSettings] = {}
    for dimension in space:
        for value in dimension.corners:
            parsed[dimension.key, as_text(value)] = attempt({dimension.key: value})
    settings = parsed[space[0].key, as_text(space[0].corners[0])]
    for pair in islice(pairs(space), PAIRS):
        changes = {key: value_of(parsed[key, as_text(value)], key) for key, value in pair.items()}
        try:
            settings.changed(changes)
        except ValueError as error:  # of a model's configuration, too
            raise UserError(f"--space: {path}: {' '.join(options(pair))}: {one_line(error)}") from error
    return settings


def pairs(space: Space) -> Iterator[dict[str, Any]]:
    """Values of two settings at once; of settings in sections, which can be changed in parsed ones."""
    inside = [dimension for dimension in space if dimension.key.partition(".")[0] in SECTIONS]
    for one, other in combinations(inside, 2):
        for values in product(one.corners, other.corners):
            yield dict(zip((one.key, other.key), values, strict=True))
