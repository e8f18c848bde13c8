"""Fine-tuning over seeds, from a checkpoint and from fresh weights: the runs of one command, and what they show."""

import dataclasses
import json

from accelerate import Accelerator, PartialState

from finetuning.prediction.tables import predict_table
from finetuning.settings import FinetuneSettings
from finetuning.summary import compared, read_metrics
from finetuning.tasks import make_task
from finetuning.tasks.base import WindowExamples
from pretraining import files
from pretraining.autotune import as_autotuned
from pretraining.errors import UserError
from pretraining.evaluate import evaluate, make_evaluation_plan
from pretraining.export import open_exported
from pretraining.loop import train
from pretraining.objectives.base import Objective

Scores = dict[str, list[float]]
"""Of each metric the values, one a seed."""


def variant(settings: FinetuneSettings, start: str, seed: int, runs: str, name: str) -> FinetuneSettings:
    """The settings of one run among the command's."""
    run = settings.changed({"start": start, "seed": seed, "seeds": 1, "runs": runs, "name": name})
    return run if start == "pretrained" else dataclasses.replace(run.changed({"init_from": None}), trained_positions=0)


def variants(settings: FinetuneSettings) -> list[FinetuneSettings]:
    """The runs of a command; several of them are folders of the command's own."""
    starts = ["pretrained", "scratch"] if settings.start == "both" else [settings.start]
    if len(starts) * settings.seeds == 1:
        return [variant(settings, starts[0], settings.seed, settings.runs, settings.name)]
    seeds = range(settings.seed, settings.seed + settings.seeds)
    folder = str(settings.folder)
    return [variant(settings, start, seed, folder, f"{start}-{seed}") for seed in seeds for start in starts]


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
    metrics = next(iter(scores.values()))
    lines = (([name], {start: scores[start][name] for start in scores}) for name in metrics)
    return compared(["metric"], lines, list(scores))


def score_test(settings: FinetuneSettings, objective: Objective) -> dict[str, float]:
    """The metrics of the test split, by which nothing was chosen: by the exported model, on this process alone.

    Args:
        settings: of a run that has ended.
        objective: the run's, its data prepared, with a labelled test split.
    """
    examples = objective.examples.of_test()
    tested = Objective.of(examples, type(objective.head), type(objective.scoring))
    settings = settings.changed({"evaluation.examples": 0, "train.micro_batch": settings.train.rows_per_step})
    model = open_exported(settings.folder / "model", objective.head.model_class)
    plan = make_evaluation_plan(examples, settings)
    found = evaluate(model, tested, plan, settings.train, Accelerator())
    return {f"test_{name}": value for name, value in found.items()}


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
            run = as_autotuned(run, [runs[0].folder])  # all compute in the same way
        if len(runs) > 1 and PartialState().is_main_process:
            print(f"\n== {run.name}: run {number + 1} of {len(runs)} ==", flush=True)
        objective = make_task(run)
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
