"""The loop: which step comes next, and what follows each step. It is the same for every objective."""

import sys
import time
from collections.abc import Iterator
from statistics import mean

import torch
from accelerate.utils import broadcast_object_list

from pretraining import checkpoint
from pretraining.bad_step import keep_bad_step
from pretraining.batches import Steps
from pretraining.environment import measure_energy
from pretraining.objectives.base import Batch, Objective
from pretraining.run import Run, claim, finish, start
from pretraining.settings import Settings
from pretraining.step import NotFinite, train_step


def walk(run: Run) -> Iterator[list[Batch]]:
    """This process's micro-batches of one step after another, until the budget is spent.

    It owns where the run is in its data: phase, epoch, plan and the position in the plan, which is one integer. So a
    resumed run skips nothing and reads nothing twice: it plans its epoch again and begins at that position.
    """
    state = run.state
    while run.progress < 1:
        # A resumed run may have a larger budget, so its progress can fall. The phase never goes back.
        due = next(number for number, phase in enumerate(run.phases) if run.progress < phase.end)
        if due > state.phase:
            run.enter_phase(due)
        elif state.step_in_epoch == run.plan.steps:
            run.begin_epoch()
        rank, ranks = run.accelerator.process_index, run.accelerator.num_processes
        steps = Steps(run.objective.examples, "train", state.epoch, run.plan, run.phase.micro_batch, rank, ranks)
        pin_memory, workers = run.accelerator.device.type == "cuda", run.settings.train.workers
        run.model.train()
        run.clock = time.perf_counter()  # planning is not counted as training time
        for micro_batches in steps.since(state.step_in_epoch, workers, pin_memory, run.progress_before):
            yield micro_batches
            if run.progress >= run.phase.end:
                break
            run.clock = time.perf_counter()  # nor are logging, evaluation and saving, which came after the update


def fit(run: Run) -> None:
    """Trains until the budget is spent. A signal ends the process with the signal's exit code."""
    settings = run.settings
    if settings.init_from is not None and run.state.step == 0:
        log_evaluation(run)  # what the checkpoint knows before it learns more
    for micro_batches in walk(run):
        run.set_learning_rate()
        update(run, micro_batches)

        if run.is_due(settings.log.every):
            log_steps(run)
        is_best = run.is_due(settings.evaluation.every) and compare_evaluation(run)
        # All processes must stop at the same step. Otherwise one saves while the others wait for it in the next step.
        stop = run.signals.exit_code(run.accelerator)
        if run.is_due(settings.checkpoint.every) or is_best or stop:
            save(run)
        if stop:
            run.log.say(f"step {run.state.step}: told to end, and saved; the same command goes on from here")
            sys.exit(stop)
        if settings.hub.repo and run.is_due(settings.hub.every) and run.progress < 1:  # at the end, `finish` pushes
            run.push()


def update(run: Run, micro_batches: list[Batch]) -> None:
    """One step of training, and where the run is after it.

    Raises:
        NotFinite: the step is not finite; the weights are untouched, and all that replaying it needs is written.
    """
    state, options = run.state, run.settings.train
    try:
        metrics, units = train_step(
            run.model,
            run.optimizer,
            micro_batches,
            run.objective.head.to_model_inputs,
            run.accelerator,
            run.settings.seed,
            state.step,
            options.max_grad_norm,
        )
    except NotFinite as error:
        folder = keep_bad_step(run, micro_batches)
        raise NotFinite(f"{error} To see why: python -m pretraining.bad_step {folder}") from None
    if run.average is not None:
        run.average.update_parameters(run.unwrapped)
    run.recent.append(metrics)
    state.step += 1
    state.step_in_epoch += 1
    state.tokens += units
    state.seconds += time.perf_counter() - run.clock
    if options.minutes is not None:  # where time is the budget, one clock must end all processes in the same step
        state.seconds = broadcast_object_list([state.seconds])[0]
    run.progress = run.progress_before(state.step_in_epoch)


def collect(run: Run) -> None:
    """Moves the metrics of recent steps into the state, as numbers, the processes' parts added up."""
    if run.recent:
        names = list(run.recent[0])
        table = torch.stack([torch.stack([step[name] for name in names]) for step in run.recent])  # (steps, names)
        rows = run.accelerator.reduce(table, "sum").tolist()  # one exchange for many steps, not one for each
        run.state.pending += [dict(zip(names, row, strict=True)) for row in rows]
        run.recent = []


def log_steps(run: Run) -> None:
    """The means of the steps since the last line, how fast they were, and where the run is."""
    collect(run)
    state, unit = run.state, run.settings.objective.unit
    means = {name: mean(step[name] for step in state.pending) for name in state.pending[0]}
    tokens, seconds = run.logged
    speed = (state.tokens - tokens) / (state.seconds - seconds)
    per_token, peak = state.autotuned["flops_per_token"], state.autotuned["peak"]
    means |= {
        "learning_rate": run.rate,
        "epoch": state.passes + state.step_in_epoch / run.plan.steps,  # passes: epochs before this one
        unit: state.tokens,  # images, where the unit is images
        "seconds": state.seconds,
        f"{unit}_per_second": speed,
        "mfu": speed * per_token / peak / run.accelerator.num_processes,
    }
    run.log.write(means, state.step, run.progress)
    state.pending, run.logged = [], (state.tokens, state.seconds)


def log_evaluation(run: Run) -> dict[str, float]:
    """Evaluates the model, or its average where there is one; returns the metrics by their plain names."""
    metrics = run.evaluate()
    run.state.evaluation = {f"eval_{name}": value for name, value in metrics.items()}
    run.log.write(run.state.evaluation, run.state.step, run.progress)
    return metrics


def compare_evaluation(run: Run) -> bool:
    """Evaluates; returns whether no evaluation of this phase was better. Ends the run when its patience is used up."""
    state, options = run.state, run.settings.evaluation
    metrics = log_evaluation(run)
    if run.progress < 1:  # at the end the exported model has its own samples
        with run.accelerator.autocast():
            samples = run.objective.scoring.samples(run.eval_model, options.samples)
        run.log.say("\n".join(f"  {sample}" for sample in samples))
    run.model.train()
    value = run.objective.scoring.rank(metrics)
    if value < state.best.get("value", float("inf")):  # false for NaN
        state.best, state.stale = {"step": state.step, "value": value, **state.evaluation}, 0
        return True
    state.stale += 1
    if options.patience and state.stale >= options.patience and run.progress < 1:
        run.log.say(f"step {state.step}: stopped, no better evaluation among the last {options.patience}")
        run.progress = 1.0
    return False


def save(run: Run) -> None:
    """Writes a checkpoint of the state after the last step.

    It is written under another name and renamed when it is complete: a kill in between leaves the older checkpoints,
    and the next save deletes the rest.
    """
    collect(run)
    run.state.next_rate = run.learning_rate()
    checkpoint.save(run.accelerator, run.settings.folder, run.state, run.settings.checkpoint.keep, run.average)


def train(settings: Settings, objective: Objective) -> None:
    """Trains from raw data to an exported model, in `settings.folder`.

    Raises:
        UserError: whatever is wrong with settings, data or checkpoint, before any training; a step that is not
            finite, before it touches the weights.
    """
    with claim(settings) as (process, source):
        run = start(settings, objective, process, source)
        energy = measure_energy(settings.folder, settings.log.energy, process.is_main_process)
        with run.log.running(run.accelerator, run.settings, run.state), run.signals, run.pushes, energy:
            fit(run)
        finish(run)
