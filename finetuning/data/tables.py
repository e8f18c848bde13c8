"""The labelled examples of a run: read from files or data sets, split, checked against the training labels."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from finetuning.data import columns as columns_module
from finetuning.data import rows as rows_module
from finetuning.data.columns import LABEL, PAIRS, TEXT, WEAK_LABEL, Found, Kind, find_columns
from finetuning.data.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    Labels,
    Problem,
    guess_problem,
    is_missing,
    names_of,
    number_of,
)
from finetuning.data.parts import Part, find_parts
from finetuning.data.pydocs import load_pydocs
from finetuning.data.rows import FEATURES, Classes, canonical
from finetuning.data.settings import SpanTableSettings, TableSettings
from pretraining.data import readers
from pretraining.data.readers import Row, listed
from pretraining.data.split import is_held_out, require_held_out
from pretraining.data.stored import Stored, store
from pretraining.errors import UserError

TARGET = {"text": "label", "tokens": "tags", "spans": "answers", "choice": "label"}  # the part that is learnt


@dataclass(frozen=True)
class Table(Stored):
    """N labelled examples in order; their columns are those of `finetuning.data.rows.FEATURES` for the kind."""

    kind: Kind
    labels: Labels | None
    """The classes, or the range of a regression, of the training examples; None for answers and choices."""
    column: str
    """The column of the labels, for messages."""
    notes: list[str]
    """Lines that tell what was found and what was left out."""

    def select(self, mask: np.ndarray) -> "Table":
        return self.take(np.flatnonzero(mask))

    def take(self, rows: np.ndarray) -> "Table":
        """Some rows, by their numbers."""
        return replace(self, dataset=self.dataset.select(rows), hash=self.hash[rows], characters=self.characters[rows])

    def values(self, column: str) -> list[Any]:
        """One column's values."""
        values: list[Any] = self.dataset.with_format("arrow", columns=[column])[:][column].to_pylist()
        return values

    @property
    def targets(self) -> list[Any]:
        """The label (JSON text), tags, answers or number of the right choice of each example; None where unknown."""
        return self.values(TARGET[self.kind])

    def place(self, row: int) -> str:
        """How messages name an example's label."""
        return f"{self.dataset[row]['name']}, {self.column}"

    @property
    def fingerprint(self) -> str:
        """A hash of the texts, their labels and their order, whatever the files are called."""
        digest = hashlib.blake2b(self.hash.tobytes(), digest_size=16)
        digest.update(repr(self.targets).encode(errors="backslashreplace"))
        return digest.hexdigest()


# ---- reading them ----


def _read(
    kind: Kind, parts: Sequence[Part], found: Found, needs_label: bool, optional: Sequence[str]
) -> tuple[Dataset, list[str]]:
    """The rows of a split, stored, and the names of its classes, as its features have them.

    Args:
        optional: parts of a row that may be missing in some files.
    """
    target = TARGET[kind]
    column = found.columns.get(target)
    reads: list[tuple[Part, Found, Classes]] = []
    for part in parts:
        has_label = column is not None and (needs_label or part.has(column))
        part_found = found if has_label else found.without(target, "start")
        absent = [each for each in optional if each in found.columns and not part.has(found.columns[each])]
        part_found = part_found.without(*absent)
        takes_classes = has_label and column in part.names and kind in ("text", "tokens")
        reads.append((part, part_found, part.classes(str(column)) if takes_classes else None))

    def rows() -> Iterator[Row]:
        for part, part_found, classes in reads:
            yield from canonical(kind, part.rows(part_found.settings), part_found, classes, part.place)

    code = [rows_module.__file__, columns_module.__file__, readers.__file__]
    key = [(part.place, part.state, part_found, classes) for part, part_found, classes in reads]
    dataset = store(rows, FEATURES[kind], "examples", code, kind, key)
    return dataset, list(dict.fromkeys(name for *_, classes in reads for name in classes or []))


def _as_table(dataset: Dataset, kind: Kind, column: str) -> Table:
    hashes, characters = (dataset.data.column(name).to_numpy() for name in ("hash", "characters"))
    return Table(dataset, hashes, characters, kind, labels=None, column=column, notes=[])


def _load(settings: TableSettings, kind: Kind) -> tuple[dict[str, Table], list[str], str]:
    """The named splits as they are stored, their classes' names, and what the columns hold."""
    if settings.source == "pydocs":
        if kind != "text":
            raise UserError("data.source is 'pydocs', which has texts with one label: set it to files or a data set.")
        return {"train": _as_table(load_pydocs(), kind, "package")}, [], "text of a docstring, label its package"
    parts = find_parts(settings)
    first = parts["train"][0]
    if not first.names:
        raise UserError(f"{first.place} holds no rows: fill it, or leave it out.")
    found = find_columns(kind, settings, first.names, first.place)
    column = found.columns[TARGET[kind]]
    optional = ["id"] if isinstance(settings, SpanTableSettings) and settings.id_column is None else []
    tables: dict[str, Table] = {}
    names: list[str] = []
    for split, split_parts in parts.items():
        dataset, classes = _read(kind, split_parts, found, split != "test", optional)
        tables[split] = _as_table(dataset, kind, column)
        names += classes
        if column.isdecimal() and column not in first.names:
            _check_no_header(tables[split])
    return tables, list(dict.fromkeys(names)), str(found)


