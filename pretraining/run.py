"""A run before and after its loop: what is claimed, checked, prepared and built, and what is handed over at the end."""

import copy
import json
import logging
import math
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from pretraining import checkpoint, files
from pretraining.autotune import autotune, with_choice
from pretraining.batches import Steps
from pretraining.checkpoint import State
from pretraining.data.cache import check_cache
from pretraining.data.plan import Plan, make_plan
from pretraining.environment import record_end, record_start
from pretraining.evaluate import evaluate, held_out_batches, make_evaluation_plan
from pretraining.export import export, how_to_open, open_exported, write_reference, write_whole
from pretraining.launch import check_scale, make_accelerator, make_process, set_allocator
from pretraining.log import Log, report
from pretraining.objectives.base import Objective
from pretraining.onednn import choose_linear
from pretraining.optim import learning_rate, make_average, make_optimizer
from pretraining.publish.while_training import Pushes
from pretraining.settings import NOT_SET_BY_HAND, Settings
from pretraining.signals import Signals

# Settings of the loop and the optimizer that a resumed run must keep: they decide what a step sees, and what its state
# is of.
TRAIN_CONTRACT = ("rows_per_step", "rows_at_start", "batch_warmup", "phases", "window")
OPTIM_CONTRACT = ("optimizer", "layer_decay", "ema")


@dataclass
class Phase:
    """A part of the run that has settings of its own; most runs have one."""

    settings: Settings
    objective: Objective
    end: float
    """The share of the budget at which it ends."""

    @property
    def micro_batch(self) -> int:
        assert isinstance(self.settings.train.micro_batch, int), "autotuned"
        return self.settings.train.micro_batch

    def plan_epoch(self, state: State) -> Plan:
        """The rows and steps of the state's epoch, equal on every process."""
        examples, train = self.objective.examples, self.settings.train
        first = state.step - state.step_in_epoch  # the epoch's first step, counted from the run's
        index = examples.index("train", state.epoch)
        return make_plan(
            index,
            examples.lengths("train", state.epoch, index),
            examples.row_lengths,
            lambda step: train.rows(first + step),
            train.window,
            self.settings.seed,
            state.epoch,
        )


@dataclass
class Run:
    """What the stages of a run leave behind for one another."""

    settings: Settings
    phases: list[Phase]
    log: Log
    pushes: Pushes
    accelerator: Accelerator
    model: nn.Module
    """The model as Accelerate wraps it for training."""
    unwrapped: PreTrainedModel
    eval_model: nn.Module
    """The model that is evaluated and handed over: unwrapped, or the average of its weights. Not DDP's wrapper, whose
    calls are calls of all processes, and which has no method but `forward`."""
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    """The moving average of the weights."""
    state: State
    plan: Plan
    """The rows and steps of the epoch."""
    evaluation_plan: Plan
    progress: float = 0.0
    """Share of the budget that is spent, 0 to 1."""
    rate: float = 0.0
    """The learning rate of the last step."""
    recent: list[dict[str, Tensor]] = field(default_factory=list)
    """This process's part of the metrics of the last steps, still on the device."""
    logged: tuple[int, float] = (0, 0.0)
    """Units seen and seconds trained at the last log line."""
    clock: float = field(default_factory=time.perf_counter)
    """When the step that is computed now began."""
    signals: Signals = field(default_factory=Signals)

    @property
    def phase(self) -> Phase:
        return self.phases[self.state.phase]

    @property
    def objective(self) -> Objective:
        return self.phase.objective

    @property
    def exported(self) -> nn.Module:
        """The model that is written and handed over, as wrapped: where weights are cut, only the wrapper finds them."""
        return self.model if self.average is None else self.eval_model

    def progress_before(self, step: int) -> float:
        """Share of the budget that is spent before the epoch's step `step`; in minutes: that is spent now."""
        state, options = self.state, self.settings.train
        ahead = step - state.step_in_epoch
        if options.steps is not None:
            spent, budget = float(state.step + ahead), float(options.steps)
        elif options.epochs is not None:
            spent, budget = state.passes + step / self.plan.steps, options.epochs
        elif options.tokens is not None:
            tokens = self.plan.tokens_before[step] - self.plan.tokens_before[state.step_in_epoch]
            spent, budget = float(state.tokens + tokens), float(options.tokens)
        else:
            assert options.minutes is not None
            spent, budget = state.seconds / 60, options.minutes
        return min(1.0, spent / budget)

    def evaluate(self, final: bool = False) -> dict[str, float]:
        """The metrics of the held-out examples; `final` as in `evaluate.evaluate`."""
        options = self.phase.settings.train
        return evaluate(self.eval_model, self.objective, self.evaluation_plan, options, self.accelerator, final)

    def push(self) -> None:
        """Begins to push the model as it is now; every process calls this."""
        weights = self.accelerator.get_state_dict(self.exported)
        model, head = self.accelerator.unwrap_model(self.exported), self.objective.head
        state = self.state
        self.pushes.begin(lambda folder: write_whole(model, head, weights, folder), state.step, state.evaluation)

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps is done now; at the run's end, everything is."""
        return bool(every and self.state.step % every == 0) or self.progress >= 1

    def learning_rate(self) -> float:
        """The rate of the next step: a function of where the run is, so that a resumed run needs no scheduler."""
        settings = self.settings
        return learning_rate(settings.optim, settings.model.hidden_size, self.state.step + 1, self.progress)

    def set_learning_rate(self) -> None:
        self.rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["scale"]

    def begin_epoch(self) -> None:
        state = self.state
        state.passes += state.step_in_epoch / self.plan.steps
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        self.plan = self.phase.plan_epoch(state)

    def enter_phase(self, number: int) -> None:
        """Goes on with the settings of another phase, in an epoch of its own."""
        before = [phase.objective.examples for phase in self.phases[: self.state.phase + 1]]
        self.state.phase, self.state.best, self.state.stale = number, {}, 0  # its evaluations are of other examples
        self.objective.head.enter_phase(self.unwrapped, before)
        if self.average is not None:
            self.objective.head.enter_phase(self.average.module, before)
        self.log.say(f"step {self.state.step}: phase {number + 1} of {len(self.phases)}")
        self.evaluation_plan = make_evaluation_plan(self.objective.examples, self.phase.settings)
        self.begin_epoch()


