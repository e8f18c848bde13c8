"""The loop: plan, batches, losses, update, log. It knows nothing of what is learnt."""

import json
import logging
import math
import sys
import time
import uuid
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, set_seed
from torch import Tensor
from transformers.utils import logging as transformers_logging

from pretraining import checkpoint, files
from pretraining.batches import Steps
from pretraining.checkpoint import State
from pretraining.data.plan import Plan, make_plan
from pretraining.errors import UserError
from pretraining.evaluate import evaluate, make_evaluation_plan, report
from pretraining.export import export, how_to_open, open_exported, write_probe
from pretraining.hardware import SETTLED, choose_linear, make_accelerator, make_process, settle
from pretraining.log import Log
from pretraining.objectives import OBJECTIVES, Objective
from pretraining.optim import learning_rate, make_average, make_optimizer
from pretraining.settings import NOT_SET_BY_HAND, Settings, TrainSettings
from pretraining.signals import Signals
from pretraining.step import NotFinite, keep_bad_step, train_step

# Settings of the loop that a resumed run must keep: they decide what a step sees.
CONTRACT = ("rows_per_step", "rows_at_start", "batch_warmup", "phases", "window")


def progress_at(state: State, settings: TrainSettings, plan: Plan, step: int) -> float:
    """Share of the budget that is spent before the epoch's step `step`, 0 to 1; in minutes: that is spent now."""
    ahead = step - state.step_in_epoch
    if settings.steps is not None:
        spent, budget = float(state.step + ahead), float(settings.steps)
    elif settings.epochs is not None:
        spent, budget = state.passes + step / plan.steps, settings.epochs
    elif settings.tokens is not None:
        tokens = plan.tokens_before[step] - plan.tokens_before[state.step_in_epoch]
        spent, budget = float(state.tokens + tokens), float(settings.tokens)
    else:
        assert settings.minutes is not None
        spent, budget = state.seconds / 60, settings.minutes
    return min(1.0, spent / budget)


def rate_at(settings: Settings, state: State, progress: float) -> float:
    """The learning rate of the step after those that are done."""
    return learning_rate(settings.optim, settings.model.hidden_size, state.step + 1, progress)


def plan_epoch(objective: Objective, settings: Settings, state: State) -> Plan:
    """The rows and steps of the state's epoch, equal on every process."""
    train, first = settings.train, state.step - state.step_in_epoch
    index = objective.index("train", state.epoch)
    lengths = objective.lengths("train", state.epoch, index)
    return make_plan(
        index,
        lengths,
        objective.row_lengths,
        lambda step: train.rows(first + step),
        train.window,
        settings.seed,
        state.epoch,
    )


def collect(measured: list[dict[str, Tensor]], accelerator: Accelerator) -> list[dict[str, float]]:
    """Measures of some steps as numbers, the processes' parts added up."""
    if not measured:
        return []
    names = list(measured[0])
    table = torch.stack([torch.stack([step[name] for name in names]) for step in measured])
    return [dict(zip(names, row, strict=True)) for row in accelerator.reduce(table, "sum").tolist()]


