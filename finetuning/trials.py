"""The trials of a search: who trains which, under which settings, and what Optuna is told of them.

What is known of the trials stands in the search's folder, in Optuna's journal, a file to which every worker appends. A
worker holds the lock of its trial while it trains it, and the operating system frees that when the worker ends, in
whichever way. So a trial that is running in the journal and whose lock is free was given up, and the next worker takes
it: its parameters are in the journal, and its run goes on from its newest checkpoint.
"""

import dataclasses
import gc
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from filelock import FileLock, Timeout
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from finetuning.search_report import Outcome, draw_search, write_report
from finetuning.settings import FinetuneSettings
from finetuning.space import Space, check_space, options, parse
from finetuning.tasks import TASKS
from finetuning.tasks.base import WindowExamples
from pretraining import checkpoint, files
from pretraining.autotune import AUTOTUNED
from pretraining.errors import UserError, one_line
from pretraining.log import flat
from pretraining.loop import train
from pretraining.objectives import make_objective
from pretraining.objectives.base import Objective
from pretraining.settings import Settings

STUDY = "search"  # its name in the journal, which has no other one
ALIKE = 3  # So many trials that fail with one sentence, and none that succeeds, end the search.
# All trials compute in one way, in one precision above all. How many rows at a time depends on what is searched.
COMPUTED = tuple(name for name in AUTOTUNED if name != "micro_batch")
# What may differ between the starts of a search: it decides nothing that a trial learns.
FREE = (
    *("name", "runs", "cache", "resume", "log.", "data.processes", "evaluation.samples", "checkpoint.keep"),
    *(f"train.{name}" for name in (*AUTOTUNED, "workers", "allocator")),
)


@dataclasses.dataclass(frozen=True)
class Search:
    """What one command asks for."""

    settings: FinetuneSettings
    """Of a trial, where the space says nothing; its folder is that of the search."""
    arguments: list[str]
    """Those settings, as they were given."""
    path: str
    """The file of the space."""
    space: Space
    grid: list[dict[str, Any]]
    """The points of the grid; of another sampler none."""
    trials: int
    """Trials in all."""
    sampler: str
    pruner: str

    @property
    def folder(self) -> Path:
        return self.settings.folder

    def lock(self) -> FileLock:
        """Of what the workers do one after another: choosing a trial, reporting."""
        return FileLock(self.folder / ".search.lock")

    def contract(self) -> dict[str, Any]:
        """What every start of the search must have in common, so that its trials compare."""
        settings = {name: value for name, value in flat(self.settings.resolved).items() if not name.startswith(FREE)}
        space = {dimension.key: str(dimension) for dimension in self.space}
        return {"--sampler": self.sampler, **{f"the space's {key}": value for key, value in space.items()}, **settings}

    def command(self, values: dict[str, Any]) -> list[str]:
        """The command that trains a point of the space by itself."""
        name = f"--name={self.settings.name}-best"  # behind the search's own name: the last one counts
        return ["accelerate", "launch", "finetune.py", *self.arguments, *options(values), name]


class Grid(BaseSampler):
    """One point of the grid."""

    def __init__(self, point: dict[str, Any]):
        self.point = point

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self.point[param_name]


def make_sampler(search: Search, number: int, place: int) -> BaseSampler:
    """What draws parameter `place` of trial `number`: it is the same one whoever draws it, and when.

    That of TPE depends on what the trials before gave, too.
    """
    if search.grid:
        # In an order that is drawn, so that the first points are from everywhere.
        order = np.random.default_rng(search.settings.seed).permutation(len(search.grid))
        return Grid(search.grid[order[number]])
    seed = int(np.random.SeedSequence([search.settings.seed, number, place]).generate_state(1)[0])
    if search.sampler == "tpe":
        return TPESampler(seed=seed, constant_liar=True)  # which keeps workers away from each other's points
    return RandomSampler(seed=seed)


def make_pruner(search: Search) -> BasePruner:
    """What decides at an evaluation whether its trial goes on."""
    if search.pruner == "median":
        return MedianPruner()
    if search.pruner == "halving":
        return SuccessiveHalvingPruner(min_resource=search.settings.evaluation.every)
    return NopPruner()


# ---- the journal ----


def mend(journal: Path) -> None:
    """Takes away a last line that a full disk or a power cut left unfinished: with another one behind it the journal
    could not be read."""
    with journal.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def metric_of(settings: FinetuneSettings) -> tuple[str, bool]:
    """The metric that decides which trial is best, and whether higher is better.

    Raises:
        UserError: whatever is wrong with the data, which all trials would say.
    """
    objective = make_objective(settings, TASKS)
    objective.examples.prepare(is_builder=True)
    examples = objective.examples
    name = examples.metric if isinstance(examples, WindowExamples) else examples.settings.metric
    return name, objective.scoring.rank({name: 1.0}) < 0


