"""Which column of a table holds what: as the settings name it, or where the names are usual."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetuning.data.settings import (
    ChoiceTableSettings,
    SpanTableSettings,
    TableSettings,
    TextTableSettings,
    TokenTableSettings,
)
from pretraining.data.readers import Columns, listed
from pretraining.errors import UserError

Kind = Literal["text", "tokens", "spans", "choice"]

PAIRS = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question1", "question2"),
    ("query", "passage"),
    ("query", "document"),
)
TEXT = ("text", "sentence", "review", "document", "content", "comment", "tweet", "utterance", "question", "premise")
LABEL = ("label", "labels")
# These are asked only where there is no `label`: they are also names of other things.
WEAK_LABEL = ("score", "class", "category", "target", "stars", "rating", "sentiment", "topic", "intent", "similarity")
TOKENS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "pos_tags", "labels")
QUESTION, CONTEXT, ANSWERS, START, ID = ("question",), ("context",), ("answers", "answer"), ("answer_start",), ("id",)
CHOICES = ("choices", "endings", "options")  # one column with a list
NUMBERED = ("choice", "ending", "sentence", "solution", "option", "sol")  # choice1 choice2, or ending0 ending1 ...
CHOICE_CONTEXT = ("context", "premise", "ctx", "sent1", "article", "passage", "goal")
CHOICE_QUESTION = ("question", "sent2")
CHOICE_LABEL = ("label", "answer", "answerkey")


@dataclass(frozen=True)
class Found:
    """The columns of a table's examples."""

    columns: dict[str, str]
    """A column for each part that there is: `text`, `pair`, `label`, `tokens`, `tags`, `question`, `context`, ..."""
    settings: Columns
    """Each column with the setting that names it."""
    choices: list[str] = field(default_factory=list)
    """The columns of the choices."""

    def __str__(self) -> str:
        parts = [f"{part} {column!r}" for part, column in self.columns.items()]
        if self.choices:
            parts.append(f"choices {', '.join(map(repr, self.choices))}")
        return ", ".join(parts)

    def without(self, *parts: str) -> "Found":
        """The same without some parts, as a test split may be."""
        gone = {self.columns[part] for part in parts if part in self.columns}
        columns = {part: column for part, column in self.columns.items() if part not in parts}
        settings = {column: setting for column, setting in self.settings.items() if column not in gone}
        return Found(columns, settings, self.choices)


class _Finder:
    """Takes columns of a table one by one; `names` (N,) is what it has."""

    def __init__(self, names: list[str], place: str):
        self.names, self.place = names, place
        self.lower = {name.lower(): name for name in reversed(names)}  # of names that differ in case, the first
        self.columns: dict[str, str] = {}
        self.settings: Columns = {}

    def take(self, part: str, setting: str, column: str | int) -> None:
        if str(column) in self.settings:
            other = next(part for part, name in self.columns.items() if name == str(column))
            raise UserError(
                f"{self.place}: column {column!r} is both {other} and {part}: name another in data.{setting}."
            )
        self.columns[part] = str(column)
        self.settings[str(column)] = setting

    def usual(self, names: Sequence[str]) -> list[str]:
        """The columns with usual names that are not taken."""
        columns = (self.lower[name] for name in names if name in self.lower)
        return [column for column in columns if column not in self.settings]

    def one(self, part: str, setting: str, given: str | int | None, *usual: Sequence[str], needed: bool = True) -> None:
        """Takes the named column, or the one with a usual name; of several lists of names, the first that is there."""
        if given is not None:
            return self.take(part, setting, given)
        columns = next(filter(None, map(self.usual, usual)), [])
        if len(columns) > 1:
            raise self.ambiguous(part, setting, columns)
        if columns:
            return self.take(part, setting, columns[0])
        if needed:
            raise self.absent(part, setting, [name for names in usual for name in names])

    def ambiguous(self, part: str, setting: str, columns: Iterable[str]) -> UserError:
        return UserError(
            f"{self.place} has several columns that may be the {part} ({', '.join(columns)}): name it in "
            f"data.{setting}."
        )

    def absent(self, part: str, setting: str, usual: Sequence[str]) -> UserError:
        names = [f"{name:.40}" for name in self.names]
        return UserError(
            f"{self.place} has no column with a usual name for the {part} ({', '.join(usual)}): set data.{setting} to "
            f"one of {listed(names) or 'its columns, it has none'}."
        )

    def found(self, choices: Sequence[str] = ()) -> Found:
        return Found(self.columns, self.settings, list(choices))