def check_scale(accelerator: Accelerator, settings: Settings, objective: Objective) -> None:
    """Raises UserError where what is asked for has not been shown right under the launcher's way of scaling."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        return
    unproven = {
        "optim.optimizer: muon": settings.optim.optimizer == "muon",
        "optim.ema": settings.optim.ema,
        "train.phases": settings.train.phases,
        # Evaluations call the model inside: there it is the wrapper that gathers the weights.
        "fsdp_version: 1": kind == DistributedType.FSDP and not accelerator.is_fsdp2,
        objective.writes_by: objective.writes_by,  # a search reads weights outside of the calls that gather them
    }
    for name, asked in unproven.items():
        if asked:
            raise UserError(f"{name} has not been shown right under {kind.value}: do without it, or use DDP.")
    own = -(-settings.train.rows_per_step // accelerator.num_processes)
    if kind != DistributedType.FSDP and settings.train.micro_batch != own:
        raise UserError(
            f"Under {kind.value} a step must be one micro-batch on every process: set train.micro_batch to {own}."
        )
    if kind == DistributedType.DEEPSPEED:  # which asks for it where no loader is prepared
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = own


def train(settings: Settings) -> None:
    """Trains from raw data to an exported model, in `settings.folder`.

    Raises:
        UserError: whatever is wrong with settings, data or checkpoint, before any training; a step that is not
            finite, before it touches the weights.
    """
    transformers_logging.disable_progress_bar()  # for saving and loading: a bar of an instant
    # That the tied decoder is stored once is no news, and the log would say it at every checkpoint.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    process = make_process()
    # The folder is claimed first: a second launch hears of it before hours of preparing data, and what it would choose
    # among the checkpoints of a run that goes on is old by then.
    with checkpoint.claim(settings.folder) if process.is_main_process else nullcontext():
        chosen = [checkpoint.choose(settings.folder, settings.resume)] if process.is_main_process else [None]
        run(settings, process, broadcast_object_list(chosen)[0])


def run(settings: Settings, process: PartialState, found: Path | None) -> None:
    """The run in a folder that is its own, on from the checkpoint `found` if there is one."""
    folder = settings.folder
    log = Log(process, folder, settings.log)

    # Data, tokenizer and model; the last phase is the run's own.
    prepared: Objective = OBJECTIVES[settings.objective.name](settings)
    for line in prepared.prepare(is_builder=process.is_local_main_process):
        log.say(line)
    phases = settings.phases()
    ends = [end for end, _ in phases]
    objectives = [prepared.during(phase) for _, phase in phases]
    state = checkpoint.read_state(found) if found else State()
    phase, objective = phases[state.phase][1], objectives[state.phase]
    plan = plan_epoch(objective, phase, state)
    set_seed(settings.seed)
    fresh = prepared.build_model(settings.model)
    if settings.init_from is not None:
        log.say(objective.load_weights(fresh, settings.init_from))

    # How to compute: settled once for a run, whatever of it is `auto`.
    settled = state.settled
    if not settled:
        longest = max(range(len(phases)), key=lambda i: sum(objectives[i].row_lengths))
        rows = plan_epoch(objectives[longest], phases[longest][1], State())
        settled, tried = settle(phases[longest][1], fresh, objectives[longest], rows, process)
        if tried:
            log.say(tried)
    chosen = {name: settled[name] for name in SETTLED if getattr(settings.train, name) == "auto"}
    settings = settings.changed({f"train.{name}": value for name, value in chosen.items()})
    phases, options = settings.phases(), settings.train
    phase = phases[state.phase][1]
    assert isinstance(options.threads, int)
    torch.set_num_threads(options.threads)
    accelerator = make_accelerator(settings)
    check_scale(accelerator, settings, prepared)

    fresh.set_attn_implementation(options.kernel)
    average = make_average(fresh, settings.optim.ema) if settings.optim.ema else None
    choose_linear(fresh, options.linear)
    if options.gradient_checkpointing:
        fresh.activation_checkpointing_enable()
    if options.compile:
        fresh.compile()
    model, optimizer = accelerator.prepare(fresh, make_optimizer(fresh, settings.optim, options.precision))
    # Not DDP's wrapper: each of its calls is one of all processes, and it lacks what a model has besides `forward`.
    # FSDP2 and DeepSpeed gather the weights in the model's own calls.
    evaluated = accelerator.unwrap_model(model)
    if average is not None:
        evaluated = average.to(accelerator.device).module

    contract = make_contract(settings, objectives)
    if found:
        checkpoint.load(accelerator, optimizer, found, state, contract, average)
        if found.resolve().parents[1] != folder.resolve():  # another run's: its best model and its name stay there
            state.best, state.run_id = {}, uuid.uuid4().hex[:12]
        origin = ""
        if settings.resume != "auto":
            state.begun_from = str(Path(settings.resume).resolve())
            origin = "" if state.begun_from == str(found.resolve()) else f", which has come of {settings.resume}"
        log.say(f"resumed from {found}{origin}")
    else:
        state = State(run_id=uuid.uuid4().hex[:12], contract=contract, settled=settled)
    held_out = make_evaluation_plan(objective, phase)
    patience = settings.evaluation.patience
    log.say(
        f"model: {fresh.num_parameters():,} parameters; an epoch: {plan.steps:,} steps of {phase.train.rows_per_step} "
        f"{objective.describe_rows(plan.fill)}; "
        f"{accelerator.num_processes} x {torch.get_num_threads()} threads, {options.precision}, {options.kernel}, "
        f"micro-batches of {phase.train.micro_batch}, on {accelerator.device.type}"
    )
    if options.minutes is not None:
        log.say("the budget is in minutes: two such runs are never equal, and a resumed one is not exact")

    with log.running(accelerator, settings, state), Signals() as signals:
        measured: list[dict[str, Tensor]] = []
        logged = (state.tokens, state.seconds)
        progress = progress_at(state, options, plan, state.step_in_epoch)
        if patience and state.stale >= patience:
            progress = 1.0
        rate = rate_at(settings, state, progress)
        if state.next_rate is not None and not math.isclose(rate, state.next_rate):
            log.say(f"step {state.step}: the learning rate would have been {state.next_rate:.2e}, and is {rate:.2e}")
        if settings.init_from is not None and state.step == 0:  # what the checkpoint knows before it learns more
            held = evaluate(evaluated, objective, held_out, phase.train, accelerator)
            log.write({f"eval_{name}": value for name, value in held.items()}, 0, progress)
        while progress < 1:
            # A larger budget lowers the progress, but a phase that has begun never gives way to an earlier one.
            current = max(state.phase, next(i for i, end in enumerate(ends) if progress < end))
            if current != state.phase or state.step_in_epoch == plan.steps:
                state.passes += state.step_in_epoch / plan.steps
                state.epoch, state.step_in_epoch = state.epoch + 1, 0
                if current != state.phase:
                    before = objectives[: state.phase + 1]
                    objectives[current].begin(fresh, before)
                    if average is not None:
                        objectives[current].begin(average.module, before)
                    state.phase, state.best, state.stale = current, {}, 0
                    log.say(f"step {state.step}: phase {current + 1} of {len(phases)}")
                phase, objective = phases[current][1], objectives[current]
                held_out = make_evaluation_plan(objective, phase)
                plan = plan_epoch(objective, phase, state)
            assert isinstance(phase.train.micro_batch, int)
            steps = Steps(
                objective,
                "train",
                state.epoch,
                plan,
                phase.train.micro_batch,
                accelerator.process_index,
                accelerator.num_processes,
            )
            batches = steps.since(
                state.step_in_epoch,
                options.workers,
                pin_memory=accelerator.device.type == "cuda",
                progress=lambda step, plan=plan: progress_at(state, options, plan, step),  # type: ignore[misc]
            )
            model.train()
            clock = time.perf_counter()
            for micro_batches in batches:
                rate = rate_at(settings, state, progress)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["scale"]
                try:
                    measures, units = train_step(
                        model,
                        optimizer,
                        micro_batches,
                        objective,
                        accelerator,
                        settings.seed,
                        state.step,
                        options.max_grad_norm,
                    )
                except NotFinite as error:
                    kept = keep_bad_step(folder, accelerator, model, objective, micro_batches, settings, state.step)
                    raise NotFinite(f"{error} To see why: python -m pretraining.bad_step {kept}") from None
                if average is not None:
                    average.update_parameters(fresh)
                measured.append(measures)
                state.step += 1
                state.step_in_epoch += 1
                state.tokens += units
                state.seconds += time.perf_counter() - clock
                if options.minutes is not None:  # the main process's clock rules
                    state.seconds = broadcast_object_list([state.seconds])[0]
                progress = progress_at(state, options, plan, state.step_in_epoch)

                if state.step % settings.log.every == 0 or progress >= 1:
                    state.pending += collect(measured, accelerator)
                    means = {name: mean(step[name] for step in state.pending) for name in state.pending[0]}
                    speed = (state.tokens - logged[0]) / (state.seconds - logged[1])
                    means |= {
                        "learning_rate": rate,
                        "epoch": state.passes + state.step_in_epoch / plan.steps,
                        objective.unit: state.tokens,
                        "seconds": state.seconds,
                        f"{objective.unit}_per_second": speed,
                        "mfu": speed * settled["flops_per_token"] / settled["peak"] / accelerator.num_processes,
                    }
                    log.write(means, state.step, progress)
                    measured, state.pending, logged = [], [], (state.tokens, state.seconds)

                every = settings.evaluation.every
                if (every and state.step % every == 0) or progress >= 1:
                    held = evaluate(evaluated, objective, held_out, phase.train, accelerator)
                    state.evaluation = {f"eval_{name}": value for name, value in held.items()}
                    log.write(state.evaluation, state.step, progress)
                    if progress < 1:
                        with accelerator.autocast():
                            samples = objective.samples(evaluated, settings.evaluation.samples)
                        log.say("\n".join(f"  {sample}" for sample in samples))
                    model.train()
                    value = held[objective.metric] if objective.lower_is_better else -held[objective.metric]
                    if value < state.best.get("value", math.inf):  # which no NaN is
                        state.best, state.stale = {"step": state.step, "value": value, **state.evaluation}, 0
                    else:
                        state.stale += 1
                        if patience and state.stale >= patience and progress < 1:
                            log.say(f"step {state.step}: stopped, no better evaluation among the last {patience}")
                            progress = 1.0

                every, stop = settings.checkpoint.every, signals.exit_code(accelerator)
                due = (every and state.step % every == 0) or state.best.get("step") == state.step
                if due or progress >= 1 or stop:
                    state.pending += collect(measured, accelerator)
                    measured = []
                    state.next_rate = rate_at(settings, state, progress)
                    checkpoint.save(accelerator, folder, state, settings.checkpoint.keep, average)
                if stop:
                    log.say(f"step {state.step}: told to end, and saved; the same command goes on from here")
                    sys.exit(stop)
                if progress >= ends[state.phase]:
                    break
                clock = time.perf_counter()

    step, told = state.step, state.evaluation
    if settings.checkpoint.export == "best" and not state.best:
        log.say(f"no evaluation gave a number: the weights of the last step, {step}, are handed over, not the best")
    elif settings.checkpoint.export == "best":
        step = int(state.best["step"])
        told = {name: value for name, value in state.best.items() if name.startswith("eval_")}
        checkpoint.restore(accelerator, folder / "checkpoints" / f"step-{step}", average)
    elif settings.checkpoint.export == "average":
        newest = checkpoint.find(folder)[-settings.checkpoint.keep :]
        checkpoint.mean_weights(accelerator, evaluated, average, newest)
        log.say(f"the mean of {', '.join(path.name for path in newest)}")
        held = evaluate(evaluated, objective, held_out, phase.train, accelerator)
        told = {f"eval_{name}": value for name, value in held.items()}
    evaluated.eval()
    with accelerator.autocast():
        judged = objective.judge(evaluated, held_out.examples, accelerator, thorough=True)
    told = told | {f"eval_{name}": value for name, value in judged.items()}
    exported = export(accelerator, model if average is None else evaluated, objective, folder)
    if accelerator.is_main_process:
        opened = open_exported(exported, type(fresh))
        probe = objective.finish(Steps(objective, "validation", 0, held_out, micro_batch=4, rank=0, ranks=1)[0, 0.0][0])
        inputs = {name: value for name, value in probe.items() if name not in (*objective.targets, "logits_to_keep")}
        write_probe(opened, inputs, folder / "probe.safetensors")
        results = {"step": step, "examples": len(held_out.examples), **told, "signatures": objective.signatures}
        files.write_text(folder / "results.json", files.to_json(results, indent=1))
        log.say(f"\n{state.step:,} steps, {state.tokens:,} {objective.unit}, {state.seconds:.0f} s of training")
        log.say(report(step, len(held_out.examples), told, objective.signatures))
        for path in objective.draw_pictures(folder):
            log.say(f"  drawn: {path}")
        for sample in objective.samples(opened, settings.evaluation.samples):
            log.say(f"  {sample}")
        log.say(how_to_open(opened, objective.inputs, exported))
    accelerator.wait_for_everyone()


def make_contract(settings: Settings, objectives: list[Objective]) -> dict[str, Any]:
    """What a resumed run must have in common with the one that it continues."""
    model = {name: value for name, value in settings.model.to_dict().items() if name not in NOT_SET_BY_HAND}
    learnt = {
        name: value for name, value in asdict(settings.objective).items() if name not in objectives[0].resume_exempt
    }
    contract: dict[str, Any] = {
        "seed": settings.seed,
        "the data's fingerprint": " ".join(objective.fingerprint for objective in objectives),
        **{f"the version of {name}": version(name) for name in objectives[0].libraries},
        "evaluation.examples": settings.evaluation.examples,
        **{f"train.{name}": getattr(settings.train, name) for name in CONTRACT},
        **{f"optim.{name}": getattr(settings.optim, name) for name in ("optimizer", "layer_decay", "ema")},
        **{f"model.{name}": value for name, value in model.items()},
        **{f"objective.{name}": value for name, value in learnt.items()},
    }
    if settings.init_from is not None and settings.tokenizer is not None:
        # The checkpoint's table may have more rows than the tokenizer has entries.
        contract["model.vocab_size"] = settings.model.vocab_size
    contract["init_from"] = settings.init_from  # last: where two checkpoints differ in more, that is told
    return json.loads(json.dumps(contract))
