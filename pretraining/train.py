"""The loop: plan, batches, losses, update, log. It knows nothing of what is learnt."""

import json
import logging
import os
import time
import uuid
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device, set_seed
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from pretraining import checkpoint
from pretraining.checkpoint import State
from pretraining.data import draws
from pretraining.data.batches import Batch, Steps
from pretraining.data.plan import Plan, make_plan
from pretraining.data.rows import IGNORED
from pretraining.evaluate import evaluate, make_evaluation_plan
from pretraining.export import export, open_exported, write_probe
from pretraining.initial import load_weights
from pretraining.log import Log
from pretraining.objectives import OBJECTIVES, Objective
from pretraining.optim import learning_rate, make_optimizer
from pretraining.settings import NOT_SET_BY_HAND, Settings, TrainSettings


def make_accelerator(settings: Settings) -> Accelerator:
    """Accelerate, with this process's threads and precision.

    Raises:
        ValueError: the launcher started processes that Accelerate does not join, or asks it to accumulate.
    """
    precision = {"fp32": "no", "bf16": "bf16"}[settings.train.precision]
    accelerator = Accelerator(mixed_precision=precision, log_with=settings.log.trackers or None)
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world != accelerator.num_processes:
        raise ValueError(
            f"The launcher started {world} processes, but Accelerate joins {accelerator.num_processes}: on CPU start "
            f"them with ACCELERATE_USE_CPU=true torchrun --nproc_per_node {world} pretrain.py."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"Accelerate is set to accumulate {accelerator.gradient_accumulation_steps} times, which would divide "
            "the loss again: leave it at 1; train.micro_batch cuts a step into micro-batches."
        )
    missing = set(settings.log.trackers) - {"all"} - {tracker.value for tracker in accelerator.log_with}
    if missing:
        raise ValueError(f"log.trackers: {missing.pop()!r} is not installed: install it, or take it out.")
    if accelerator.device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(settings.train.threads or max(1, cores // local))
    if settings.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


def progress_of(state: State, settings: TrainSettings, plan: Plan) -> float:
    """Share of the budget that is spent, 0 to 1."""
    if settings.steps is not None:
        spent, budget = float(state.step), float(settings.steps)
    elif settings.epochs is not None:
        spent, budget = state.epoch + state.step_in_epoch / plan.steps, settings.epochs
    elif settings.tokens is not None:
        spent, budget = float(state.tokens), float(settings.tokens)
    else:
        assert settings.minutes is not None
        spent, budget = state.seconds / 60, settings.minutes
    return min(1.0, spent / budget) if budget else 1.0


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    objective: Objective,
    accelerator: Accelerator,
    seed: int,
    step: int,
    max_grad_norm: float,
) -> tuple[dict[str, Tensor], int]:
    """One update from this process's micro-batches of step `step`.

    Every loss is a sum over targets divided by their number in the whole step, over all micro-batches and processes,
    so it does not matter how the step was cut.

    Returns:
        This process's part of each loss, the norm of the gradient, and the step's tokens, padding not counted.

    Raises:
        ValueError: the loss or its gradient is not finite; the weights are untouched.
    """
    device, ranks = accelerator.device, accelerator.num_processes
    local = [sum(int((batch[name] != IGNORED).sum()) for batch in micro_batches) for name in objective.targets]
    local.append(sum(objective.tokens(batch) for batch in micro_batches))
    *targets, tokens = accelerator.reduce(torch.tensor(local, device=device), "sum").unbind()
    counts = {name: count.clamp(min=1) for name, count in zip(objective.targets, targets, strict=True)}

    losses: dict[str, Tensor] = {}
    for i, batch in enumerate(micro_batches):
        torch.manual_seed(int(draws.mix(seed, draws.TORCH, step, accelerator.process_index, i)))
        last = i == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            out = model(**send_to_device(batch, device), **objective.forward_arguments, num_items_in_batch=counts)
            accelerator.backward(out.loss * ranks)  # gradients are averaged over the processes: the sum is wanted
        for name, value in out.items():
            if name.endswith("loss"):
                losses[name] = losses.get(name, torch.zeros((), device=device)) + value.detach().float()

    norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
    if not torch.isfinite(norm):  # equal on all processes, as the parts of the loss are not: all stop together
        raise ValueError(
            f"Step {step} is not finite: loss {float(losses['loss'])}, gradient norm {float(norm)}, learning rate "
            f"{optimizer.param_groups[0]['lr']:.2e}. Nothing was updated, and the checkpoints are as they were: resume "
            "from one with a lower optim.learning_rate, or with train.precision: fp32."
        )
    optimizer.step()
    optimizer.zero_grad()
    return {**losses, "gradient_norm": norm.detach() / ranks}, int(tokens)


def plan_epoch(objective: Objective, settings: Settings, epoch: int) -> Plan:
    """The rows and steps of an epoch, equal on every process."""
    train = settings.train
    index = objective.index("train", epoch)
    lengths = objective.lengths("train", epoch, index)
    rows = train.rows_per_step
    return make_plan(index, lengths, objective.row_length, lambda _: rows, train.window, settings.seed, epoch)


def collect(measured: list[dict[str, Tensor]], accelerator: Accelerator) -> list[dict[str, float]]:
    """Measures of some steps as numbers, the processes' parts added up."""
    if not measured:
        return []
    names = list(measured[0])
    table = torch.stack([torch.stack([step[name] for name in names]) for step in measured])
    return [dict(zip(names, row, strict=True)) for row in accelerator.reduce(table, "sum").tolist()]


def train(settings: Settings) -> None:
    """Trains from raw data to an exported model, in `settings.folder`.

    Raises:
        ValueError: whatever is wrong with settings, data or checkpoint, before any training; a step that is not
            finite, before it touches the weights.
    """
    transformers_logging.disable_progress_bar()  # for saving and loading: a bar of an instant
    # That the tied decoder is stored once is no news, and the log would say it at every checkpoint.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    accelerator = make_accelerator(settings)
    folder, options = settings.folder, settings.train
    found = checkpoint.choose(folder, settings.resume)
    log = Log(accelerator, folder, settings.log)

    objective: Objective = OBJECTIVES[settings.objective.name](settings)
    for line in objective.prepare(writer=accelerator.is_local_main_process):
        log.say(line)
    set_seed(settings.seed)
    fresh = objective.build_model(settings.model)
    if settings.init_from is not None:
        log.say(load_weights(fresh, settings.init_from, objective.tokenizer))
    fresh.set_attn_implementation(options.kernel)
    if options.gradient_checkpointing:
        fresh.activation_checkpointing_enable()
    model, optimizer = accelerator.prepare(fresh, make_optimizer(fresh, settings.optim))

    contract = make_contract(settings, objective)
    state = State(run_id=uuid.uuid4().hex[:12], contract=contract)
    if found:
        state = checkpoint.load(accelerator, found, contract)
        if found.resolve().parents[1] != folder.resolve():  # another run's: its best model and its name stay there
            state.best, state.run_id = {}, uuid.uuid4().hex[:12]
        log.say(f"resumed from {found}")
    held_out = make_evaluation_plan(objective, settings)
    plan = plan_epoch(objective, settings, state.epoch)
    log.say(
        f"model: {fresh.num_parameters():,} parameters; an epoch: {plan.steps:,} steps of {options.rows_per_step} rows "
        f"of {objective.row_length} tokens, {plan.fill:.1%} full; {accelerator.num_processes} x "
        f"{torch.get_num_threads()} threads, {options.precision}, {options.kernel}, on {accelerator.device.type}"
    )
    if options.minutes is not None:
        log.say("the budget is in minutes: two such runs are never equal, and a resumed one is not exact")

    with log.running(settings, state):
        measured: list[dict[str, Tensor]] = []
        logged = (state.tokens, state.seconds)
        progress = progress_of(state, options, plan)
        if settings.init_from is not None and state.step == 0:  # what the checkpoint knows before it learns more
            held = evaluate(model, objective, held_out, options.micro_batch, accelerator)
            log.write({f"eval_{name}": value for name, value in held.items()}, 0, progress)
        while progress < 1:
            steps = Steps(
                objective,
                "train",
                state.epoch,
                plan,
                options.micro_batch,
                accelerator.process_index,
                accelerator.num_processes,
            )
            model.train()
            clock = time.perf_counter()
            for micro_batches in steps.since(state.step_in_epoch, options.workers, accelerator.device.type == "cuda"):
                rate = learning_rate(settings.optim, settings.model.hidden_size, state.step + 1, progress)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                measures, tokens = train_step(
                    model,
                    optimizer,
                    micro_batches,
                    objective,
                    accelerator,
                    settings.seed,
                    state.step,
                    options.max_grad_norm,
                )
                measured.append(measures)
                state.step += 1
                state.step_in_epoch += 1
                state.tokens += tokens
                state.seconds += time.perf_counter() - clock
                if options.minutes is not None:  # the main process's clock rules
                    state.seconds = broadcast_object_list([state.seconds])[0]
                progress = progress_of(state, options, plan)

                if state.step % settings.log.every == 0 or progress >= 1:
                    state.pending += collect(measured, accelerator)
                    means = {name: mean(step[name] for step in state.pending) for name in state.pending[0]}
                    means |= {
                        "learning_rate": rate,
                        "epoch": state.epoch + state.step_in_epoch / plan.steps,
                        "tokens": state.tokens,
                        "seconds": state.seconds,
                        "tokens_per_second": (state.tokens - logged[0]) / (state.seconds - logged[1]),
                    }
                    log.write(means, state.step, progress)
                    measured, state.pending, logged = [], [], (state.tokens, state.seconds)

                every = settings.evaluation.every
                if (every and state.step % every == 0) or progress >= 1:
                    held = evaluate(model, objective, held_out, options.micro_batch, accelerator)
                    state.evaluation = {f"eval_{name}": value for name, value in held.items()}
                    log.write(state.evaluation, state.step, progress)
                    value = held[objective.metric] if objective.lower_is_better else -held[objective.metric]
                    if not state.best or value < state.best["value"]:
                        state.best = {"step": state.step, "value": value, **state.evaluation}

                every = settings.checkpoint.every
                if (every and state.step % every == 0) or state.best.get("step") == state.step or progress >= 1:
                    state.pending += collect(measured, accelerator)
                    measured = []
                    checkpoint.save(accelerator, folder, state, settings.checkpoint.keep)
                if progress >= 1:
                    break
                clock = time.perf_counter()
            else:
                state.epoch, state.step_in_epoch = state.epoch + 1, 0
                plan = plan_epoch(objective, settings, state.epoch)

    step, told = state.step, state.evaluation
    if settings.checkpoint.export == "best" and state.best:
        step = int(state.best["step"])
        told = {name: value for name, value in state.best.items() if name.startswith("eval_")}
        accelerator.load_state(str(folder / "checkpoints" / f"step-{step}"))
    exported = export(accelerator, model, objective, folder)
    if accelerator.is_main_process:
        opened = open_exported(exported, type(fresh))
        probe = Steps(objective, "validation", 0, held_out, micro_batch=4, rank=0, ranks=1)[0, 0.0][0]
        inputs = {name: value for name, value in probe.items() if name not in objective.targets}
        write_probe(opened, inputs, folder / "probe.safetensors")
        log.say(f"\n{state.step:,} steps, {state.tokens:,} tokens, {state.seconds:.0f} s of training")
        report(log, step, told, objective.samples(opened, settings.evaluation.samples), exported)
    accelerator.wait_for_everyone()


def make_contract(settings: Settings, objective: Objective) -> dict[str, Any]:
    """What a resumed run must have in common with the one that it continues."""
    model = {name: value for name, value in settings.model.to_dict().items() if name not in NOT_SET_BY_HAND}
    contract = {
        "seed": settings.seed,
        "the data's fingerprint": objective.fingerprint,
        "evaluation.examples": settings.evaluation.examples,
        "train.rows_per_step": settings.train.rows_per_step,
        "train.window": settings.train.window,
        **{f"model.{name}": value for name, value in model.items()},
        **{f"objective.{name}": value for name, value in asdict(settings.objective).items()},
    }
    if settings.init_from is not None:  # whose table may have more rows than the tokenizer has entries
        contract["model.vocab_size"] = settings.model.vocab_size
    return json.loads(json.dumps(contract))


def report(log: Log, step: int, measures: dict[str, float], samples: list[str], model: Path) -> None:
    """The last words of a run: how good the exported weights are, what they do, where they are, how to open them."""
    log.say(f"held out, the weights of step {step:,}:")
    for name, value in measures.items():
        log.say(f"  {name.removeprefix('eval_'):14} {value:.4f}")
    for sample in samples:
        log.say(f"  {sample}")
    log.say(
        f"\nthe model is in {model}; it opens anywhere with\n"
        "  from transformers import AutoModel, AutoTokenizer\n"
        f'  tokenizer = AutoTokenizer.from_pretrained("{model}", trust_remote_code=True)\n'
        f'  model = AutoModel.from_pretrained("{model}", trust_remote_code=True)'
    )
