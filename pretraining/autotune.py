"""How this machine computes: precision, kernels, linear layers, threads and micro-batch, found by a short trial."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, send_to_device
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from pretraining import checkpoint
from pretraining.batches import Steps
from pretraining.data.plan import Plan
from pretraining.data.shards import count_processes
from pretraining.launch import DTYPES, set_numerics
from pretraining.objectives.base import Batch, Objective
from pretraining.onednn import choose_linear, has_onednn_linear, matrix_product
from pretraining.settings import Settings

AUTOTUNED = ("precision", "kernel", "linear", "threads", "micro_batch")
AnySettings = TypeVar("AnySettings", bound=Settings)
ROWS = 8  # Rows of a batch on which candidates are timed.
# A comparison has at least ROUNDS rounds, then more until the last ROUNDS agree, or MOST_ROUNDS or SECONDS are spent.
ROUNDS = 3
MOST_ROUNDS = 15
SECONDS = 15.0
BUSY = 1.5  # In a calm round no candidate takes more than so many times its own shortest time.
LONG = 1.0  # A run of so many seconds needs no other one before it that warms up.
TIE = 0.95  # Candidates whose times differ by less are equally fast: what is left is noise.
CLEARLY = 0.8  # The other precision must need less than this share of the time to be taken.
# Another process on the same core takes at most half of it, so a candidate slower than this was not merely disturbed.
HOPELESS = 2.0
TOO_LARGE = 1.5  # A micro-batch whose rows cost so many times the cheapest ones has outgrown the caches, or memory.


def with_choice(settings: AnySettings, choice: dict[str, Any], names: Iterable[str] = AUTOTUNED) -> AnySettings:
    """The settings with what a run's autotune chose for those of these `train.*` that are auto."""
    chosen = {f"train.{name}": choice[name] for name in names if getattr(settings.train, name) == "auto"}
    return settings.changed(chosen)


def as_autotuned(settings: AnySettings, folders: Iterable[Path], names: Iterable[str] = AUTOTUNED) -> AnySettings:
    """The settings with what the first of the runs in these folders that has a checkpoint chose at its start."""
    for folder in folders:
        if found := checkpoint.find(folder):
            return with_choice(settings, checkpoint.read_state(found[-1]).autotuned, names)
    return settings


class Candidate(NamedTuple):
    """One way to compute, in the words of the settings `train.*`."""

    precision: str
    kernel: str
    linear: str
    threads: int

    def __str__(self) -> str:
        return f"{self.precision} {self.kernel} {self.linear} {self.threads} threads"


T = TypeVar("T")


class Comparison(NamedTuple, Generic[T]):
    """What a comparison of candidates gave."""

    choice: T
    best: dict[T, float]
    """The shortest time of each candidate, in seconds."""
    rounds: int
    agreed: bool
    """The last rounds have the same winner."""

    def describe(self, unit: str = "") -> str:
        """The choice, and how clear it was."""
        (runner_up, *_) = [*sorted(set(self.best) - {self.choice}, key=self.best.__getitem__), None]
        line = f"{self.choice}, {1000 * self.best[self.choice]:,.2f} ms{unit}"
        if runner_up is not None:
            ratio = self.best[runner_up] / self.best[self.choice]
            line += f"; next of {len(self.best)}: {runner_up}, {ratio:.2f} times as long"
        return f"{line}; {self.rounds} rounds" + ("" if self.agreed else " that did not agree: the machine is busy")


