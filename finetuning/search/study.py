"""The journal of a search: which trials there are, who trains which, and what their parameters are.

What is known of the trials stands in the search's folder, in Optuna's journal, a file to which every worker appends. A
worker holds the lock of its trial while it trains it, and the operating system frees that when the worker ends, in
whichever way. So a trial that is running in the journal and whose lock is free was given up, and the next worker takes
it: its parameters are in the journal, and its run goes on from its newest checkpoint.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from finetuning.search.space import Space, check_space, options
from finetuning.settings import FinetuneSettings
from finetuning.tasks import make_task
from pretraining import files
from pretraining.autotune import AUTOTUNED
from pretraining.errors import UserError
from pretraining.log import flat
from pretraining.objectives.base import LOWER_IS_BETTER

STUDY = "search"  # its name in the journal, which has no other one
# What may differ between the starts of a search: it decides nothing that a trial learns.
FREE = (
    *("name", "runs", "cache", "resume", "log.", "hub.", "data.processes", "evaluation.samples", "checkpoint.keep"),
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


def make_sampler(search: Search, number: int, place: int) -> BaseSampler:
    """What draws parameter `place` of trial `number`: it is the same one whoever draws it, and when.

    That of TPE depends on what the trials before gave, too.
    """
    if search.grid:
        # In an order that is drawn, so that the first points are from everywhere.
        order = np.random.default_rng(search.settings.seed).permutation(len(search.grid))
        # A point fixes all parameters: nothing is left for the other sampler to draw.
        return PartialFixedSampler(search.grid[order[number]], RandomSampler())
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
    objective = make_task(settings)
    objective.examples.prepare(is_builder=True)
    return objective.scoring.metric, objective.scoring.metric not in LOWER_IS_BETTER


@dataclasses.dataclass(frozen=True)
class Begun:
    """What was decided when the search began; every start must have the same contract."""

    metric: str
    """The metric that decides which trial is best."""
    higher: bool
    """Whether higher is better."""
    contract: dict[str, Any]


def begin(search: Search) -> Begun:
    """What the folder's search began with; a new one begins here.

    Raises:
        UserError: the space, the data or the folder is wrong, or the folder's search is another one.
    """
    folder, path = search.folder, search.folder / "begun.json"
    if not path.exists():
        if (folder / "checkpoints").exists() or (folder / "model").exists():
            raise UserError(f"{folder} holds a run of finetune.py: give the search another --name.")
        print(f"checking each value of {search.path}, and the data", flush=True)
        metric, higher = metric_of(check_space(search.path, search.arguments, search.space))
        files.check_writable(folder, "--runs")
        with search.lock():
            if not path.exists():  # another worker may have been faster
                files.write_text(path, files.to_json(dataclasses.asdict(Begun(metric, higher, search.contract()))))
    begun = Begun(**json.loads(path.read_text()))
    now = search.contract()
    for name in dict.fromkeys([*begun.contract, *now]):
        before, after = begun.contract.get(name, "left out"), now.get(name, "left out")
        if before != after:
            raise UserError(
                f"the search in {folder} was begun with {name} {before}, now it is {after}: its trials would not "
                "compare, so give the same settings, or another --name."
            )
    return begun


def open_study(search: Search, higher: bool) -> optuna.Study:
    """The search's study, which is made where there is none."""
    journal, lock = search.folder / "journal.log", FileLock(search.folder / ".journal.lock")
    with search.lock():
        if journal.exists():
            with lock:
                mend(journal)
        # Not one of Optuna's own locks: this one is free at once when the process that holds it is killed.
        backend = JournalFileBackend(str(journal), lock_obj=lock)  # type: ignore[arg-type]
        return optuna.create_study(
            storage=JournalStorage(backend),
            study_name=STUDY,
            direction="maximize" if higher else "minimize",
            pruner=make_pruner(search),
            load_if_exists=True,
        )


# ---- who trains what ----


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


def given_up(search: Search, study: optuna.Study) -> tuple[Trial, FileLock] | None:
    """A trial whose worker has ended, and its lock, taken; None: there is none."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        lock = trial_lock(search, trial.number)
        if lock is None:
            continue
        # Its worker may have told what it gave, and freed it, since the list was read.
        if study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
            return Trial(study, trial._trial_id), lock
        lock.release()
    return None


def begin_trial(search: Search, study: optuna.Study) -> tuple[Trial, FileLock] | None:
    """A new trial, and its lock, taken; None: there are enough."""
    if len(study.get_trials(deepcopy=False)) >= search.trials:
        return None
    trial = study.ask()
    lock = trial_lock(search, trial.number)
    assert lock is not None, "only who has the search's lock begins trials"
    return trial, lock


@contextmanager
def claim_trial(search: Search, study: optuna.Study) -> Iterator[Trial | None]:
    """A trial, with its parameters, that is this worker's while the `with` lasts; None: there is none left.

    One that a worker has given up comes before a new one.
    """
    with search.lock():
        claimed = given_up(search, study) or begin_trial(search, study)
        if claimed is not None:
            trial, _ = claimed
            for place, dimension in enumerate(search.space):
                study.sampler = make_sampler(search, trial.number, place)
                dimension.suggest(trial)  # nothing is drawn that the journal has already
    if claimed is None:
        yield None
        return
    trial, lock = claimed
    try:
        yield trial
    finally:
        lock.release()
