"""The trial at the start: what is tried, what is chosen on a quiet machine and on a busy one, and the peak."""

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState

from pretraining import autotune as module
from pretraining.autotune import (
    AUTOTUNED,
    Candidate,
    Trial,
    autotune,
    candidates,
    choose,
    compare,
    has_bf16_units,
    measure_peak,
)
from pretraining.checkpoint import State
from pretraining.cli import parse
from pretraining.data.plan import Plan
from pretraining.objectives.base import Objective
from pretraining.onednn import has_onednn_linear
from pretraining.run import Phase

GIVEN = ["--train.steps=1", "--train.precision=auto", "--train.kernel=auto", "--train.linear=auto"]


def plan_of(objective: Objective) -> Plan:
    return Phase(objective.examples.run, objective, end=1.0).plan_epoch(State())


def tried(device: str, *more: str) -> set[tuple[str, ...]]:
    settings = parse([*GIVEN, "--train.threads=1", *more])
    return {candidate[:3] for candidate in candidates(settings, torch.device(device), 4)}


def test_only_what_the_device_has_is_tried():
    first = candidates(parse(GIVEN), torch.device("cpu"), 4)[0]
    assert first == Candidate("fp32", "sdpa", "torch", 4)
    cpu = {("bf16", kernel, "torch") for kernel in ("sdpa", "eager")}
    linears = ("torch", "onednn") if has_onednn_linear() else ("torch",)
    assert tried("cpu") == cpu | {("fp32", kernel, one) for kernel in ("sdpa", "eager") for one in linears}
    assert tried("cpu", "--train.compile=true") == cpu | {("fp32", k, "torch") for k in ("sdpa", "eager")}
    assert tried("cpu", "--train.precision=bf16", "--train.kernel=eager") == {("bf16", "eager", "torch")}
    assert tried("cpu", "--train.linear=onednn", "--train.kernel=sdpa", "--train.precision=fp32") == {
        ("fp32", "sdpa", "onednn")
    }
    dropping = {(p, kernel, "torch") for p in ("fp32", "bf16") for kernel in ("sdpa", "eager")}
    assert tried("cuda") == dropping  # BERT's default has attention dropout, varlen has none
    assert tried("cuda", "--model.attention_probs_dropout_prob=0") == dropping | {("bf16", "varlen", "torch")}


def test_threads_are_tried_with_all_else():
    every = candidates(parse(GIVEN), torch.device("cpu"), 4)
    four, two = ([candidate[:3] for candidate in every if candidate.threads == threads] for threads in (4, 2))
    assert four == two and len(every) == len(four) + len(two)
    assert {candidate.threads for candidate in candidates(parse(GIVEN), torch.device("cpu"), 1)} == {1}
    assert {candidate.threads for candidate in candidates(parse(GIVEN), torch.device("cuda"), 4)} == {4}


TIMES = {
    ("fp32", "sdpa", "torch"): 1.0,
    ("fp32", "eager", "torch"): 0.97,  # a gain below what noise can bring
    ("bf16", "sdpa", "torch"): 2.0,
    ("bf16", "eager", "torch"): 0.5,
}


