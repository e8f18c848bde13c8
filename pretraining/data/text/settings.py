"""Which text a run is given, and what is kept of it."""

from dataclasses import dataclass, field
from typing import Literal

from pretraining.data.settings import between
from pretraining.errors import UserError


@dataclass(frozen=True)
class TextSource:
    """Where documents come from."""

    source: str = "pydocs"
    """`pydocs` (the documentation that Python itself carries), `files`, or the name of a Hub data set."""
    files: list[str] = field(default_factory=list)
    """Files or globs for `files`: .txt, .jsonl, .csv, .parquet, each also as .gz (not parquet)."""
    validation_files: list[str] = field(default_factory=list)
    """Held-out files or globs; empty: `validation_fraction` of the documents is held out."""
    column: str = "text"
    """The column that holds the text, for .jsonl, .csv, .parquet and Hub data sets."""
    document: Literal["file", "blank_line", "line"] = "file"
    """What one document is in a .txt file: the whole file, the text between blank lines, or a line."""
    subset: str | None = None
    """The Hub data set's configuration, as in `load_dataset(name, subset)`."""
    split: str = "train"
    """The Hub data set's training split."""
    validation_split: str | None = None
    """The Hub data set's held-out split; none: `validation_fraction` of the documents."""
    language: str = "en"
    """ISO 639-1 code of the text's language, as in `ko`: it decides where sentences end."""
    weight: float = 1.0
    """Passes over this source in an epoch: 2 is every example twice, 0.5 another half each time, 0 none of it."""

    def __post_init__(self) -> None:
        between(f"The weight of the source {self.source!r}", self.weight, 0)


@dataclass(frozen=True)
class TextSettings(TextSource):
    """Where the documents come from, and which of them are kept."""

    mixture: list[TextSource] = field(default_factory=list)
    """More sources beside this one, each with the settings of a source, its `weight` among them."""
    validation_fraction: float = 0.05
    """Share of documents held out, chosen by a hash of their text, where no held-out split is named; 0: none."""
    min_characters: int = 0
    """Documents with fewer characters are left out."""
    near_duplicates: float = 0.8
    """Of two documents that share this much (Jaccard similarity of their runs of five words, estimated), the later
    one is left out, or the one that is not held out; 1: only equal ones; 0: all are kept."""
    processes: int = 0
    """Processes that prepare text; 0: cores divided by the training processes on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        between("data.min_characters", self.min_characters, 0)
        between("data.near_duplicates", self.near_duplicates, 0, 1)
        between("data.processes", self.processes, 0)
        if not self.sources:
            raise UserError("data.weight is 0, and so is that of every source in data.mixture: give one a weight.")

    @property
    def sources(self) -> list[TextSource]:
        """All sources that have a weight."""
        return [source for source in (self, *self.mixture) if source.weight]