def open_study(search: Search) -> optuna.Study:
    """The search's study, which is made where there is none.

    Raises:
        UserError: the space, the data or the folder is wrong, or the folder's search is another one.
    """
    folder, journal = search.folder, search.folder / "journal.log"
    higher = False
    metric = ""
    if not journal.exists():
        if (folder / "checkpoints").exists() or (folder / "model").exists():
            raise UserError(f"{folder} holds a run of finetune.py: give the search another --name.")
        print(f"checking each value of {search.path}, and the data", flush=True)
        metric, higher = metric_of(check_space(search.path, search.arguments, search.space))
        files.check_writable(folder, "--runs")
    contract = search.contract()
    with search.lock():
        lock = FileLock(folder / ".journal.lock")
        if journal.exists():
            with lock:
                mend(journal)
        # Not one of Optuna's own locks: this one is free at once when the process that holds it is killed.
        storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))  # type: ignore[arg-type]
        known = [study.study_name for study in optuna.get_all_study_summaries(storage)]
        if STUDY not in known:
            study = optuna.create_study(
                storage=storage, study_name=STUDY, direction="maximize" if higher else "minimize"
            )
        study = optuna.load_study(storage=storage, study_name=STUDY, pruner=make_pruner(search))
        if "metric" not in study.user_attrs:
            study.set_user_attr("contract", json.dumps(contract))
            study.set_user_attr("metric", metric)
    before = json.loads(study.user_attrs["contract"])
    for name in dict.fromkeys([*before, *contract]):
        old, new = before.get(name, "left out"), contract.get(name, "left out")
        if old != new:
            raise UserError(
                f"the search in {folder} was begun with {name} {old}, now it is {new}: its trials would not compare, "
                "so give the same settings, or another --name."
            )
    return study


@contextmanager
def claim_trial(search: Search, study: optuna.Study) -> Iterator[Trial | None]:
    """A trial that is this worker's while the `with` lasts; None: there is none left.

    It is one that a worker has given up, before a new one.
    """
    lock = None
    with search.lock():
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        trial: Trial | None = None
        for number, trial_id in [(given_up.number, given_up._trial_id) for given_up in running]:
            lock = trial_lock(search, number)
            if lock is not None and study.get_trials(deepcopy=False)[number].state == TrialState.RUNNING:
                trial = Trial(study, trial_id)  # with the parameters that it has in the journal
                break
            if lock is not None:  # its worker has told what it gave, in between
                lock.release()
        else:
            number = len(study.get_trials(deepcopy=False))
            if number < search.trials:
                trial = study.ask()
                lock = trial_lock(search, number)
                assert trial.number == number and lock is not None
        if trial is not None:
            for place, dimension in enumerate(search.space):
                study.sampler = make_sampler(search, trial.number, place)
                dimension.suggest(trial)  # which is nothing new where the journal has it
    try:
        yield trial
    finally:
        if lock is not None:
            lock.release()


def trial_name(number: int) -> str:
    return f"trial-{number:04}"


def trial_lock(search: Search, number: int) -> FileLock | None:
    """The trial's lock, taken; None: another worker has it."""
    folder = search.folder / trial_name(number)
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


# ---- a trial ----


def watched(objective: Objective, trial: Trial, metric: str, folder: Path) -> Objective:
    """The objective, whose evaluations Optuna hears of and may end the trial at.

    The loop asks at each evaluation for its rank, having written it to metrics.jsonl, where its step is.
    """
    scoring = objective.scoring
    rank = scoring.rank

    def rank_and_report(metrics: dict[str, float]) -> float:
        step = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        reported = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if step not in reported:  # a resumed run evaluates again what it had not saved
            trial.report(metrics[metric], step)
        if trial.should_prune():
            raise optuna.TrialPruned(f"pruned at step {step}, {metric} {metrics[metric]:.4f}")
        return float(rank(metrics))

    scoring.rank = rank_and_report  # of this object alone: earlier phases of a run are judged by other ones
    return objective


def computed_alike(settings: Settings, folders: list[Path]) -> Settings:
    """The settings with what the first of these runs that has a checkpoint chose at its start."""
    for folder in folders:
        if found := checkpoint.find(folder):
            autotuned = checkpoint.read_state(found[-1]).autotuned
            chosen = {name: autotuned[name] for name in COMPUTED if getattr(settings.train, name) == "auto"}
            return settings.changed({f"train.{name}": value for name, value in chosen.items()})
    return settings


