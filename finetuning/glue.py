"""GLUE (Wang 2018): fine-tune on its tasks over seeds, score by its own metrics, and write what its site takes.

    python -m finetuning.glue --model runs/bert-mini-novels/model --tasks sst2,cola --data DIR --seeds 3 --start both
    python -m finetuning.glue --model runs/bert-base/model --tasks all --data nyu-mll/glue --epochs 3

DIR has a folder for each task, DIR/sst2 or DIR/glue_sst2, with a file for each split, as train.parquet,
validation.parquet and test.parquet; .jsonl, .csv and .tsv are read as well, and a split may be in parts, as the Hub has
them. A test split is needed for a submission alone. Other settings are those of finetune.py, for all tasks alike.

Each run is an ordinary one in RUNS/NAME/TASK: the same command goes on where it was killed. RUNS/NAME gets results.md
and results.json, and submission/ the predictions of the best seed.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from finetuning.cli import parse_finetune
from finetuning.data.labels import class_name
from finetuning.data.tables import Table
from finetuning.glue_data import Data, find_data, table_of, task_arguments
from finetuning.glue_tasks import GLUE, GlueTask
from finetuning.metrics.base import Metric
from finetuning.metrics.classes import Accuracy, Matthews, PositiveF1
from finetuning.metrics.regression import Pearson, Spearman
from finetuning.prediction.tables import predict_table
from finetuning.run import variant
from finetuning.series import Member, is_main, train_members
from finetuning.settings import FinetuneSettings
from finetuning.summary import compared, mean_and_spread
from finetuning.tasks import make_task
from pretraining import files
from pretraining.errors import UserError, one_sentence_errors

PROGRAM = "finetuning.glue"
SCORERS: dict[str, type[Metric]] = {
    "accuracy": Accuracy,
    "f1": PositiveF1,
    "matthews": Matthews,
    "pearson": Pearson,
    "spearman": Spearman,
}


# ---- one split ----


def class_number(task: GlueTask, name: str, place: str) -> int:
    """The official number of a class, which a file names, or numbers.

    Raises:
        UserError: it is none of the task's.
    """
    if name in task.classes:
        return task.classes.index(name)
    if name.isdecimal() and int(name) < len(task.classes):
        return int(name)
    raise UserError(f"{place} has the class {name!r}, and the task's are {', '.join(task.classes)}, or their numbers.")


def predicted_values(task: GlueTask, settings: FinetuneSettings, table: Table, split: str) -> list[float]:
    """What the model of a finished run predicts: official class numbers, or STS-B's numbers."""
    model, path = settings.folder / "model", settings.folder / f"predictions-{split}.jsonl"
    predict_table(model, table, path, split)
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if not task.classes:
        return [row["value"] for row in rows]
    return [class_number(task, row["label"], str(model)) for row in rows]


def true_values(task: GlueTask, table: Table) -> list[float]:
    """The labels of a table, likewise.

    Raises:
        UserError: one is missing.
    """
    found = []
    for row, label in enumerate(table.targets):
        if label is None:
            raise UserError(f"{table.place(row)}: there is no label, and the split is scored: add it.")
        value = json.loads(label)
        found.append(class_number(task, class_name(value), table.place(row)) if task.classes else float(value))
    return found


def score_split(task: GlueTask, predicted: list[float], true: list[float]) -> dict[str, float]:
    """The official metrics of one split, in hundredths as GLUE shows them."""
    return {name: 100 * SCORERS[name]().score(predicted, true) for name in task.metrics}


# ---- one task ----


class TaskResult(NamedTuple):
    """What the runs of a task came to."""

    scores: dict[str, dict[str, list[float]]]
    """By start and metric the values, one a seed."""
    written: list[str]
    """The files of the submission."""
    best: str
    """The folder of the run that they are of."""


def split_name(task: GlueTask, metric: str, split: str) -> str:
    """A metric's name in the table; MNLI has two of a kind."""
    return metric if len(task.validation) == 1 else f"{metric}, {split.removeprefix('validation_')}"


def choose_best(runs: list[FinetuneSettings], means: dict[str, float]) -> FinetuneSettings:
    """The run with the highest mean; one that gave no number is the last choice."""
    return max(runs, key=lambda run: -math.inf if math.isnan(means[run.name]) else means[run.name])


def run_task(
    name: str, data: Data, settings: FinetuneSettings, options: argparse.Namespace, folder: Path
) -> TaskResult | None:
    """Trains every seed of every start, scores them, and predicts the test splits; None in all but one process."""
    task = GLUE[name]
    starts = ["pretrained", "scratch"] if settings.start == "both" else [settings.start]
    seeds = range(options.seed, options.seed + options.seeds)
    runs = [variant(settings, start, seed, str(folder / name), f"{start}-{seed}") for seed in seeds for start in starts]
    train_members([Member(f"{name}, {run.start}", None, run, make_task) for run in runs])
    if not is_main():
        return None
    scores: dict[str, dict[str, list[float]]] = {start: {} for start in starts}
    means: dict[str, float] = {}  # of each run, by which the best one is chosen
    for split in task.validation:
        if split not in data.splits:
            print(f"{name}: there is no split {split}, and it is not scored", flush=True)
            continue
        table = table_of(task, settings, data.splits[split])
        true = true_values(task, table)
        for run in runs:
            found = score_split(task, predicted_values(task, run, table, split), true)
            for metric, value in found.items():
                scores[run.start].setdefault(split_name(task, metric, split), []).append(value)
            means[run.name] = means.get(run.name, 0.0) + mean(found.values())
    best = choose_best([run for run in runs if run.start == starts[0]], means)
    written = []
    for split, file in task.submissions.items():
        if split not in data.splits:
            print(f"{name}: there is no split {split}, and {file} is not written", flush=True)
            continue
        path = folder / "submission" / file
        path.parent.mkdir(exist_ok=True)
        predicted = predicted_values(task, best, table_of(task, settings, data.splits[split]), split)
        files.write_text(path, task.submission(predicted))
        written.append(str(path))
    return TaskResult(scores, written, str(best.folder))