@pytest.fixture
def tune(make_objective, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """autotune() on a machine of four cores."""
    monkeypatch.setattr(module, "count_processes", lambda _: 4)
    threads = torch.get_num_threads()

    def tune(*more: str) -> tuple[dict, str]:
        objective = make_objective(*(f"--train.{name}=auto" for name in AUTOTUNED), *more)
        model = objective.head.build_model(objective.examples.run.model)
        return autotune(objective.examples.run, model, objective, plan_of(objective), PartialState())

    yield tune
    torch.set_num_threads(threads)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates' speed is TIMES, and rows of a micro-batch get cheaper up to four."""

    def seconds(trial, candidate: Candidate, rows: int) -> float:
        taken = TIMES.get(candidate[:3], 3.0) * (0.8 if candidate.threads == 2 else 1.0)
        return taken * rows * (2 if rows == 1 else 1.5 if rows == 2 else 1)

    monkeypatch.setattr(Trial, "seconds", seconds)


def test_the_fastest_candidate_is_taken_and_nothing_that_is_given_is_changed(tune, speeds):
    chosen, line = tune()
    assert chosen["precision"] == "bf16" and chosen["kernel"] == "eager" and chosen["linear"] == "torch"
    assert chosen["micro_batch"] == 4 and chosen["threads"] == torch.get_num_threads() == 2
    assert "bf16 eager torch 2 threads, 3,200.00 ms; next of" in line
    assert "bf16 eager torch 4 threads, 1.25 times as long; 3 rounds" in line
    chosen, _ = tune("--train.precision=fp32", "--train.threads=3", "--train.micro_batch=2")
    assert (chosen["precision"], chosen["kernel"]) == ("fp32", "sdpa")
    assert chosen["threads"] == torch.get_num_threads() == 3 and chosen["micro_batch"] == 2


def test_nothing_is_tried_where_all_is_given(tune, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Trial, "seconds", lambda *_: pytest.fail("a trial"))
    fixed = ["--train.precision=fp32", "--train.kernel=eager", "--train.linear=torch", "--train.threads=1"]
    chosen, line = tune(*fixed, "--train.micro_batch=3")
    assert line == "" and chosen["peak"] > 0 and chosen["flops_per_token"] > 0


def test_units_for_bf16_are_seen(monkeypatch: pytest.MonkeyPatch):
    cpu, information = torch.device("cpu"), Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and information.exists():
        assert has_bf16_units(cpu) == any(name in information.read_text() for name in ("avx512_bf16", "amx_bf16"))
    for units in ({}, {"avx512_f": True, "avx512_bf16": False}, {"amx_bf16": True}, {"bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert has_bf16_units(cpu) == (units in ({"amx_bf16": True}, {"bf16": True}))
    assert not has_bf16_units(torch.device("mps"))


def test_the_precision_of_the_processor_is_left_only_for_a_clear_gain():
    fp32, bf16 = Candidate("fp32", "sdpa", "onednn", 2), Candidate("bf16", "eager", "torch", 2)
    half = bf16._replace(precision="fp16")
    assert choose({fp32: 0.9, bf16: 1.0}, "bf16") == bf16
    assert choose({fp32: 0.7, bf16: 1.0}, "bf16") == fp32
    assert choose({fp32: 1.0, bf16: 0.9}, "fp32") == fp32
    assert choose({fp32: 1.0, bf16: 0.7}, "fp32") == bf16
    assert choose({half: 1.0}, "bf16") == half  # given, so there is no other


class Busy:
    """A clock, and other work that comes and goes: while it is there, each core that it needs is half as fast."""

    def __init__(self, seed: int, share: float):
        random = np.random.default_rng(seed)
        pauses = random.exponential([2 * (1 - share) / share, 2.0], size=(500, 2))
        self.changes = np.cumsum(pauses)  # from idle to busy and back
        self.now = random.uniform(0, self.changes[100])

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float, slower: float) -> float:
        """The time that `seconds` of work take, where other work makes it so many times slower."""
        started = self.now
        while seconds > 0:
            state = int(np.searchsorted(self.changes, self.now, side="right"))
            speed = 1 / slower if state % 2 else 1.0
            spell = min(seconds / speed, self.changes[state] - self.now + 1e-9)
            self.now, seconds = self.now + spell, seconds - spell * speed
        return self.now - started


# Seconds of candidates on an idle machine. Other work takes one core: what runs on the other one does not notice.
IDLE = {
    Candidate("fp32", "sdpa", "torch", 2): 0.36,
    Candidate("fp32", "eager", "torch", 2): 0.30,
    Candidate("bf16", "sdpa", "torch", 2): 0.20,
    Candidate("bf16", "eager", "torch", 2): 0.16,
    Candidate("fp32", "sdpa", "torch", 1): 0.60,
    Candidate("fp32", "eager", "torch", 1): 0.55,
    Candidate("bf16", "sdpa", "torch", 1): 0.31,
    Candidate("bf16", "eager", "torch", 1): 0.28,
}


@pytest.mark.parametrize(("share", "wrong"), [(0.0, 0), (0.3, 0.01), (0.5, 0.03)])
def test_other_work_that_comes_and_goes_does_not_choose(share: float, wrong: float, monkeypatch: pytest.MonkeyPatch):
    """For that share of the time, in spells of two seconds on average, another process takes one of two cores."""
    PartialState()
    choices = []
    for seed in range(200):
        clock = Busy(seed, max(share, 1e-6))
        monkeypatch.setattr(module, "perf_counter", clock)

        def seconds(candidate: Candidate, clock: Busy = clock) -> float:
            return clock.work(IDLE[candidate], slower=2.5 if candidate.threads == 2 else 1.0)

        found = compare(list(IDLE), seconds, lambda times: choose(times, "bf16"))
        assert found.rounds == 3 or share, "a quiet machine needs no more"
        choices.append(found.choice)
    assert {choice.precision for choice in choices} == {"bf16"}
    assert sum(choice != min(IDLE, key=IDLE.__getitem__) for choice in choices) <= wrong * len(choices)


def test_growing_candidates_end_where_they_are_too_large():
    PartialState()
    turns: list[int] = []

    def seconds(size: int) -> float:
        turns.append(size)
        return {1: 2.0, 2: 1.0, 4: 1.2, 8: 1.6}[size]

    found = compare([1, 2, 4, 8, 16, 32], seconds, lambda times: min(times, key=times.__getitem__), growing=True)
    assert found.choice == 2 and set(turns) == {1, 2, 4, 8} and found.agreed
    assert found.describe(" a row") == "2, 1,000.00 ms a row; next of 4: 4, 1.20 times as long; 3 rounds"


def test_what_is_hopeless_gets_no_more_turns_and_what_disagrees_is_told(monkeypatch: pytest.MonkeyPatch):
    PartialState()
    turns = dict.fromkeys("abc", 0)

    def seconds(name: str) -> float:
        turns[name] += 1
        return {"a": 1.0, "b": 0.99 - 0.01 * turns["b"] if turns["b"] % 2 else 1.2, "c": 5.0}[name]

    found = compare(list("abc"), seconds, lambda times: min(times, key=times.__getitem__))
    assert turns["c"] == module.ROUNDS and turns["a"] == found.rounds == module.MOST_ROUNDS and not found.agreed
    assert found.choice == "b" and "did not agree" in found.describe()


DISTURBING = """
import random, sys, time
random.seed(int(sys.argv[1]))
while True:
    end = time.monotonic() + random.uniform(0.05, 0.5)
    while time.monotonic() < end:
        pass
    time.sleep(random.uniform(0, 0.5))
"""


@pytest.fixture
def disturbance() -> Iterator[None]:
    """As many processes as there are cores, each at work now and then."""
    command = [sys.executable, "-c", DISTURBING]
    running = [subprocess.Popen([*command, str(i)]) for i in range(module.count_processes(0))]
    yield
    for process in running:
        process.kill()
        process.wait()


def test_beside_real_processes_what_is_far_slower_is_not_taken(
    disturbance: None, tune: Callable, monkeypatch: pytest.MonkeyPatch
):
    """The usual kernel does what the other one does, and then sleeps for many times as long."""
    run = Trial.run

    def run_slowly(trial: Trial, inputs: dict) -> None:
        run(trial, inputs)
        if trial.model.config._attn_implementation == "sdpa":
            time.sleep(0.2)

    monkeypatch.setattr(module, "SECONDS", 2.0)
    monkeypatch.setattr(Trial, "run", run_slowly)
    given = ["--train.precision=fp32", "--train.linear=torch", "--train.threads=1", "--train.micro_batch=2"]
    chosen, line = tune(*given)
    assert chosen["kernel"] == "eager" and "next of 2: fp32 sdpa torch 1 threads" in line


def test_the_peak_is_that_of_the_chosen_precision_and_the_highest_of_all_moments(tune, speeds, monkeypatch):
    measured: list[tuple[str, str, int]] = []

    def peak(device: torch.device, precision: str, linear: str, seconds: float) -> float:
        measured.append((precision, linear, torch.get_num_threads()))
        return 100.0 - len(measured) if precision == "bf16" else 1000.0

    monkeypatch.setattr(module, "measure_peak", peak)
    chosen, _ = tune()
    assert len(measured) > 6 and set(measured) == {("bf16", "torch", 2)} and chosen["peak"] == 99.0


@pytest.mark.skipif(not has_onednn_linear(), reason="this torch has no oneDNN")
def test_a_peak_is_measured_by_the_products_of_the_linear_layers(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    product = module.matrix_product
    monkeypatch.setattr(module, "matrix_product", lambda x, y: calls.append("onednn") or product(x, y))
    assert measure_peak(torch.device("cpu"), "fp32", "torch", 0.0) > 0 and not calls
    assert measure_peak(torch.device("cpu"), "fp32", "onednn", 0.0) > 0 and calls


def test_flops_are_those_of_the_matrix_products(make_objective):
    """Against the count by hand (Kaplan 2020, 2.1): 6 for each weight a token meets, and the attention's scores."""
    objective = make_objective("--model.attention_probs_dropout_prob=0", "--objective.short_sequence_rate=0")
    plan = plan_of(objective)
    model = objective.head.build_model(objective.examples.run.model)
    trial = Trial(model, objective, plan, 1, torch.device("cpu"))
    batch = trial.batch(1)
    tokens, width = 64, 32
    masked = batch.targets["labels"]
    read = masked + plan.sequences_per_row
    layers = 2 * tokens * 4 * width**2 + (tokens + read) * 2 * width * 64 + 2 * 2 * tokens * tokens * width
    heads = masked * (width**2 + width * 1500) + plan.sequences_per_row * (width**2 + 2 * width)
    assert trial.flops() * batch.units == pytest.approx(6 * (layers + heads), rel=0.02)
