"""Fine-tuning over seeds, from a checkpoint and from fresh weights: the runs of one command, and what they show."""

import dataclasses
import json
from pathlib import Path

import yaml
from accelerate import PartialState

from finetuning.final_test import score_test
from finetuning.prediction.tables import predict_table
from finetuning.settings import FinetuneSettings
from finetuning.summary import difference, mean_and_spread, read_metrics, to_table
from finetuning.tasks import TASKS
from finetuning.tasks.base import WindowExamples
from pretraining import checkpoint, files
from pretraining.autotune import AUTOTUNED
from pretraining.errors import UserError
from pretraining.loop import train
from pretraining.objectives import make_objective
from pretraining.objectives.base import Objective

Scores = dict[str, list[float]]
"""Of each metric the values, one a seed."""


def variant(settings: FinetuneSettings, start: str, seed: int, runs: str, name: str) -> FinetuneSettings:
    """The settings of one run among the command's."""
    changes = {"start": start, "seed": seed, "seeds": 1, "runs": runs, "name": name}
    init_from = settings.init_from if start == "pretrained" else None
    trained_positions = settings.trained_positions if start == "pretrained" else 0
    resolved = yaml.safe_load(settings.resolved) | changes | {"init_from": init_from}
    return dataclasses.replace(
        settings,
        **changes,  # type: ignore[arg-type]
        init_from=init_from,
        trained_positions=trained_positions,
        resolved=yaml.safe_dump(resolved, sort_keys=False),
    )


def variants(settings: FinetuneSettings) -> list[FinetuneSettings]:
    """The runs of a command; several of them are folders of the command's own."""
    starts = ["pretrained", "scratch"] if settings.start == "both" else [settings.start]
    if len(starts) * settings.seeds == 1:
        return [variant(settings, starts[0], settings.seed, settings.runs, settings.name)]
    seeds = range(settings.seed, settings.seed + settings.seeds)
    folder = str(settings.folder)
    return [variant(settings, start, seed, folder, f"{start}-{seed}") for seed in seeds for start in starts]


def as_autotuned(settings: FinetuneSettings, folder: Path) -> FinetuneSettings:
    """The settings with what another run of the command chose at its start: all compute in the same way."""
    found = checkpoint.find(folder)
    if not found:
        return settings
    autotuned = checkpoint.read_state(found[-1]).autotuned
    chosen = {name: autotuned[name] for name in AUTOTUNED if getattr(settings.train, name) == "auto"}
    return settings.changed({f"train.{name}": value for name, value in chosen.items()})


def read_scores(runs: list[FinetuneSettings]) -> dict[str, Scores]:
    """Of each start the scores of its runs, from their results.json."""
    found: dict[str, Scores] = {}
    for run in runs:
        scores = found.setdefault(run.start, {})
        for name, value in read_metrics(run.folder).items():
            scores.setdefault(name, []).append(value)
    return found


def table(scores: dict[str, Scores]) -> list[str]:
    """The scores as a Markdown table: mean and standard deviation over seeds, and what pretraining is worth."""
    starts, metrics = list(scores), list(next(iter(scores.values())))
    both = len(starts) == 2
    rows = []
    for name in metrics:
        values = [scores[start][name] for start in starts]
        rows.append([name, *map(mean_and_spread, values), *(difference(*values) if both else [])])
    return to_table(["metric", *starts, *(["difference", "standard errors"] if both else [])], rows)


def tell_test(run: FinetuneSettings, objective: Objective) -> None:
    """Scores the test split, if there is one, and adds its metrics to results.json; predicts one without labels."""
    examples = objective.examples
    if not isinstance(examples, WindowExamples) or examples.test is None:
        return
    if not examples.scores_test:
        predict_table(run.folder / "model", examples.test, run.folder / "predictions.jsonl", "the test split")
        return
    found = score_test(run, objective)
    path = run.folder / "results.json"
    files.write_text(path, files.to_json(json.loads(path.read_text()) | found, indent=1))
    print(f"\ntest split, {len(examples.test):,} examples:")
    for name, value in found.items():
        print(f"  {name.removeprefix('test_'):18} {value:.4f}")


def finetune(settings: FinetuneSettings) -> None:
    """Trains every run of the command, each resumable by itself, and tells what they show together.

    Raises:
        UserError: as `pretraining.loop.train`.
    """
    runs = variants(settings)
    if len(runs) > 1 and settings.resume not in ("auto", "none"):
        raise UserError(
            f"--resume is {settings.resume}, which is of one run, and this command has {len(runs)}: leave it out, each "
            "goes on from its own newest checkpoint."
        )
    if len(runs) > 1 and (settings.folder / "checkpoints").exists():
        raise UserError(
            f"{settings.folder} is the folder of a single run, and this command has {len(runs)}: give another --name."
        )
    for number, run in enumerate(runs):
        if number:
            run = as_autotuned(run, runs[0].folder)
        if len(runs) > 1 and PartialState().is_main_process:
            print(f"\n== {run.name}: run {number + 1} of {len(runs)} ==", flush=True)
        objective = make_objective(run, TASKS)
        train(run, objective)
        if PartialState().is_main_process:
            tell_test(run, objective)
    if len(runs) == 1 or not PartialState().is_main_process:
        return
    scores = read_scores(runs)
    lines = table(scores)
    seeds = f"{settings.seeds} seeds" if settings.seeds > 1 else "one seed, so that nothing is known of its spread"
    files.write_text(settings.folder / "results.md", "\n".join(lines) + "\n")
    files.write_text(settings.folder / "results.json", files.to_json(scores, indent=1))
    print(
        f"\n{settings.name}: {seeds}; mean ± standard deviation",
        *lines,
        f"  written: {settings.folder}/results.md",
        sep="\n",
    )