@contextmanager
def claim(settings: Settings) -> Iterator[tuple[PartialState, Path | None]]:
    """The run's folder is ours: this process among the others, and the checkpoint that the run goes on from.

    Claiming comes first: a second launch hears of it before hours of preparing data, and what it would choose among the
    checkpoints of a run that goes on is old by then.
    """
    transformers_logging.disable_progress_bar()  # for saving and loading: a bar of an instant
    # That the tied decoder is stored once is no news, and the log would say it at every checkpoint.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    process = make_process()
    folder = settings.folder
    with checkpoint.claim(folder) if process.is_main_process else nullcontext():
        chosen = [checkpoint.choose(folder, settings.resume)] if process.is_main_process else [None]
        yield process, broadcast_object_list(chosen)[0]


def start(settings: Settings, objective: Objective, process: PartialState, source: Path | None) -> Run:
    """All that comes before the first step: contract, data, model, autotune, wrapping, restoring.

    Args:
        source: the checkpoint that the run goes on from.

    Raises:
        UserError: whatever is wrong with settings, data or checkpoint.
    """
    log = Log(process, settings.folder, settings.log)
    pushes = Pushes(settings.hub, settings.folder, log.say, process.is_main_process)
    pushes.check()
    if line := set_allocator(settings.train.allocator, process.device):
        log.say(line)
    state = checkpoint.read_state(source) if source else State()
    contract = settings_contract(settings, objective)
    if source:
        checkpoint.check_contract(source, state, contract)  # before hours of preparation, not after

    if process.is_local_main_process:
        check_cache(Path(settings.cache).expanduser())
    described = objective.examples.prepare(is_builder=process.is_local_main_process)
    for line in described:
        log.say(line)
    phases = [Phase(phase, objective.for_phase(phase), end) for end, phase in settings.phases()]
    plan = phases[state.phase].plan_epoch(state)

    set_seed(settings.seed)
    model = objective.head.build_model(copy.deepcopy(settings.model))
    if settings.init_from is not None:
        log.say(objective.head.load_weights(model, settings.init_from))
    objective.head.adapt(model)
    contract |= data_contract(settings, phases, model)

    # How to compute is chosen once for a run, whatever of it is `auto`, on the longest rows that it will have.
    autotuned = state.autotuned
    if not autotuned:
        longest = max(phases, key=lambda phase: sum(phase.objective.examples.row_lengths))
        autotuned, line = autotune(longest.settings, model, longest.objective, longest.plan_epoch(State()), process)
        if line:
            log.say(line)
    settings = with_choice(settings, autotuned)
    for phase, (_, tuned) in zip(phases, settings.phases(), strict=True):
        phase.settings = tuned

    options = settings.train
    assert isinstance(options.threads, int)
    torch.set_num_threads(options.threads)
    accelerator = make_accelerator(settings)
    check_scale(accelerator, settings)
    model.set_attn_implementation(options.kernel)
    average = make_average(model, settings.optim.ema) if settings.optim.ema else None
    choose_linear(model, options.linear)
    if options.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if options.compile:
        model.compile()
    wrapped, optimizer = accelerator.prepare(model, make_optimizer(model, settings.optim, options.precision))
    eval_model = accelerator.unwrap_model(wrapped) if average is None else average.to(accelerator.device).module

    if source:
        checkpoint.load(accelerator, optimizer, source, state, contract, average)
        log.say(adopt(state, source, settings))
    else:
        state = State(run_id=uuid.uuid4().hex[:12], contract=contract, autotuned=autotuned)
    phase = phases[state.phase]
    run = Run(
        settings=settings,
        phases=phases,
        log=log,
        pushes=pushes,
        accelerator=accelerator,
        model=wrapped,
        unwrapped=model,
        eval_model=eval_model,
        optimizer=optimizer,
        average=average,
        state=state,
        plan=plan,
        evaluation_plan=make_evaluation_plan(phase.objective.examples, phase.settings),
        logged=(state.tokens, state.seconds),
    )
    describe(run)
    if process.is_main_process:
        facts = {"data": described, "fingerprint": contract["the data's fingerprint"]}
        record_start(settings.folder, state.step, accelerator, facts | {"parameters": model.num_parameters()})
    patience = settings.evaluation.patience
    run.progress = 1.0 if patience and state.stale >= patience else run.progress_before(state.step_in_epoch)
    rate = run.learning_rate()
    if state.next_rate is not None and not math.isclose(rate, state.next_rate):
        log.say(f"step {state.step}: the learning rate would have been {state.next_rate:.2e}, and is {rate:.2e}")
    return run


