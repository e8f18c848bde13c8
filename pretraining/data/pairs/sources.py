"""Sources of sentence pairs: files, Hub data sets and dates in many languages, read into one form on disk."""

import re
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from itertools import zip_longest

from datasets import Dataset, Features, Value

from pretraining.data import readers
from pretraining.data.find import check_apart, extension, find, identity, nearest, shown, state
from pretraining.data.pairs import dates
from pretraining.data.pairs.settings import PairSettings
from pretraining.data.readers import TABLES, Columns, Row, Rows, check_text, lines, listed, tsv
from pretraining.data.stored import hash_text, store
from pretraining.errors import UserError, tell

# What decides the split, what is compared and what counts is taken while a pair is stored, as for documents.
FEATURES = Features(
    dict.fromkeys(("name", "source", "target", "group", "alignment"), Value("string"))
    | dict.fromkeys(("hash", "alignment_hash", "split_hash"), Value("uint64"))
    | {"characters": Value("int64")}
)
TSV = (".tsv", ".tsv.gz")
KNOWN = (*TABLES, *TSV)  # extensions
PLAIN = (*TSV, ".csv", ".csv.gz")  # those whose cells hold no dictionary
ALIGNMENT = re.compile(r"(\d+-\d+( \d+-\d+)*)?")

Cell = tuple[str, object]  # place and value
Cells = Iterator[tuple[str, Cell, Cell, Cell | None]]  # the pair's name, source, target, word alignment


# ---- what each format gives ----


def _columns(settings: PairSettings) -> Columns:
    if settings.columns:
        columns = dict.fromkeys(map(str, settings.columns), "columns")
    else:
        columns = {settings.column: "columns to its two sides, or data.column"}
    return columns | ({settings.alignment_column: "alignment_column"} if settings.alignment_column else {})


def _translation(row: Row, name: str, settings: PairSettings) -> Iterator[Cell]:
    """The source's and the target's cell of a row with a dictionary."""
    value = row[settings.column]
    if not isinstance(value, dict):
        raise UserError(
            f"{name} holds {value!r:.40} instead of a dictionary of languages: write "
            f'{{"{settings.column}": {{"en": "...", "de": "..."}}}}, or name two plain columns in data.columns.'
        )
    for setting in ("source_language", "target_language"):
        language, languages = getattr(settings, setting), listed(value)
        if language is None:
            raise UserError(
                f"{name} has the languages {languages}: set data.source_language and data.target_language to two of "
                "them."
            )
        if language not in value:
            near = nearest(language, value)
            raise UserError(f"{name} has no language {language!r}{near}: set data.{setting} to one of {languages}.")
        yield f"{name}, {language}", value[language]


def _cells(rows: Rows, settings: PairSettings, columns: list[str]) -> Cells:
    """A table's cells, from two columns, or where none are given from the dictionary."""
    for name, row in rows:
        if columns:
            labels = [f"column {column}" if column.isdecimal() else column for column in columns]
            source, target = ((f"{name}, {at}", row[column]) for at, column in zip(labels, columns, strict=True))
        else:
            source, target = _translation(row, name, settings)
        alignment = settings.alignment_column
        yield name, source, target, (f"{name}, {alignment}", row[alignment]) if alignment else None


def _table(path: str, settings: PairSettings) -> Cells:
    end = extension(path)
    columns = list(map(str, settings.columns))
    if not columns and end in TSV and not settings.alignment_column:
        return _cells(tsv(path, {}), settings, ["1", "2"])
    if not columns and end in PLAIN:
        raise UserError(
            f"{shown(path)} has columns but no dictionaries: set data.columns to its source's and its target's."
        )
    rows = (tsv if end in TSV else TABLES[end])(path, _columns(settings))
    return _cells(rows, settings, columns)


def _aligned(files: tuple[str, ...]) -> Cells:
    """The lines of a source's file, of its target's, and if there is one of their alignments'."""
    names = list(map(shown, files))
    for number, row in enumerate(zip_longest(*map(lines, files)), 1):
        if None in row:
            first, *others = ((shown(path), sum(1 for _ in lines(path))) for path in files)
            path, count = next(other for other in others if other[1] != first[1])
            raise UserError(
                f"{first[0]} has {first[1]:,} lines but {path} has {count:,}: mend them, so that each line of one "
                "belongs to the same line of the other."
            )
        source, target, *alignment = ((f"{name}:{number}", line) for name, line in zip(names, row, strict=True))
        yield source[0], source, target, alignment[0] if alignment else None


# ---- from cells to pairs ----


def _side(cell: Cell, setting: str) -> str:
    place, value = cell
    return "" if value is None else check_text(value, place, setting).strip()


def _alignment(cell: Cell | None, source: str, target: str) -> str:
    if cell is None or cell[1] is None:
        return ""
    text = " ".join(check_text(cell[1], cell[0], "alignment_column").split())
    if not ALIGNMENT.fullmatch(text):
        raise UserError(f"{cell[0]} holds {text!r:.40}: write word alignments as 0-0 1-2, source word - target word.")
    words = len(source.split()), len(target.split())
    for point in text.split():
        if any(int(word) >= count for word, count in zip(point.split("-"), words, strict=True)):
            raise UserError(
                f"{cell[0]} aligns {point} but the source has {words[0]} words and the target {words[1]}: count from 0 "
                "what stands between spaces."
            )
    return text