def _check_no_header(table: Table) -> None:
    """Raises UserError where columns are named by number, and the first row has the usual names of columns."""
    row = table.dataset[0] if len(table) else {}
    cells = [json.loads(row[part]) if part == "label" else row[part] for part in ("text", "label") if row.get(part)]
    usual = {*TEXT, *LABEL, *WEAK_LABEL, *(name for pair in PAIRS for name in pair)}
    if cells and all(isinstance(cell, str) and cell.lower() in usual for cell in cells):
        raise UserError(
            f"{row['name']} is {listed(cells)}, the names of columns, and data.text_column and data.label_column are "
            "numbers: name the columns by these names, or delete the row."
        )


# ---- labels ----


def _labelled(table: Table, split: str, problem: Problem | None) -> Table:
    """The examples that have labels; all of a test split, whose labels that mean none become null."""
    targets = table.targets
    missing = [
        is_missing(target, problem) if problem is not None and table.kind == "text" else target is None
        for target in targets
    ]
    if not any(missing):
        return table
    if split == "test":
        note = f"test: {sum(missing):,} of {len(table):,} examples have no label: they are predicted, and not scored"
        table = replace(table, notes=[*table.notes, note])
        if table.kind != "text":
            return table
        labels = [None if is_none else target for target, is_none in zip(targets, missing, strict=True)]
        data = table.dataset.data.table
        place = data.schema.get_field_index("label")
        return replace(table, dataset=Dataset(data.set_column(place, "label", pa.array(labels, pa.string()))))
    kept = table.select(~np.array(missing))
    if not len(kept):
        raise UserError(
            f"{table.place(0)}: no example of the {len(table):,} has a label: set data.{TARGET[table.kind]}_column to "
            "another column, or name labelled files."
        )
    none = "null, empty, -1 or -100" if problem != REGRESSION else "null or empty"
    note = f"{split}: {sum(missing):,} examples have no label ({none}), and are left out"
    return replace(kept, notes=[*kept.notes, note])


def _classes_of_rows(table: Table, problem: Problem) -> list[Sequence[str]]:
    """The names of the classes of each example; of a word's tags, all that its sentence has."""
    if table.kind == "tokens":
        return [tags or [] for tags in table.targets]
    targets = table.targets
    names: dict[str | None, list[str]] = {None: []}
    for row, target in enumerate(targets):
        if target not in names:
            names[target] = names_of(target, problem, table.place(row))
    return [names[target] for target in targets]


def _hold_out(table: Table, fraction: float, problem: Problem | None) -> dict[str, Table]:
    """Training and held-out examples. A class that would have held-out ones alone stays in training."""
    hashes = table.dataset.with_format("arrow", columns=["split_hash"])[:]["split_hash"].to_numpy()
    held_out = is_held_out(hashes, fraction)
    notes = []
    if held_out.any() and problem is not None and problem != REGRESSION:
        of_rows = _classes_of_rows(table, problem)
        trained = {name for row in np.flatnonzero(~held_out) for name in of_rows[row]}
        alone = [row for row in np.flatnonzero(held_out) if not trained.issuperset(of_rows[row])]
        if len(alone) == held_out.sum():
            raise UserError(
                f"All {len(alone):,} examples that would be held out are the only ones of their class "
                f"({table.place(int(alone[0]))} the first), and a class is learnt from training examples: name "
                f"data.validation_files, add examples, or set objective.problem to {REGRESSION} if labels are numbers."
            )
        if alone:
            held_out &= ~np.isin(hashes, hashes[alone])
            notes = [
                f"train: {len(alone):,} examples that would be held out are the only ones of their class, and stay"
            ]
    splits = {"train": table.select(~held_out), "validation": table.select(held_out)}
    splits["train"] = replace(splits["train"], notes=[*table.notes, *notes])
    splits["validation"] = replace(splits["validation"], notes=[])
    return splits


def _check_targets(table: Table, labels: Labels) -> None:
    """Raises UserError where an example's label is none of the training labels."""
    checked: set[object] = set()
    for row, target in enumerate(table.targets):
        if target is None:
            continue
        if table.kind == "tokens":
            for number, tag in enumerate(target, 1):
                if tag not in checked:
                    labels.index(tag, f"{table.place(row)}, word {number}")
                    checked.add(tag)
        elif target not in checked:
            labels.target(target, table.place(row))
            checked.add(target)


