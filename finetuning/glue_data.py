"""Where the data of GLUE's tasks is: a folder of files, or a data set on the Hub."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from finetuning.data.labels import REGRESSION, SINGLE, Problem
from finetuning.data.parts import READERS
from finetuning.data.tables import Table, load_tables
from finetuning.glue_tasks import GLUE, GlueTask
from pretraining.errors import UserError
from pretraining.settings import Settings

DIAGNOSTIC = "ax"


class Data(NamedTuple):
    """Where one task's splits are."""

    train: list[str]
    """The settings that name the training split and the first of the held-out ones."""
    splits: dict[str, list[str]]
    """The settings that name each other split as one whose labels may be missing; those that are there."""


def split_files(folder: Path, split: str) -> list[str]:
    """The files of a split: one of its name, or its parts as the Hub has them, train-00000-of-00001.parquet."""
    for extension in READERS:
        if (folder / f"{split}{extension}").exists():
            return [str(folder / f"{split}{extension}")]
    return sorted(map(str, folder.glob(f"{split}-[0-9]*-of-[0-9]*.parquet")))


def listed(option: str, paths: list[str]) -> str:
    return f"--data.{option}={json.dumps(paths)}"


def find_files(data: Path, name: str) -> Data:
    """A task's files below a folder.

    Raises:
        UserError: the task, its training data or its held-out data is not there.
    """
    task = GLUE[name]
    folder = next((each for each in (data / name, data / f"glue_{name}") if each.is_dir()), None)
    if folder is None:
        raise UserError(f"--data: {data} has no folder {name} or glue_{name}: add it, or leave {name} out of --tasks.")
    found = {split: split_files(folder, split) for split in ("train", *task.validation, *task.submissions)}
    if DIAGNOSTIC in task.submissions:
        found[DIAGNOSTIC] = split_files(data / DIAGNOSTIC, "test")
    first = task.validation[0]
    found[first] = found[first] or split_files(folder, "validation")  # a part of MNLI has one of its two
    for split in ("train", first):
        if not found[split]:
            raise UserError(f"--data: {folder} has no {split}.parquet, nor such a .jsonl, .csv or .tsv: add it.")
    train = ["--data.source=files", listed("files", found["train"]), listed("validation_files", found[first])]
    return Data(train, {split: [listed("test_files", paths)] for split, paths in found.items() if paths})


def find_hub(data: str, name: str) -> Data:
    """The same of a data set on the Hub, each task one of its subsets."""
    task = GLUE[name]
    train = [f"--data.source={data}", f"--data.subset={name}", f"--data.validation_split={task.validation[0]}"]
    # The diagnostic set is a data set of its own there, and a run has one: its submission needs files.
    splits = [split for split in (*task.validation, *task.submissions) if split != DIAGNOSTIC]
    return Data(train, {split: [f"--data.test_split={split}"] for split in splits})


def find_data(data: str, name: str) -> Data:
    if Path(data).is_dir():
        return find_files(Path(data), name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", data):  # as the Hub names data sets
        raise UserError(f"--data: there is no folder {data}: name one with a folder for each task, or nyu-mll/glue.")
    return find_hub(data, name)


def problem_of(task: GlueTask) -> Problem:
    return SINGLE if task.classes else REGRESSION


def task_arguments(name: str, data: Data) -> list[str]:
    """The settings of finetune.py that a task implies."""
    task = GLUE[name]
    columns = dict(zip(("text_column", "pair_column"), task.columns, strict=False))
    return [
        "--objective.name=sequence_classification",
        f"--objective.problem={problem_of(task)}",
        f"--objective.metric={task.metrics[0]}",
        "--data.label_column=label",
        *(f"--data.{option}={column}" for option, column in columns.items()),
        *data.train,
    ]


def table_of(task: GlueTask, settings: Settings, arguments: list[str]) -> Table:
    """The rows of a split that these settings name, labels or none."""
    option, _, value = arguments[0].removeprefix("--").partition("=")
    value = json.loads(value) if value.startswith("[") else value
    return load_tables(settings.changed({option: value}).data, "text", problem_of(task))["test"]
