"""Which data a run is given: where it comes from, what is kept of it, and its tokenizer."""

from dataclasses import dataclass, field
from typing import Literal

from pretraining.errors import UserError


def between(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raises UserError where a setting is out of its range."""
    if not low <= value <= high:
        bound = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
        raise UserError(f"{name} is {value}: it must be {bound}.")


@dataclass
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


@dataclass
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


@dataclass
class PairSettings:
    """Where pairs of sentences come from, and which of them are kept."""

    source: str = "dates"
    """`dates` (dates as people write them in many languages, with their ISO 8601 form), `files`, or the name of a Hub
    data set."""
    files: list[str] = field(default_factory=list)
    """Files or globs for `files`: .jsonl, .csv, .tsv, .parquet, each also as .gz (not parquet)."""
    source_files: list[str] = field(default_factory=list)
    """Instead of `files`: text files or globs (plain or .gz) with a source sentence on each line."""
    target_files: list[str] = field(default_factory=list)
    """The target sentences, file by file and line by line those of `source_files`."""
    alignment_files: list[str] = field(default_factory=list)
    """Word alignments for the lines of `source_files`: `0-0 1-2` aligns the first words, and the second source word
    with the third target word; words are what stands between spaces. Empty: none."""
    validation_files: list[str] = field(default_factory=list)
    """Held-out files or globs, like `files`; where no held-out pairs are named, `validation_fraction` is held out."""
    validation_source_files: list[str] = field(default_factory=list)
    """Held-out files or globs, like `source_files`."""
    validation_target_files: list[str] = field(default_factory=list)
    """Held-out files or globs, like `target_files`."""
    column: str = "translation"
    """The column that holds a dictionary of each pair, as in `{"en": "A dog.", "de": "Ein Hund."}`."""
    source_language: str | None = None
    """The source's key in the dictionary, as in `en`."""
    target_language: str | None = None
    """The target's key in the dictionary, as in `de`."""
    columns: list[str] = field(default_factory=list)
    """Instead of `column`: the source's and the target's column. Empty for .tsv: no header, the first two cells."""
    alignment_column: str | None = None
    """The column that holds word alignments, as in `alignment_files`; none: there are none."""
    subset: str | None = None
    """The Hub data set's configuration, as in `load_dataset(name, subset)`."""
    split: str = "train"
    """The Hub data set's training split."""
    validation_split: str | None = None
    """The Hub data set's held-out split; none: `validation_fraction` of the pairs."""
    validation_fraction: float = 0.05
    """Share of pairs held out, chosen by a hash of their source (`dates`: of the date); 0: none."""
    processes: int = 0
    """Processes that prepare pairs; 0: cores divided by the training processes on this machine."""
    duplicates: bool = False
    """Keep pairs that repeat an earlier one word for word; a held-out split that is named keeps them anyway."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            fraction = self.validation_fraction
            raise UserError(f"data.validation_fraction is {fraction}: it must be at least 0 and less than 1.")
        between("data.processes", self.processes, 0)
        if len(self.columns) not in (0, 2):
            raise UserError(f"data.columns is {self.columns}: it must be the source's and the target's column.")
        if bool(self.source_language) != bool(self.target_language):
            raise UserError("data.source_language and data.target_language belong together: set both, or neither.")
        for one, other in (("source_language", "target_language"), ("source_files", "target_files")):
            if getattr(self, one) and getattr(self, one) == getattr(self, other):
                raise UserError(f"data.{one} and data.{other} are both {getattr(self, one)}: name one for each side.")
        if len(set(self.columns)) == 1:
            raise UserError(f"data.columns is {self.columns}: name the source's column and the target's.")
        lines = ["source_files", "target_files"]
        named = [kind for kind in ("files", *lines, "alignment_files") if getattr(self, kind)]
        held = [f"validation_{kind}" for kind in ("files", *lines) if getattr(self, f"validation_{kind}")]
        if self.source != "files" and (named or held):
            name = f"data.{(named + held)[0]}"
            raise UserError(f"data.source is {self.source!r} but {name} names files: set data.source to files.")
        if self.source == "files" and named not in (["files"], lines, [*lines, "alignment_files"]):
            raise UserError(
                f"data.source is 'files' and {', '.join(named) or 'no list of them'} is named: name data.files, or "
                "data.source_files and data.target_files (and data.alignment_files, if there are any)."
            )
        if held not in ([], ["validation_files"], [f"validation_{kind}" for kind in lines]):
            raise UserError(
                f"Of the held-out files, {', '.join(held)} is named: name data.validation_files, or "
                "data.validation_source_files and data.validation_target_files."
            )

    @property
    def names_held_out(self) -> bool:
        """Whether a held-out split is named, instead of a share of the pairs."""
        return bool(self.validation_files or self.validation_source_files or self.validation_split)


@dataclass
class TokenizerSettings:
    """An existing tokenizer, or how to train one on the run's own text."""

    path: str | None = None
    """A folder or Hub name of an existing tokenizer; none: train one."""
    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """The subword model to train."""
    separate: bool = False
    """Of pairs: a vocabulary for the sources and another for the targets, of one size; at `path` the latter is in
    target/."""
    vocab_size: int = 8192
    """Number of entries, special tokens included."""
    cased: bool = False
    """Keep upper and lower case apart. Accents and Hangul are kept whole either way."""
    sample_characters: int = 200_000_000
    """Train, or count words, on at most this many characters, sampled evenly over the documents."""
    new_words: int = 0
    """So many words become entries of the tokenizer at `path`: the most frequent ones of the run's training text that
    it splits."""
    words: str | None = None
    """A file of one word a line; those that the tokenizer at `path` splits become entries too."""

    def __post_init__(self) -> None:
        between("tokenizer.new_words", self.new_words, 0)
        between("tokenizer.sample_characters", self.sample_characters, 1)
        if self.path is None and (self.new_words or self.words):
            name = "new_words" if self.new_words else "words"
            raise UserError(
                f"tokenizer.{name} adds to a tokenizer that is there, and one that is trained here fits the text as it "
                f"is: leave tokenizer.{name} out, or set init_from or tokenizer.path."
            )