def _text(finder: _Finder, settings: TextTableSettings, needs_label: bool) -> Found:
    if settings.label_column is not None:
        finder.take("label", "label_column", settings.label_column)
    if settings.text_column is not None:
        finder.take("text", "text_column", settings.text_column)
        if settings.pair_column is not None:
            finder.take("pair", "pair_column", settings.pair_column)
    else:
        pairs = [pair for pair in map(finder.usual, PAIRS) if len(pair) == 2]
        paired = {name for pair in pairs for name in pair}
        single = [[name] for name in finder.usual(TEXT) if name not in paired]
        candidates = pairs + single
        if len(candidates) > 1:
            raise finder.ambiguous("text", "text_column", map(" + ".join, candidates))
        if not candidates:
            raise finder.absent("text", "text_column", TEXT)
        for part, column in zip(("text", "pair"), candidates[0], strict=False):
            finder.take(part, f"{part}_column", column)
    if settings.label_column is None:
        finder.one("label", "label_column", None, LABEL, WEAK_LABEL, needed=needs_label)
    return finder.found()


def _tokens(finder: _Finder, settings: TokenTableSettings, needs_label: bool) -> Found:
    finder.one("tokens", "tokens_column", settings.tokens_column, TOKENS)
    finder.one("tags", "tags_column", settings.tags_column, TAGS, needed=needs_label)
    return finder.found()


def _spans(finder: _Finder, settings: SpanTableSettings, needs_label: bool) -> Found:
    finder.one("question", "question_column", settings.question_column, QUESTION)
    finder.one("context", "context_column", settings.context_column, CONTEXT)
    finder.one("answers", "answers_column", settings.answers_column, ANSWERS, needed=needs_label)
    finder.one("start", "start_column", settings.start_column, START, needed=False)
    finder.one("id", "id_column", settings.id_column, ID, needed=False)
    return finder.found()


def _numbered(finder: _Finder, stem: str) -> list[str]:
    """Columns as `choice0`, `choice1`, ..., or from 1 on; none where there are not two."""
    for first in (0, 1):
        columns: list[str] = []
        while f"{stem}{first + len(columns)}" in finder.lower:
            columns.append(finder.lower[f"{stem}{first + len(columns)}"])
        if len(columns) > 1:
            return columns
    return []


def _choice(finder: _Finder, settings: ChoiceTableSettings, needs_label: bool) -> Found:
    if settings.choice_columns:
        choices = list(map(str, settings.choice_columns))
    else:
        candidates = [[name] for name in finder.usual(CHOICES)]
        candidates += filter(None, (_numbered(finder, stem) for stem in NUMBERED))
        if len(candidates) > 1:
            raise finder.ambiguous("choices", "choice_columns", map(" + ".join, candidates))
        if not candidates:
            raise finder.absent("choices", "choice_columns", [*CHOICES, *(f"{stem}1" for stem in NUMBERED)])
        choices = candidates[0]
    for number, column in enumerate(choices):
        finder.take(f"choice {number}", "choice_columns", column)
    finder.one("context", "context_column", settings.context_column, CHOICE_CONTEXT, needed=False)
    finder.one("question", "question_column", settings.question_column, CHOICE_QUESTION, needed=False)
    finder.one("label", "label_column", settings.label_column, CHOICE_LABEL, needed=needs_label)
    finder.columns = {part: name for part, name in finder.columns.items() if not part.startswith("choice ")}
    return finder.found(choices)


FIND: dict[Kind, Callable[..., Found]] = {"text": _text, "tokens": _tokens, "spans": _spans, "choice": _choice}


def find_columns(kind: Kind, settings: TableSettings, names: list[str], place: str, needs_label: bool = True) -> Found:
    """The columns of a table that has `names`, by the settings or where the names are usual.

    Args:
        needs_label: whether a table without labels (or tags, or answers) is an error; for prediction it is none.

    Raises:
        UserError: a column is not there, or several may be it.
    """
    return FIND[kind](_Finder(names, place), settings, needs_label)