def _labels_of(train: Table, problem: Problem, known: Sequence[str] | None, classes: list[str]) -> Labels:
    """The labels of the training examples, checked one by one, so that a mistake is told with its row."""
    if train.kind == "tokens":
        tags = {json.dumps(tag, ensure_ascii=False) for row in train.targets for tag in row}
        # A tag may be too rare to occur in training: the head knows it, and it is no mistake.
        tags |= {json.dumps(name, ensure_ascii=False) for name in classes}
        return Labels.of(tags, problem, known, classes, f"the tags of {train.column!r}")
    checked: set[str] = set()
    for row, target in enumerate(train.targets):
        if target not in checked:
            if problem == REGRESSION:
                number_of(target, train.place(row))
            else:
                names_of(target, problem, train.place(row))
            checked.add(target)
    labels = Labels.of(checked, problem, known, classes, f"the training labels in {train.column!r}")
    if problem == MULTI and len(labels.names) > 1:
        fewest = min(map(len, _classes_of_rows(train, MULTI)))
        if fewest == len(labels.names):
            raise UserError(
                f"Every training label in {train.column!r} lists all classes ({listed(labels.names)}): list those that "
                "hold, and no zero or one for each class."
            )
    return labels


# ---- a smaller choice ----


def draw(hashes: np.ndarray, number: int, classes: Sequence[str] | None = None) -> np.ndarray:
    """The numbers of some rows, in order; of a smaller `number`, a part of those of a larger one.

    Args:
        hashes: of each row's content, (N,).
        classes: of each row, to take as many of each; a class that has no more leaves its place to the others.
    """
    order = np.argsort(hashes, kind="stable")
    if classes is None:
        return np.sort(order[:number])
    seen: Counter[str] = Counter()
    ranks = np.empty(len(order), dtype=np.int64)  # how many of its class come before a row
    for row in order:
        ranks[row] = seen[classes[row]]
        seen[classes[row]] += 1
    numbers = {name: at for at, name in enumerate(sorted(seen))}
    by_class = np.array([numbers[name] for name in classes])
    return np.sort(np.lexsort((by_class, ranks))[:number])


def _drawn(train: Table, number: int, problem: Problem | None) -> Table:
    if number > len(train):
        raise UserError(
            f"data.examples is {number}, but there are {len(train)} training examples: set it to at most that."
        )
    classes: list[str] | None = None
    if train.kind == "text" and problem == SINGLE:
        classes = [names[0] for names in _classes_of_rows(train, SINGLE)]
        if number < len(set(classes)):
            raise UserError(
                f"data.examples is {number}, but there are {len(set(classes))} classes: set it to one of each at least."
            )
    drawn = train.take(draw(train.hash, number, classes))
    if train.kind == "text" and problem == MULTI:
        assert train.labels is not None
        used = {name for names in _classes_of_rows(drawn, MULTI) for name in names}
        if unused := [name for name in train.labels.names if name not in used]:
            raise UserError(
                f"data.examples is {number}, and none of those drawn has the class {unused[0]!r}: set it to more."
            )
    if problem == REGRESSION and len(set(drawn.targets)) < 2:
        raise UserError(f"data.examples is {number}, and all that are drawn have one label: set it to more.")
    return replace(drawn, notes=[*drawn.notes, f"train: {number:,} of {len(train):,} examples are used"])


# ---- the whole ----


def load_tables(
    settings: TableSettings, kind: Kind, problem: Problem | None = None, known: Iterable[str] | None = None
) -> dict[str, Table]:
    """Load a run's labelled examples; files are read again only if they changed.

    Args:
        problem: what labels of texts pose; None to guess it from them.
        known: the names of a checkpoint's classes, whose order is kept if the data's names are the same.

    Returns:
        Splits "train", "validation", and "test" if it is named. Training and held-out examples without labels are left
        out, those of a test split have the label None.

    Raises:
        UserError: a mistake in the settings or the data, with the file and the row.
    """
    tables, classes, columns = _load(settings, kind)
    train = tables["train"]
    if kind == "text":
        problem = problem or guess_problem(train.targets, train.place)
    elif kind == "tokens":
        problem = SINGLE
    tables = {name: _labelled(table, name, problem) for name, table in tables.items()}
    if "validation" not in tables:
        tables |= _hold_out(tables["train"], settings.validation_fraction, problem)
    require_held_out(tables, "examples", f"set data.validation_fraction above {settings.validation_fraction}")
    train = tables["train"]
    if kind in ("text", "tokens"):
        assert problem is not None
        labels = _labels_of(train, problem, None if known is None else list(known), classes)
        unused = [name for name in classes if name not in labels.names]
        if problem != REGRESSION and unused and kind == "text":
            others = f" (nor of {len(unused) - 1} others)" if len(unused) > 1 else ""
            raise UserError(
                f"{train.column!r} has the class {unused[0]!r} among its names, but no training example of it{others}: "
                "add some, or take the name out of the column's features."
            )
        for name in ("validation", "test"):
            if name in tables:
                _check_targets(tables[name], labels)
        tables = {name: replace(table, labels=labels) for name, table in tables.items()}
        train = tables["train"]
    leaked = int(np.isin(train.hash, tables["validation"].hash).sum())
    notes = [f"columns: {columns}", *train.notes]
    if leaked:
        notes.append(f"train: {leaked:,} examples have a text that is also held out")
    train = replace(train, notes=notes)
    tables["train"] = _drawn(train, settings.examples, problem) if settings.examples else train
    order = [name for name in ("train", "validation", "test") if name in tables]
    return {name: tables[name] for name in order}