# ---- all tasks ----


def averages(results: dict[str, TaskResult]) -> dict[str, list[float]]:
    """GLUE's score of each start, one a seed: the mean over the nine tasks, each the mean of its metrics.

    Empty unless all nine are there, whole.
    """
    if results.keys() != GLUE.keys():
        return {}
    for name, task in GLUE.items():
        if any(len(found) < len(task.validation) * len(task.metrics) for found in results[name].scores.values()):
            return {}  # a part of MNLI is not there
    found: dict[str, list[float]] = {}
    for start in next(iter(results.values())).scores:
        by_task = [[mean(seed) for seed in zip(*each.scores[start].values(), strict=True)] for each in results.values()]
        found[start] = [mean(seed) for seed in zip(*by_task, strict=True)]
    return found


def to_rows(results: dict[str, TaskResult]) -> list[str]:
    """The Markdown table: mean and standard deviation over seeds, in hundredths."""
    starts = list(next(iter(results.values())).scores)
    lines: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name, each in results.items():
        for metric in each.scores[starts[0]]:
            lines[name, metric] = {start: each.scores[start][metric] for start in starts}
    if average := averages(results):
        lines["GLUE", "average"] = average
    return compared(["task", "metric"], lines.items(), starts, partial(mean_and_spread, digits=2))


def write_report(results: dict[str, TaskResult], seeds: int, folder: Path) -> None:
    count = f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "one seed: nothing is known of the spread"
    lines = [f"held out, in hundredths; {count}", "", *to_rows(results)]
    found = {
        "tasks": {name: each._asdict() for name, each in results.items()},
        "average": averages(results),
        "seeds": seeds,
    }
    files.write_text(folder / "results.md", "\n".join(lines) + "\n")
    files.write_text(folder / "results.json", files.to_json(found, indent=1))
    print("", *lines, "", f"  written: {folder}/results.md, results.json", sep="\n")
    for name, each in results.items():
        for path in each.written:
            print(f"  {path}: {name}'s test split, by {each.best}", flush=True)


def task_names(text: str) -> list[str]:
    """The tasks of `--tasks`."""
    names = list(GLUE) if text == "all" else text.split(",")
    for name in names:
        if name not in GLUE:
            raise argparse.ArgumentTypeError(f"{name!r} is none of GLUE's tasks, {','.join(GLUE)}; or all")
    return list(dict.fromkeys(names))


def read_options(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this command, and the settings of its runs."""
    parser = argparse.ArgumentParser(
        f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="The checkpoint, a folder or a Hub name; or scratch.")
    parser.add_argument("--data", default="nyu-mll/glue", help="A folder of tasks, or the Hub's data set.")
    parser.add_argument("--tasks", type=task_names, default="all", help=f"all, or some of {','.join(GLUE)}.")
    parser.add_argument("--seed", type=int, default=0, help="The first seed.")
    parser.add_argument("--seeds", type=int, default=1, help="Runs of each task, with seeds one after another.")
    parser.add_argument(
        "--start", choices=["pretrained", "scratch", "both"], help="From which weights, as for finetune.py."
    )
    parser.add_argument("--epochs", type=float, help="Passes over each task's training data; default: 3.")
    parser.add_argument("--name", default="glue", help="The folder in RUNS.")
    parser.add_argument("--runs", default="runs", help="The folder of all runs.")
    options, rest = parser.parse_known_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}: at least 1.")
    own = ["--model", options.model]
    own += [] if options.start is None else [f"--start={options.start}"]
    own += [] if options.epochs is None else [f"--train.epochs={options.epochs}"]
    return options, [*rest, *own]


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    options, rest = read_options(arguments)
    with one_sentence_errors(PROGRAM, "--model"):
        # Whatever is wrong with any task is told before the first one trains.
        data = {name: find_data(options.data, name) for name in options.tasks}
        tasks = {name: parse_finetune([*task_arguments(name, data[name]), *rest]) for name in options.tasks}
        tasks[options.tasks[0]].hub.check_runs(len(tasks) * options.seeds)
        folder = Path(options.runs) / options.name
        results: dict[str, TaskResult] = {}
        for name, settings in tasks.items():
            result = run_task(name, data[name], settings, options, folder)
            if result is not None:
                results[name] = result
        if results:
            write_report(results, options.seeds, folder)


if __name__ == "__main__":
    main()