def has_bf16_units(device: torch.device) -> bool:
    """The device multiplies matrices of bf16 by instructions made for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def candidates(settings: Settings, device: torch.device, cores: int) -> list[Candidate]:
    """Every way to compute that the settings leave open and the device has, the usual one first."""
    train, on_cpu = settings.train, device.type == "cpu"
    open_to: dict[str, list] = {
        "threads": [cores, cores // 2] if on_cpu and cores > 1 else [cores],
        "precision": ["fp32", "bf16"] if device.type in ("cpu", "cuda") else ["fp32"],
        "kernel": ["sdpa", "eager"] if on_cpu else ["sdpa", "eager", "varlen"],
        "linear": ["torch", "onednn"],
    }
    given = {name: getattr(train, name) for name in open_to}
    choices = [values if given[name] == "auto" else [given[name]] for name, values in open_to.items()]

    def is_possible(candidate: Candidate) -> bool:
        onednn = on_cpu and candidate.precision == "fp32" and not train.compile and has_onednn_linear()
        varlen = candidate.precision != "fp32" and not settings.model.attention_probs_dropout_prob
        possible = {"onednn": onednn, "varlen": varlen}
        return all(possible.get(value, True) or given[name] != "auto" for name, value in candidate._asdict().items())

    every = [Candidate(**dict(zip(open_to, values, strict=True))) for values in product(*choices)]
    return [candidate for candidate in every if is_possible(candidate)]


def choose(times: dict[Candidate, float], precision: str) -> Candidate:
    """The fastest in `precision`, which the device is made for, unless that one is clearly slower than others.

    Of equally fast candidates the first one, which is the usual one.
    """
    preferred = {candidate: taken for candidate, taken in times.items() if candidate.precision == precision} or times
    if min(times.values()) < CLEARLY * min(preferred.values()):
        preferred = times
    fastest = min(preferred.values())
    return next(candidate for candidate, taken in preferred.items() if TIE * taken <= fastest)


def cheapest(times: dict[T, float]) -> T:
    return min(times, key=times.__getitem__)


def agree(history: list[dict[T, float]], best: dict[T, float], choose: Callable[[dict[T, float]], T]) -> bool:
    """The last ROUNDS rounds have the same winner, and no candidate was disturbed in them."""
    choice = choose(best)
    for times in history[-ROUNDS:]:
        has_won = TIE * times.get(choice, float("inf")) <= times[choose(times)]
        is_calm = all(taken <= BUSY * best[candidate] for candidate, taken in times.items())
        if not has_won or not is_calm:
            return False
    return len(history) >= ROUNDS


def compare(
    candidates: list[T],
    seconds: Callable[[T], float],
    choose: Callable[[dict[T, float]], T],
    after_round: Callable[[T], object] = lambda choice: None,
    growing: bool = False,
) -> Comparison[T]:
    """Times the candidates by turns, in rounds, until the rounds agree about the winner; the shortest times count.

    Other work on the machine comes and goes: within a round it hits some candidates and spares others, but hardly the
    same ones round after round. All processes of the run take part, and the main one's times hold for all.

    Args:
        seconds: the time of one turn of a candidate.
        choose: the winner, from the times of all.
        after_round: is called with the winner up to then.
        growing: the candidates grow; one that is TOO_LARGE ends its round.
    """
    best: dict[T, float] = {}
    history: list[dict[T, float]] = []
    started, spent = perf_counter(), 0.0
    while True:
        times: dict[T, float] = {}
        # Another candidate begins each round, so that work that comes at a steady beat hits all of them.
        first = 0 if growing else len(history) % len(candidates)
        for candidate in candidates[first:] + candidates[:first]:
            is_tried = len(history) >= ROUNDS or spent > SECONDS
            if is_tried and not growing and best.get(candidate, 0.0) > HOPELESS * min(best.values()):
                continue
            times[candidate] = seconds(candidate)
            smaller = [min(taken, best.get(other, taken)) for other, taken in times.items()]
            if growing and smaller[-1] > TOO_LARGE * min(smaller):
                break
        # All processes stop after the same round.
        times, spent = broadcast_object_list([times, perf_counter() - started])
        history.append(times)
        for candidate, taken in times.items():
            best[candidate] = min(taken, best.get(candidate, taken))
        choice, agreed = choose(best), agree(history, best, choose)
        after_round(choice)
        is_enough = len(history) == MOST_ROUNDS or (len(history) >= ROUNDS and spent > SECONDS)
        is_long = len(history) > 1 and spent > 3 * SECONDS  # a round of a large model may take minutes
        if agreed or is_enough or is_long:
            return Comparison(choice, best, len(history), agreed)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_run(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = perf_counter()
    run()
    synchronize(device)
    return perf_counter() - start


def measure_peak(device: torch.device, precision: str, linear: str = "torch", seconds: float = 0.5) -> float:
    """FLOP/s of a product of two large square matrices: what this machine gives at best, in that time.

    The matrices grow until a product takes 5 ms, for what takes less is largely overhead.
    """
    size = 8192 if device.type == "cuda" else 1024
    multiply = matrix_product if linear == "onednn" else torch.matmul
    while True:
        x = torch.randn(size, size, device=device, dtype=DTYPES[precision])
        started = perf_counter()
        times: list[float] = []
        while len(times) < 2 or perf_counter() - started < seconds:
            times.append(time_run(partial(multiply, x, x), device))
        if min(times) > 0.005 or size >= 8192:
            return 2 * size**3 / min(times)
        size *= 2


class Trial:
    """A model and a step's rows of the run, computed by one candidate after another."""

    def __init__(self, model: PreTrainedModel, objective: Objective, plan: Plan, ranks: int, device: torch.device):
        model.to(device)  # type: ignore[arg-type]
        self.model, self.objective, self.device = model.train(), objective, device
        self.steps = Steps(objective.examples, "train", 0, plan, 2**31, 0, ranks)
        self.share = self.steps.micro_batch
        """The rows of a step that fall to one process: no micro-batch is larger."""
        self.targets = tuple(self.batch(1).targets)
        self.inputs: dict[int, dict[str, Any]] = {}
        """What the model reads of so many rows."""
        self.warm: set[tuple[Candidate, int]] = set()
        """Candidates that have computed so many rows."""
        self.peaks: dict[Candidate, float] = {}
        """FLOP/s of each candidate's matrix products, the highest of all moments in which they were measured."""

    def batch(self, rows: int) -> Batch:
        return self.steps.batch((self.steps.plan.step(0) * rows)[:rows], 0.0)

    def to_inputs(self, batch: Batch) -> dict[str, Any]:
        return self.objective.head.to_model_inputs(send_to_device(batch.tensors, self.device))

    def run(self, inputs: dict[str, Any]) -> None:
        """Forward and backward."""
        counts = {name: torch.ones((), device=self.device) for name in self.targets}
        self.model(**inputs, num_items_in_batch=counts).loss.backward()
        self.model.zero_grad()

    @contextmanager
    def computing(self, candidate: Candidate) -> Iterator[None]:
        """The model computes as the candidate does; products of fp32 are torch's again afterwards."""
        torch.set_num_threads(candidate.threads)
        self.model.set_attn_implementation(candidate.kernel)
        choose_linear(self.model, candidate.linear)
        half = candidate.precision != "fp32"
        try:
            with torch.autocast(self.device.type, DTYPES[candidate.precision]) if half else nullcontext():
                yield
        finally:
            choose_linear(self.model, "torch")

    def seconds(self, candidate: Candidate, rows: int) -> float:
        """Of one forward and backward over `rows` rows; infinite where they do not fit."""
        if rows not in self.inputs:
            self.inputs[rows] = self.to_inputs(self.batch(rows))
        with self.computing(candidate):
            try:
                taken = time_run(lambda: self.run(self.inputs[rows]), self.device)
                if (candidate, rows) not in self.warm and taken < LONG:  # it has compiled kernels and taken memory
                    taken = time_run(lambda: self.run(self.inputs[rows]), self.device)
            except torch.OutOfMemoryError:
                self.model.zero_grad()
                return float("inf")
        self.warm.add((candidate, rows))
        return taken

    def measure_peak(self, candidate: Candidate) -> float:
        """The highest FLOP/s of the candidate's matrix products up to this moment."""
        torch.set_num_threads(candidate.threads)
        now = measure_peak(self.device, candidate.precision, candidate.linear, seconds=0.05)
        self.peaks[candidate] = max(now, self.peaks.get(candidate, 0.0))
        return self.peaks[candidate]

    def flops(self) -> float:
        """Floating-point operations of a step's token, forward and backward: those of its matrix products."""
        batch = self.batch(1)
        plain = Candidate("fp32", "eager", "torch", torch.get_num_threads())
        with FlopCounterMode(display=False) as counter, self.computing(plain):
            self.run(self.to_inputs(batch))
        return counter.get_total_flops() / batch.units


