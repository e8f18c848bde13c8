"""The order of a prediction, read aloud: model, file, columns, what was begun before, then block by block."""

import dataclasses
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from finetuning.prediction.base import Predictor
from finetuning.prediction.compute import class_of, open_model
from finetuning.prediction.images import ImagePredictor
from finetuning.prediction.lines import Bad, Line, Source, check_kept, open_source
from finetuning.prediction.output import Output, Row, check_out, to_json
from finetuning.prediction.settings import NO_MATTER, PredictSettings
from finetuning.prediction.spans import AnswerPredictor, TokenPredictor
from finetuning.prediction.texts import ChoicePredictor, ClassPredictor
from finetuning.prediction.translations import TranslationPredictor
from pretraining import files
from pretraining.autotune import Candidate
from pretraining.errors import UserError, one_line

PREDICTORS: dict[str, type[Predictor]] = {
    "KeelBertForSequenceClassification": ClassPredictor,
    "KeelBertForTokenClassification": TokenPredictor,
    "KeelBertForQuestionAnswering": AnswerPredictor,
    "KeelBertForMultipleChoice": ChoicePredictor,
    "KeelSeq2SeqForConditionalGeneration": TranslationPredictor,
    "KeelViTForImageClassification": ImagePredictor,
}
LIBRARIES = ("torch", "transformers", "tokenizers")  # whose versions decide the last digits


def open_predictor(folder: Path, settings: PredictSettings) -> Predictor:
    """The predictor of a model, by the head that it has.

    Raises:
        UserError: there is no model, it has no head that predicts, or its weights are not whole.
    """
    ours = class_of(folder)
    if ours.__name__ not in PREDICTORS:
        raise UserError(
            f"{folder} is a {ours.__name__}, which has no head that predicts: fine-tune it by finetune.py, and give "
            "the model/ of that run."
        )
    return PREDICTORS[ours.__name__](folder, open_model(folder, ours), settings)


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def made_of(folder: Path, source: Source, predictor: Predictor) -> dict[str, Any]:
    """All that decides what is written, by the words that a message has for it."""
    settings = {name: value for name, value in dataclasses.asdict(predictor.settings).items() if name not in NO_MATTER}
    return {
        "model": digest(files.hashes(folder)),
        "input": digest(source.state),
        "setting": settings | predictor.resolved,
        "library": {name: version(name) for name in LIBRARIES},
    }


def schema_of(predictor: Predictor, kept: list[str]) -> pa.Schema:
    """The columns of a line: its number in the file, what is kept of it, the prediction, and what is wrong with it."""
    columns = {"line": pa.int64(), **dict.fromkeys(kept, pa.string()), **predictor.writes, "error": pa.string()}
    return pa.schema(list(columns.items()))


class Run:
    """Predictions of one file."""

    def __init__(self, predictor: Predictor, source: Source, output: Output):
        self.predictor, self.source, self.output = predictor, source, output
        self.settings = predictor.settings
        computer = predictor.computer
        # As before a kill, which may have been on another machine: the last digits depend on it.
        computer.compute_as(Candidate(**output.begun_with(computer.choose()._asdict())))
        print(f"computing: {computer.candidate}", flush=True)

    def kept(self, line: Line) -> Row:
        """What is written again of a line; raises Bad where that is nothing that JSON can say."""
        try:
            kept: Row = files.without_nan({name: line.row.get(name) for name in self.settings.keep_columns})
            to_json(kept)
        except (TypeError, ValueError, RecursionError) as error:
            raise Bad(f"a column of --keep_columns cannot be written ({one_line(error)})") from error
        return kept

    def examples(self, block: list[Line]) -> list[tuple[Any, Row]]:
        """The example of each line, or the Bad that tells why it has none; and what is kept of the line.

        Raises:
            UserError: a line is bad, and bad lines are not passed over.
        """
        found: list[tuple[Any, Row]] = []
        for line in block:
            kept: Row = {}
            try:
                kept = self.kept(line)
                if line.error:
                    raise Bad(line.error)
                found.append((self.predictor.read(line), kept))
            except Bad as error:
                if not self.settings.skip_bad:
                    reason = str(error).rstrip(".")
                    raise UserError(
                        f"{self.source.place(line.number)}: {reason}; the same command with --skip_bad goes on "
                        "behind it."
                    ) from error
                found.append((error, kept))
        return found

    def rows(self, block: list[Line]) -> list[Row]:
        """What is written of a block's lines."""
        examples = self.examples(block)
        good = [example for example, _ in examples if not isinstance(example, Bad)]
        predictions = iter(self.predictor.predict(good)) if good else iter([])
        rows = []
        for line, (example, kept) in zip(block, examples, strict=True):
            found = {"error": str(example)} if isinstance(example, Bad) else next(predictions)
            rows.append({"line": line.number} | kept | found)
        return rows

    def predict(self, columns: list[str]) -> None:
        """Block by block, behind what is done already."""
        output, source = self.output, self.source
        before = output.lines
        blocks = source.blocks(columns, before, self.predictor.block)
        with (
            files.writing_to(output.path.parent, "--out"),
            tqdm(total=source.count, initial=before, unit=" lines", desc="predicting", disable=None) as progress,
        ):
            for block in blocks:
                rows = self.rows(block)
                output.write(rows, sum("error" in row for row in rows))
                progress.update(len(rows))


def predict(model: str, file: str, out: str, settings: PredictSettings) -> None:
    """Writes a prediction of each line of a file; goes on where a killed run has left off.

    Args:
        model: the folder of a model, ours or native.
        file: .jsonl, .csv, .tsv, .txt (each also as .gz), .parquet, or a folder of images.
        out: .jsonl, .csv or .parquet.

    Raises:
        UserError: something of these is wrong, or a line is bad and bad lines are not passed over.
    """
    path = Path(out).expanduser()
    check_out(path)
    predict_source(Path(model).expanduser(), open_source(file, settings.asked), path, settings)


def predict_source(folder: Path, source: Source, path: Path, settings: PredictSettings) -> None:
    """The same of lines that are opened already."""
    predictor = open_predictor(folder, settings)
    if not source.columns:  # of a .jsonl those of the first line that is whole
        first = next(iter(source.blocks([], 0, 1)), [Line(1, {}, "the file holds no lines")])[0]
        raise UserError(f"{source.place(first.number)}: {first.error}, and no other line is whole: mend the file.")
    columns = predictor.find_columns(source)
    schema = schema_of(predictor, settings.keep_columns)
    check_kept(source, settings.keep_columns, ["line", *predictor.writes, "error"])
    output = Output(path, schema, made_of(folder, source, predictor))
    start = perf_counter()
    try:
        before = output.lines
        behind = f", going on behind {before:,} lines" if before else ""
        print(f"{type(predictor.model).__name__} of {folder}", *predictor.describe(), sep="\n")
        print(f"writing {path}{behind}", flush=True)
        run = Run(predictor, source, output)
        run.predict(sorted({*columns, *settings.keep_columns}, key=source.columns.index))
        if not output.lines:
            raise UserError(f"{source.name} holds no lines: fill it.")
        lines, bad = output.lines, output.bad
        output.finish()
    finally:
        output.close()
    seconds = perf_counter() - start
    rate = f"{(lines - before) / seconds:,.0f} lines/s, {seconds:,.1f} s"
    print(f"{path}: {lines:,} lines, {bad:,} of them bad; {rate}")
    for note, count in predictor.notes.items():
        print(f"  {count:,} {note}")