def as_pair(name: str, source: str, target: str, alignment: str = "", group: str = "", split_by: str = "") -> Row:
    """A pair as it is stored; `split_by` decides whether it is held out, or if empty the source does."""
    return {
        "name": name, "source": source, "target": target, "group": group, "alignment": alignment,
        "hash": hash_text(f"{len(source)} {source}{target}"), "alignment_hash": hash_text(alignment),
        "split_hash": hash_text(split_by or source), "characters": len(source) + len(target),
    }  # fmt: skip


def as_pairs(cells: Cells, place: str, settings: PairSettings) -> Generator[Row, None, int]:
    """Cells as pairs, and the number of those that are left out because they are blank on both sides.

    One blank side is an error, for it is how pairs look that have slipped against one another.
    """
    empty, blank_pairs, blank_sides, first = True, 0, 0, ""
    setting = "columns" if settings.columns else "column"
    for name, *sides, alignment in cells:
        source, target = (_side(cell, setting) for cell in sides)
        if source and target and not blank_sides:
            empty = False
            yield as_pair(name, source, target, _alignment(alignment, source, target))
        elif not source and not target:
            blank_pairs += 1
        elif not source or not target:
            first = first or sides[bool(source)][0]
            blank_sides += 1
    if blank_sides:
        others = f", and so is one side of {blank_sides - 1:,} more pairs of {place}" if blank_sides > 1 else ""
        raise UserError(f"{first} is empty{others}: fill what is empty, or delete the pair on both sides.")
    if empty:
        raise UserError(f"{place} holds no pairs: fill it, or leave it out.")
    return blank_pairs


# ---- the sources ----


def _tell_blank(blank: int) -> Iterator[str]:
    if blank:
        yield f"{blank:,} pairs are blank on both sides, and left out"


def _store(pairs: Callable[[], Iterator[Row | str]], settings: PairSettings, *key: object) -> Dataset:
    languages = (settings.source_language, settings.target_language)
    return store(pairs, FEATURES, "pairs", [__file__, readers.__file__], _columns(settings), languages, *key)


def _find(settings: PairSettings, prefix: str = "") -> list[tuple[str, ...]]:
    """A split's files, those together that are read together: a table, or two or three that are line-aligned."""
    if patterns := getattr(settings, f"{prefix}files"):
        return [(file,) for file in find(patterns, f"{prefix}files", KNOWN)]
    names = [f"{prefix}source_files", f"{prefix}target_files"]
    if settings.alignment_files and not prefix:
        names.append("alignment_files")
    # One file of sources may stand beside several of targets.
    sides = [find(getattr(settings, name), name, repeats=True) for name in names]
    for name, files in zip(names, sides, strict=True):
        if len(files) != len(sides[0]):
            raise UserError(
                f"data.{names[0]} names {len(sides[0])} files but data.{name} names {len(files)}: name as many, in the "
                "same order."
            )
    groups = list(zip(*sides, strict=True))
    for source, target, *_ in groups:
        if identity(source) == identity(target):
            raise UserError(
                f"{shown(source)} in data.{names[0]} and {shown(target)} in data.{names[1]} are one file: name one for "
                "each side."
            )
    once = {tuple(map(identity, files)): files for files in groups}
    if len(once) < len(groups):
        tell(f"data.{names[0]}: {len(groups) - len(once)} of {len(groups)} files repeat others: each is read once.")
    return list(once.values())


def _load_files(groups: list[tuple[str, ...]], settings: PairSettings) -> Dataset:
    def pairs() -> Iterator[Row | str]:
        blank = 0
        for files in groups:
            cells = _table(*files, settings) if len(files) == 1 else _aligned(files)
            blank += yield from as_pairs(cells, shown(files[0]), settings)
        yield from _tell_blank(blank)

    return _store(pairs, settings, groups, [state(files) for files in groups])


def _load_hub(settings: PairSettings, split: str) -> Dataset:
    source, columns = settings.source, _columns(settings)
    dataset, place = readers.load_hub(source, settings.subset, split, columns, ["dates", "files"])

    def pairs() -> Iterator[Row | str]:
        rows = readers.hub_rows(dataset, source, split, columns)
        blank = yield from as_pairs(_cells(rows, settings, list(map(str, settings.columns))), place, settings)
        yield from _tell_blank(blank)

    return _store(pairs, settings, source, split, dataset._fingerprint)


def _load_dates() -> Dataset:
    def pairs() -> Iterator[Row]:
        for number, (tag, text, iso) in enumerate(dates.generate_dates()):
            yield as_pair(f"dates:{number}", f"{tag} {text}", iso, group=tag, split_by=iso)

    return store(pairs, FEATURES, "pairs", [__file__, dates.__file__], "dates", version("babel"))


def load_source(settings: PairSettings) -> tuple[Dataset, Dataset | None]:
    """Load a source's pairs, streamed into the cache of `datasets`; they are read again only if they changed.

    Returns:
        The pairs, and those that the settings name as held out, if they name any. Columns are those of `FEATURES`:
        "name" (file:row, data set:split:row or dates:number), "source" and "target" (never blank), "group" (a date's
        locale, else ""), "alignment" of words ("" where there is none), "hash" and "characters" of both sides,
        "alignment_hash", and the "split_hash" that decides whether a pair is held out.

    Raises:
        UserError: the settings or the data are wrong.
    """
    if settings.source == "dates":
        return _load_dates(), None
    if settings.source == "files":
        groups, held_out = _find(settings), _find(settings, "validation_")
        setting = "files" if settings.files else "source_files"
        check_apart([first for first, *_ in groups], [first for first, *_ in held_out], setting)
        return _load_files(groups, settings), _load_files(held_out, settings) if held_out else None
    held_out_split = settings.validation_split
    return _load_hub(settings, settings.split), _load_hub(settings, held_out_split) if held_out_split else None