def autotune(
    settings: Settings, model: PreTrainedModel, objective: Objective, plan: Plan, process: PartialState
) -> tuple[dict[str, Any], str]:
    """What is still `auto` among a run's precision, kernel, linear layers, threads and micro-batch.

    Found on the run's own model and rows. All processes take part together, as they will compute together.

    Returns:
        All five, with the FLOPs of a token and the machine's peak in FLOP/s; and lines that tell how clear the choices
        were, "" where there was nothing to choose.
    """
    device = process.device
    set_numerics(settings, device)
    trial = Trial(model, objective, plan, process.num_processes, device)
    every = candidates(settings, device, count_processes(0))
    best, size, lines = every[0], settings.train.micro_batch, []
    if len(every) > 1:
        precision, rows = "bf16" if has_bf16_units(device) else "fp32", min(ROWS, trial.share)
        of_candidates = compare(
            every,
            lambda candidate: trial.seconds(candidate, rows),
            lambda times: choose(times, precision),
            trial.measure_peak,
        )
        best = of_candidates.choice
        lines.append(f"autotune: {of_candidates.describe()}")
    if size == "auto":
        sizes = [*(2**i for i in range(trial.share.bit_length()) if 2**i < trial.share), trial.share]
        of_sizes = compare(
            sizes,
            lambda size: trial.seconds(best, size) / size,
            cheapest,
            lambda _: trial.measure_peak(best),
            growing=True,
        )
        size = of_sizes.choice
        lines.append(f"autotune: micro-batch {of_sizes.describe(' a row')}")
    trial.measure_peak(best)  # once before and once after the count, lest it be of a single moment
    flops = trial.flops()
    result = {**best._asdict(), "micro_batch": size, "flops_per_token": flops, "peak": trial.measure_peak(best)}
    result = broadcast_object_list([result])[0]
    torch.set_num_threads(result["threads"])
    return result, "\n".join(lines)