def settings_contract(settings: Settings, objective: Objective) -> dict[str, Any]:
    """The settings and libraries that a resumed run must have in common with the one that it continues."""
    model = {name: value for name, value in settings.model.to_dict().items() if name not in NOT_SET_BY_HAND}
    task = {
        name: value
        for name, value in asdict(settings.objective).items()
        if name not in settings.objective.resume_exempt
    }
    contract: dict[str, Any] = {
        "seed": settings.seed,
        **{f"the version of {name}": version(name) for name in objective.examples.libraries},
        "evaluation.examples": settings.evaluation.examples,
        **{f"train.{name}": getattr(settings.train, name) for name in TRAIN_CONTRACT},
        **{f"optim.{name}": getattr(settings.optim, name) for name in OPTIM_CONTRACT},
        **{f"model.{name}": value for name, value in model.items()},
        **{f"objective.{name}": value for name, value in task.items()},
    }
    return json.loads(json.dumps(contract))


def data_contract(settings: Settings, phases: list[Phase], model: PreTrainedModel) -> dict[str, Any]:
    """What only the prepared data and the model can say of the same."""
    contract: dict[str, Any] = {
        "the data's fingerprint": " ".join(phase.objective.examples.fingerprint for phase in phases)
    }
    if settings.init_from is not None and settings.tokenizer is not None:
        # The checkpoint's table may have more rows than the tokenizer has entries.
        contract["model.vocab_size"] = model.config.vocab_size
    contract["init_from"] = settings.init_from  # last: where two checkpoints differ in more, that is told
    return contract


def adopt(state: State, source: Path, settings: Settings) -> str:
    """Makes the checkpoint's state this run's; returns a line that says which checkpoint it is."""
    # Another run's best model and its name for trackers stay with that run.
    if source.resolve().parents[1] != settings.folder.resolve():
        state.best, state.run_id = {}, uuid.uuid4().hex[:12]
    origin = ""
    if settings.resume != "auto":
        state.begun_from = str(Path(settings.resume).resolve())
        origin = "" if state.begun_from == str(source.resolve()) else f", which has come of {settings.resume}"
    return f"resumed from {source}{origin}"


