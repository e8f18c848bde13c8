"""Predictions of a table that fine-tuning has read already: a test split, whose columns are known."""

from collections.abc import Iterator
from pathlib import Path

from finetuning.data.columns import Kind
from finetuning.data.tables import Table
from finetuning.prediction.lines import Raw, Source
from finetuning.prediction.output import progress_of, unfinished_of
from finetuning.prediction.run import predict_source
from finetuning.prediction.settings import PredictSettings

# The parts of an example that are read, and the setting that names the column of each.
PARTS: dict[Kind, dict[str, str]] = {
    "text": {"text": "text_column", "pair": "pair_column"},
    "tokens": {"words": "tokens_column"},
    "spans": {"question": "question_column", "context": "context_column"},
    "choice": {"context": "context_column", "question": "question_column", "choices": "choice_columns"},
}
NAME = "name"  # the column that says where an example was read


def parts_of(table: Table) -> list[str]:
    """The parts that its examples have; a part that is null everywhere is none."""
    return [part for part in PARTS[table.kind] if any(value is not None for value in table.values(part))]


def source_of(table: Table, name: str) -> Source:
    def raw(columns: list[str]) -> Iterator[tuple[int, Raw]]:
        return enumerate(table.dataset.select_columns(columns), 1)

    columns = [*parts_of(table), NAME]
    return Source(name, columns, raw, lambda row: row, table.fingerprint, Path(), len(table))


def predict_table(model: Path, table: Table, out: Path, name: str) -> None:
    """Writes a prediction of each example of a table, in its order, with the place where it was read.

    Args:
        model: the folder of a model.
        out: .jsonl, .csv or .parquet; a file that is there already is replaced.
        name: of the table, for messages.
    """
    columns = {PARTS[table.kind][part]: part for part in parts_of(table)}
    settings = PredictSettings(
        keep_columns=[NAME],
        **{setting: [part] if setting == "choice_columns" else part for setting, part in columns.items()},  # type: ignore[arg-type]
    )
    for path in (out, progress_of(out), unfinished_of(out)):  # those of a killed run may be of another model
        path.unlink(missing_ok=True)
    predict_source(model, source_of(table, name), out, settings)