def train_trial(search: Search, trial: Trial, metric: str, before: Path | None) -> float:
    """Trains a trial, or goes on with it; returns the metric of the weights that it hands over.

    Args:
        before: the run of this process before it, whose precision is the process's.
    """
    name = trial_name(trial.number)
    own = [f"--runs={search.folder}", f"--name={name}", "--resume=auto"]
    parsed = parse([*search.arguments, *options(trial.params), *own])
    earlier = sorted(search.folder.glob("trial-*"))
    settings = computed_alike(parsed, [*([before] if before else []), parsed.folder, *earlier])
    train(settings, watched(make_objective(settings, TASKS), trial, metric, settings.folder))
    results = json.loads((settings.folder / "results.json").read_text())
    trial.set_user_attr("step", results["step"])
    value = results[f"eval_{metric}"]
    return math.nan if value is None else value


def run_trial(search: Search, study: optuna.Study, trial: Trial, before: Path | None) -> None:
    """Trains a trial and tells the study what it gave.

    Whatever ends the process, a signal too, leaves the trial to the next worker.
    """
    metric, number = study.user_attrs["metric"], trial.number
    shown = " ".join(options(trial.params))
    print(f"\n== {trial_name(number)}, {number + 1} of {search.trials}: {shown} ==", flush=True)
    try:
        value = train_trial(search, trial, metric, before)
    except optuna.TrialPruned as pruned:
        study.tell(number, state=TrialState.PRUNED)
        print(f"{trial_name(number)}: {pruned}", flush=True)
        return
    except (UserError, torch.OutOfMemoryError) as error:
        fail(study, trial, one_line(error))
        return
    except OSError:  # as a full disk: the trial goes on when that is mended
        raise
    except Exception as error:  # a bug, which would meet every worker that takes the trial up again
        fail(study, trial, f"{type(error).__name__}: {one_line(error)}")
        raise
    if math.isnan(value):
        fail(study, trial, f"its {metric} is no number")
        return
    study.tell(number, value)
    print(f"{trial_name(number)}: {metric} {value:.4f}", flush=True)


def fail(study: optuna.Study, trial: Trial, reason: str) -> None:
    trial.set_user_attr("reason", reason)
    study.tell(trial.number, state=TrialState.FAIL)
    print(f"{trial_name(trial.number)} failed: {reason}", flush=True)


def check_failures(study: optuna.Study) -> None:
    """Raises UserError where all that trials say is one sentence, which is then not about their parameters."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    reasons = [
        trial.user_attrs["reason"].replace(trial_name(trial.number), "a trial")
        for trial in trials
        if trial.state == TrialState.FAIL
    ]
    if len(reasons) == len(trials) >= ALIKE and len(set(reasons)) == 1:
        raise UserError(f"all {len(trials)} trials have failed alike: {reasons[0]}")


# ---- the whole ----


def outcome(trial: FrozenTrial) -> Outcome:
    """What the report says of a trial."""
    value = trial.value if trial.values is not None else None
    state, attributes = trial.state.name.lower(), trial.user_attrs
    name = trial_name(trial.number)
    return Outcome(trial.number, name, state, value, trial.params, attributes.get("step"), attributes.get("reason", ""))


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the metric's variance each parameter explains (Hutter 2014); nothing where there is none yet."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # no tree saw two values
        return {}


def report(search: Search, study: optuna.Study, final: bool) -> list[str]:
    """Writes what is known of the trials into the search's folder; returns it in lines.

    Args:
        final: with importances and the picture, which take seconds.
    """
    with search.lock():  # workers write the same files
        outcomes = [outcome(trial) for trial in study.get_trials(deepcopy=False)]
        higher = study.direction == optuna.study.StudyDirection.MAXIMIZE
        metric = study.user_attrs["metric"]
        shares = importances(study) if final else {}
        lines = write_report(search, outcomes, metric, higher, shares)
        if final:
            draw_search(outcomes, search.space, metric, higher, shares, search.folder / "search.png")
        return lines


def run_search(search: Search) -> None:
    """Trains what is left of a search's trials, and reports.

    Raises:
        UserError: space, data or folder is wrong, or the trials all fail alike.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    study = open_study(search)
    before: Path | None = None
    while True:
        with claim_trial(search, study) as trial:
            if trial is None:
                break
            run_trial(search, study, trial, before)
            before = search.folder / trial_name(trial.number)
        gc.collect()  # the model of one trial, before there is the next one's
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        report(search, study, final=False)
        check_failures(study)
    print("", *report(search, study, final=True), sep="\n", flush=True)