def describe(run: Run) -> None:
    """Says what is trained, in which rows, and how."""
    options, phase = run.settings.train, run.phase
    lengths, unit = phase.objective.examples.row_lengths, run.settings.objective.unit
    rows = unit
    if max(lengths) > 1:
        examples = len(run.plan.examples) / run.plan.steps
        rows = f"rows of {' + '.join(map(str, lengths))} {unit}, {run.plan.fill:.1%} full ({examples:,.0f} examples)"
    run.log.say(
        f"model: {run.unwrapped.num_parameters():,} parameters; an epoch: {run.plan.steps:,} steps of "
        f"{phase.settings.train.rows_per_step} {rows}; {run.accelerator.num_processes} x {torch.get_num_threads()} "
        f"threads, {options.precision}, {options.kernel}, micro-batches of {phase.micro_batch}, on "
        f"{run.accelerator.device.type}"
    )
    if options.minutes is not None:
        run.log.say("the budget is in minutes: two such runs are never equal, and a resumed one is not exact")


def finish(run: Run) -> None:
    """Hands the model over: best, last or mean weights, their final metrics, `model/`, and a report."""
    step = choose_weights(run)
    objective, folder, index = run.objective, run.settings.folder, run.evaluation_plan.examples
    run.eval_model.eval()
    batches = held_out_batches(objective, run.evaluation_plan, run.phase.settings.train, run.accelerator)
    with torch.no_grad(), run.accelerator.autocast():
        if line := objective.scoring.calibrate(run.eval_model, batches, run.accelerator):
            run.log.say(line)
    metrics = {f"eval_{name}": value for name, value in run.evaluate(final=True).items()}
    exported = export(run.accelerator, run.exported, objective.head, folder)
    if run.accelerator.is_main_process:
        model = open_exported(exported, type(run.unwrapped))
        steps = Steps(objective.examples, "validation", 0, run.evaluation_plan, micro_batch=4, rank=0, ranks=1)
        batch = steps[0, 0.0][0]
        inputs = objective.head.to_model_inputs(batch.tensors)
        unlabelled = {name: x for name, x in inputs.items() if name not in (*batch.targets, "logits_to_keep")}
        write_reference(model, unlabelled, exported, folder / files.REFERENCE)
        signatures = objective.scoring.signatures
        state, unit = run.state, run.settings.objective.unit
        results = {"step": step, "examples": len(index), **metrics, "signatures": signatures}
        results |= objective.examples.results
        files.write_text(folder / "results.json", files.to_json(results, indent=1))
        # Not among the results: those of an equal run are equal.
        record_end(folder, {"steps": state.step, unit: state.tokens, "seconds": state.seconds})
        say = run.log.say
        say(f"\n{state.step:,} steps, {state.tokens:,} {unit}, {state.seconds:.0f} s of training")
        say(report(step, len(index), metrics, signatures))
        for path in objective.scoring.draw_pictures(folder):
            say(f"  drawn: {path}")
        for sample in objective.scoring.samples(model, run.settings.evaluation.samples):
            say(f"  {sample}")
        say(how_to_open(model, objective.head.inputs, exported))
    run.accelerator.wait_for_everyone()
    run.pushes.end(lambda snapshot: shutil.copytree(exported, snapshot), step, metrics)  # nobody waits for this one


def choose_weights(run: Run) -> int:
    """Gives the model the weights that are handed over; returns the step that they are of."""
    state, options, folder = run.state, run.settings.checkpoint, run.settings.folder
    if options.export == "best" and state.best:
        step = int(state.best["step"])
        checkpoint.restore(run.accelerator, folder / "checkpoints" / f"step-{step}", run.average)
        return step
    if options.export == "best":
        run.log.say(
            f"no evaluation gave a number: the weights of the last step, {state.step}, are handed over, not the best"
        )
    elif options.export == "average":
        newest = checkpoint.find(folder)[-options.keep :]
        checkpoint.mean_weights(run.accelerator, run.eval_model, run.average, newest)
        run.log.say(f"the mean of {', '.join(path.name for path in newest)}")
    return state.step
