"""Settings of labelled tables: where the examples come from, which columns they stand in, and how many are used."""

from dataclasses import dataclass, field

from pretraining.data.settings import between, check_fraction
from pretraining.errors import UserError


@dataclass(frozen=True)
class TableSettings:
    """Where labelled examples come from, and which of them are used."""

    source: str = "files"
    """The source is `files`, the name of a Hub data set, a folder that `save_to_disk` wrote, or for texts `pydocs` (the
    docstrings of Python's own library, each labelled with its package)."""
    files: list[str] = field(default_factory=list)
    """Training files or globs for the source `files`: .jsonl, .csv, .tsv (each also as .gz) and .parquet. They are
    UTF-8, or UTF-16 and UTF-32 with a byte-order mark."""
    validation_files: list[str] = field(default_factory=list)
    """Held-out files or globs. If none are named, `validation_fraction` of the examples is held out."""
    test_files: list[str] = field(default_factory=list)
    """Files or globs that are scored once, after training. Where they have no labels, their predictions are written."""
    subset: str | None = None
    """The Hub data set's configuration, as in `load_dataset(name, subset)`."""
    split: str = "train"
    """The Hub data set's training split."""
    validation_split: str | None = None
    """The Hub data set's held-out split. If it is null, `validation_fraction` of the examples is held out."""
    test_split: str | None = None
    """The Hub data set's split that is scored once, after training."""
    validation_fraction: float = 0.1
    """Share of the examples that is held out, chosen by a hash of their text: equal texts are never on both sides."""
    examples: int = 0
    """Number of training examples, chosen by a hash of their content: a smaller choice is part of a larger one. Where
    each example has one class, as many of each are chosen, as far as there are. 0 means all."""
    processes: int = 0
    """Processes that prepare the examples. 0 means the machine's cores divided by the training processes on it."""

    def __post_init__(self) -> None:
        check_fraction(self.validation_fraction)
        between("data.examples", self.examples, 0)
        between("data.processes", self.processes, 0)
        files = [name for name in ("files", "validation_files", "test_files") if getattr(self, name)]
        if self.source == "files" and not self.files:
            raise UserError(
                "data.source is 'files' but data.files is empty: name them there, or set data.source to a data set."
            )
        if self.source != "files" and files:
            raise UserError(
                f"data.source is {self.source!r} but data.{files[0]} names files: set data.source to files, or name "
                "none."
            )
        if self.split in (self.validation_split, self.test_split):
            raise UserError(f"data.split is {self.split!r}, and so is a held-out split: name another for one of them.")
        splits = [name for name in ("validation_split", "test_split", "subset") if getattr(self, name) is not None]
        if self.source in ("files", "pydocs") and splits:
            raise UserError(
                f"data.{splits[0]} is of a Hub data set, but data.source is {self.source!r}: leave it out, or set "
                "data.source to a data set."
            )


@dataclass(frozen=True)
class TextTableSettings(TableSettings):
    """Texts, or pairs of texts, and their labels: one class, several at once, or a number."""

    text_column: str | int | None = None
    """The column of the text, or of a pair's first text. If it is null, it is found where its name is usual, as `text`,
    `sentence` or `premise`."""
    pair_column: str | int | None = None
    """The column of a pair's second text. If both columns are null, a pair is found where both names are usual, as
    `sentence1` and `sentence2`."""
    label_column: str | int | None = None
    """The column of the label. If it is null, it is found where its name is usual, as `label` or `score`. In a .csv or
    .tsv without a header, a column's name is its number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pair_column is not None and self.text_column is None:
            raise UserError(f"data.pair_column is {self.pair_column!r}, but data.text_column is not named: name both.")
        names = [name for name in ("text_column", "pair_column", "label_column") if getattr(self, name) is not None]
        if self.source == "pydocs" and names:
            raise UserError(
                f"data.{names[0]} names a column, but data.source is 'pydocs', which has none: leave it out."
            )


@dataclass(frozen=True)
class TokenTableSettings(TableSettings):
    """Sentences of words, each word with its tag."""

    tokens_column: str | int | None = None
    """The column with a list of words. If it is null, it is found where its name is usual, as `tokens` or `words`."""
    tags_column: str | int | None = None
    """The column with a list of tags, as many as there are words. If it is null, it is found where its name is usual,
    as `tags` or `ner_tags`."""


@dataclass(frozen=True)
class SpanTableSettings(TableSettings):
    """Questions whose answers are passages of a text."""

    question_column: str | int | None = None
    """The column of the question. If it is null, it is `question`."""
    context_column: str | int | None = None
    """The column of the text that the answer stands in. If it is null, it is `context`."""
    answers_column: str | int | None = None
    """The column of the answers, as in SQuAD: `{"text": ["1870"], "answer_start": [515]}`, with empty lists for a
    question that the text does not answer; or of one answer's text. If it is null, it is `answers` or `answer`."""
    start_column: str | int | None = None
    """The column with the character of the context, counted from 0, at which the answer begins, where
    `answers_column` holds a text alone. If it is null, it is `answer_start`."""
    id_column: str | int | None = None
    """The column that names a question in the predictions. If it is null, it is `id`, or the question's row."""


@dataclass(frozen=True)
class ChoiceTableSettings(TableSettings):
    """Choices, of which one is right, with a context and a question where there are any."""

    context_column: str | int | None = None
    """The column of the text that the choices continue. If it is null, it is found where its name is usual, as
    `context` or `premise`."""
    question_column: str | int | None = None
    """The column of the question about the context. If it is null, it is found where its name is usual."""
    choice_columns: list[str | int] = field(default_factory=list)
    """The columns of the choices in their order, or one column with a list. If none are named, they are found where
    their names are usual, as `choice1`, `choice2` or `endings`."""
    label_column: str | int | None = None
    """The column with the number of the right choice, counted from 0. If it is null, it is found where its name is
    usual, as `label`."""
