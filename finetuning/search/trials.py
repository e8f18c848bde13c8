"""The trials of a search: each is trained as a run of its own, its evaluations are told to Optuna, and its end too."""

import gc
import json
import math
import warnings
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, Trial, TrialState

from finetuning.run import variant
from finetuning.search.report import Outcome, draw_search, write_report
from finetuning.search.space import options, parse
from finetuning.search.study import Begun, Search, begin, claim_trial, open_study, trial_name
from finetuning.tasks import make_task
from pretraining.autotune import AUTOTUNED, as_autotuned
from pretraining.errors import UserError, one_line
from pretraining.loop import train
from pretraining.objectives.base import Objective

ALIKE = 3  # So many trials that fail with one sentence, and none that succeeds, end the search.
# All trials compute in one way, in one precision above all. How many rows at a time depends on what is searched.
COMPUTED = tuple(name for name in AUTOTUNED if name != "micro_batch")


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


def train_trial(search: Search, trial: Trial, metric: str, before: Path | None) -> float:
    """Trains a trial, or goes on with it; returns the metric of the weights that it hands over.

    Args:
        before: the run of this process before it, whose precision is the process's.
    """
    name = trial_name(trial.number)
    own = [f"--runs={search.folder}", f"--name={name}", "--resume=auto"]
    parsed = parse([*search.arguments, *options(trial.params), *own])
    parsed = variant(parsed, parsed.start, parsed.seed, parsed.runs, parsed.name)  # of scratch: no checkpoint
    earlier = sorted(search.folder.glob("trial-*"))
    settings = as_autotuned(parsed, [*([before] if before else []), parsed.folder, *earlier], COMPUTED)
    train(settings, watched(make_task(settings), trial, metric, settings.folder))
    results = json.loads((settings.folder / "results.json").read_text())
    trial.set_user_attr("step", results["step"])
    value = results[f"eval_{metric}"]
    return math.nan if value is None else value


def run_trial(search: Search, begun: Begun, study: optuna.Study, trial: Trial, before: Path | None) -> None:
    """Trains a trial and tells the study what it gave.

    Whatever ends the process, a signal too, leaves the trial to the next worker.
    """
    metric, number = begun.metric, trial.number
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


def report(search: Search, begun: Begun, study: optuna.Study, final: bool) -> list[str]:
    """Writes what is known of the trials into the search's folder; returns it in lines.

    Args:
        final: with importances and the picture, which take seconds.
    """
    with search.lock():  # workers write the same files
        outcomes = [outcome(trial) for trial in study.get_trials(deepcopy=False)]
        metric, higher = begun.metric, begun.higher
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
    begun = begin(search)
    study = open_study(search, begun.higher)
    before: Path | None = None
    while True:
        with claim_trial(search, study) as trial:
            if trial is None:
                break
            run_trial(search, begun, study, trial, before)
            before = search.folder / trial_name(trial.number)
        gc.collect()  # the model of one trial, before there is the next one's
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        report(search, begun, study, final=False)
        check_failures(study)
    print("", *report(search, begun, study, final=True), sep="\n", flush=True)
