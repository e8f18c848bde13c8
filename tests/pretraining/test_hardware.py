"""How the machine computes: every way gives the same numbers, and the probe takes the fastest that is allowed."""

import pytest
import torch
from accelerate import PartialState
from pretraining.train import plan_epoch
from torch import nn
from torch.nn.functional import linear

from pretraining import hardware
from pretraining.checkpoint import State
from pretraining.cli import parse
from pretraining.hardware import choose_linear, has_onednn_linear, settle, ways


@pytest.mark.skipif(not has_onednn_linear(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_linear_is_linear_in_full_precision(bias: bool):
    torch.manual_seed(0)
    module = nn.Linear(48, 24, bias=bias)
    x = torch.randn(5, 7, 48, requires_grad=True)
    results = []
    for kind in ("torch", "onednn", "torch"):
        choose_linear(nn.Sequential(module), kind)
        out = module(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])])
    exact = linear(x.double(), module.weight.double(), None if module.bias is None else module.bias.double())
    for one, other, again in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert torch.equal(one, again), "the choice is not undone"
    assert (results[1][0] - exact).abs().max() < 1e-5
    assert "forward" not in vars(module) and type(module) is nn.Linear


GIVEN = ["--train.steps=1", "--train.precision=auto", "--train.kernel=auto", "--train.linear=auto"]


def found(device: str, *more: str) -> set[tuple[str, ...]]:
    return {tuple(way.values()) for way in ways(parse([*GIVEN, *more]), torch.device(device))}


def test_only_what_the_device_has_is_tried():
    assert ways(parse(GIVEN), torch.device("cpu"))[0] == {"precision": "fp32", "kernel": "sdpa", "linear": "torch"}
    cpu = {("bf16", kernel, "torch") for kernel in ("sdpa", "eager")}
    linears = ("torch", "onednn") if has_onednn_linear() else ("torch",)
    assert found("cpu") == cpu | {("fp32", kernel, one) for kernel in ("sdpa", "eager") for one in linears}
    assert found("cpu", "--train.compile=true") == cpu | {("fp32", k, "torch") for k in ("sdpa", "eager")}
    assert found("cpu", "--train.precision=bf16", "--train.kernel=eager") == {("bf16", "eager", "torch")}
    assert found("cpu", "--train.linear=onednn", "--train.kernel=sdpa", "--train.precision=fp32") == {
        ("fp32", "sdpa", "onednn")
    }
    dropping = {(p, kernel, "torch") for p in ("fp32", "bf16") for kernel in ("sdpa", "eager")}
    assert found("cuda") == dropping  # BERT's default has attention dropout, varlen has none
    assert found("cuda", "--model.attention_probs_dropout_prob=0") == dropping | {("bf16", "varlen", "torch")}


TIMES = {
    ("fp32", "sdpa", "torch"): 1.0,
    ("fp32", "eager", "torch"): 0.97,  # a gain below what noise can bring
    ("bf16", "sdpa", "torch"): 2.0,
    ("bf16", "eager", "torch"): 0.5,
}


@pytest.fixture
def run(make_objective, monkeypatch: pytest.MonkeyPatch):
    """settle() on a machine whose speed is TIMES, and where rows of a micro-batch get cheaper up to four."""

    def seconds(probe, rows: int, precision: str, kernel: str, linear: str) -> float:
        way = TIMES.get((precision, kernel, linear), 3.0) * (0.8 if torch.get_num_threads() == 2 else 1.0)
        return way * rows * (2 if rows == 1 else 1.5 if rows == 2 else 1)

    monkeypatch.setattr(hardware.Probe, "seconds", seconds)
    monkeypatch.setattr(hardware, "count_processes", lambda _: 4)
    threads = torch.get_num_threads()

    def settled(*more: str) -> tuple[dict, str]:
        automatic = [f"--train.{name}=auto" for name in hardware.SETTLED]
        objective = make_objective(*automatic, *more)
        model = objective.head.build_model(objective.examples.run.model)
        return settle(objective.run, model, objective, plan_epoch(objective, objective.run, State()), PartialState())

    yield settled
    torch.set_num_threads(threads)


def test_the_fastest_way_is_taken_and_nothing_that_is_given_is_changed(run):
    settled, line = run()
    assert settled["precision"] == "bf16" and settled["kernel"] == "eager" and settled["linear"] == "torch"
    assert settled["micro_batch"] == 4 and settled["threads"] == torch.get_num_threads() == 2
    assert "bf16 eager torch" in line and "2 threads" in line
    settled, _ = run("--train.precision=fp32", "--train.threads=3", "--train.micro_batch=2")
    assert (settled["precision"], settled["kernel"]) == ("fp32", "sdpa")
    assert settled["threads"] == torch.get_num_threads() == 3 and settled["micro_batch"] == 2
    fixed = ["--train.precision=fp32", "--train.kernel=eager", "--train.linear=torch", "--train.threads=1"]
    assert run(*fixed, "--train.micro_batch=3")[1] == ""


def test_flops_are_those_of_the_matrix_products(make_objective):
    """Against the count by hand (Kaplan 2020, 2.1): 6 for each weight a token meets, and the attention's scores."""
    objective = make_objective("--model.attention_probs_dropout_prob=0", "--objective.short_sequence_rate=0")
    plan = plan_epoch(objective, objective.run, State())
    model = objective.head.build_model(objective.examples.run.model)
    probe = hardware.Probe(model, objective, plan, 1, torch.device("cpu"))
    batch = probe.batch(1)
    tokens, width = 64, 32
    read = len(batch["logits_to_keep"]) + plan.sequences_per_row
    layers = 2 * tokens * 4 * width**2 + (tokens + read) * 2 * width * 64 + 2 * 2 * tokens * tokens * width
    heads = len(batch["logits_to_keep"]) * (width**2 + width * 1500) + plan.sequences_per_row * (width**2 + 2 * width)
    assert probe.flops() * objective.count(batch) == pytest.approx(6 * (layers + heads), rel=0.02)
