"""Settings of sentence pairs: where they come from, and which of them are used."""

from dataclasses import dataclass, field

from pretraining.data.settings import between, check_fraction
from pretraining.errors import UserError


@dataclass(frozen=True)
class PairSettings:
    """Where pairs of sentences come from, and which of them are used."""

    source: str = "dates"
    """The source is `dates` (dates as people write them in many languages, with their ISO 8601 form), `files`, the name
    of a Hub data set, or a folder that `save_to_disk` wrote."""
    files: list[str] = field(default_factory=list)
    """Files or globs for the source `files`: .jsonl, .csv, .tsv (each also as .gz) and .parquet. They are UTF-8, or
    UTF-16 and UTF-32 with a byte-order mark. All text becomes Unicode's normal form NFC without control characters."""
    source_files: list[str] = field(default_factory=list)
    """Text files or globs (plain or .gz) with a source sentence on each line. They take the place of `files`."""
    target_files: list[str] = field(default_factory=list)
    """Text files or globs with the target sentences, in the files and lines of their `source_files`."""
    alignment_files: list[str] = field(default_factory=list)
    """Files or globs with the word alignments of the lines of `source_files`. `0-0 1-2` aligns the first words, and the
    second source word with the third target word. Words are what stands between spaces."""
    validation_files: list[str] = field(default_factory=list)
    """Held-out files or globs, like `files`. If no held-out pairs are named, `validation_fraction` is held out."""
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
    columns: list[str | int] = field(default_factory=list)
    """The source's and the target's column, in the place of `column`. A .csv or .tsv file without a header has them by
    number, as in `[2, 4]`. If none are named for a .tsv file, it has no header, and two cells in each row."""
    alignment_column: str | None = None
    """The column that holds word alignments, written as in `alignment_files`."""
    subset: str | None = None
    """The Hub data set's configuration, as in `load_dataset(name, subset)`."""
    split: str = "train"
    """The Hub data set's training split."""
    validation_split: str | None = None
    """The Hub data set's held-out split. If it is null, `validation_fraction` of the pairs is held out."""
    validation_fraction: float = 0.05
    """Share of the pairs that is held out, chosen by a hash of their source (of the date, for `dates`). 0 holds out
    nothing."""
    processes: int = 0
    """Processes that prepare the pairs. 0 means the machine's cores divided by the training processes on it."""
    duplicates: bool = False
    """Pairs that repeat an earlier one word for word are used too. A held-out split that is named keeps them anyway."""

    def __post_init__(self) -> None:
        check_fraction(self.validation_fraction)
        between("data.processes", self.processes, 0)
        if len(self.columns) not in (0, 2):
            raise UserError(f"data.columns is {self.columns}: it must be the source's and the target's column.")
        if bool(self.source_language) != bool(self.target_language):
            raise UserError("data.source_language and data.target_language belong together: set both, or neither.")
        for one, other in (("source_language", "target_language"), ("source_files", "target_files")):
            if getattr(self, one) and getattr(self, one) == getattr(self, other):
                raise UserError(f"data.{one} and data.{other} are both {getattr(self, one)}: name one for each side.")
        if len(set(map(str, self.columns))) == 1:
            raise UserError(f"data.columns is {self.columns}: name the source's column and the target's.")
        lines = ["source_files", "target_files"]
        train = [kind for kind in ("files", *lines, "alignment_files") if getattr(self, kind)]
        held_out = [f"validation_{kind}" for kind in ("files", *lines) if getattr(self, f"validation_{kind}")]
        if self.source != "files" and (train or held_out):
            name = f"data.{(train + held_out)[0]}"
            raise UserError(f"data.source is {self.source!r} but {name} names files: set data.source to files.")
        if self.source == "files" and train not in (["files"], lines, [*lines, "alignment_files"]):
            raise UserError(
                f"data.source is 'files' and {', '.join(train) or 'no list of them'} is named: name data.files, or "
                "data.source_files and data.target_files (and data.alignment_files, if there are any)."
            )
        if held_out not in ([], ["validation_files"], [f"validation_{kind}" for kind in lines]):
            raise UserError(
                f"Of the held-out files, {', '.join(held_out)} is named: name data.validation_files, or "
                "data.validation_source_files and data.validation_target_files."
            )

    @property
    def names_held_out(self) -> bool:
        """Whether a held-out split is named, instead of a share of the pairs."""
        return bool(self.validation_files or self.validation_source_files or self.validation_split)
