"""Settings of text: where the documents come from, and which of them are used."""

from dataclasses import dataclass, field
from typing import Literal

from pretraining.data.settings import between, check_fraction
from pretraining.errors import UserError


@dataclass(frozen=True)
class TextSource:
    """Where documents come from."""

    source: str = "pydocs"
    """The source is `pydocs` (the documentation that Python itself carries), `files`, the name of a Hub data set, or a
    folder that `save_to_disk` wrote."""
    files: list[str] = field(default_factory=list)
    """Files or globs for the source `files`: .txt, .jsonl, .csv (each also as .gz) and .parquet. They are UTF-8, or
    UTF-16 and UTF-32 with a byte-order mark. All text becomes Unicode's normal form NFC without control characters."""
    validation_files: list[str] = field(default_factory=list)
    """Held-out files or globs. If none are named, `validation_fraction` of the documents is held out."""
    column: str = "text"
    """The column that holds the text in .jsonl, .csv, .parquet and data sets; the number of the column in a .csv
    without a header."""
    document: Literal["file", "blank_line", "line"] = "file"
    """The part of a .txt file that is one document: the whole file, the text between blank lines, or a line."""
    subset: str | None = None
    """The Hub data set's configuration, as in `load_dataset(name, subset)`."""
    split: str = "train"
    """The Hub data set's training split."""
    validation_split: str | None = None
    """The Hub data set's held-out split. If it is null, `validation_fraction` of the documents is held out."""
    language: str = "en"
    """ISO 639-1 code of the text's language, as in `ko`. The language decides where sentences end."""
    weight: float = 1.0
    """Passes over this source in an epoch: 2 gives every example twice, 0.5 another half in each epoch, 0 nothing."""

    def __post_init__(self) -> None:
        between(f"data.weight of the source {self.source!r}", self.weight, 0)


@dataclass(frozen=True)
class TextSettings(TextSource):
    """Where the documents come from, and which of them are used."""

    mixture: list[TextSource] = field(default_factory=list)
    """More sources beside this one. Each has the settings of a source, its `weight` among them."""
    validation_fraction: float = 0.05
    """Share of the documents that is held out, chosen by a hash of their text. A held-out split that is named takes its
    place. 0 holds out nothing."""
    min_characters: int = 0
    """Documents with fewer characters are left out."""
    near_duplicates: float = 0.8
    """Jaccard similarity of two documents' runs of five words from which on one of them is left out: the later one, or
    the one that is not held out. 1 leaves out equal documents alone, 0 none."""
    processes: int = 0
    """Processes that prepare the text. 0 means the machine's cores divided by the training processes on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.validation_fraction)
        between("data.min_characters", self.min_characters, 0)
        between("data.near_duplicates", self.near_duplicates, 0, 1)
        between("data.processes", self.processes, 0)
        if not self.sources:
            raise UserError("data.weight is 0, and so is that of every source in data.mixture: give one a weight.")

    @property
    def sources(self) -> list[TextSource]:
        """All sources that have a weight."""
        return [source for source in (self, *self.mixture) if source.weight]
