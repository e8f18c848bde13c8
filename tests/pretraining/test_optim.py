"""Learning rates against transformers' schedules, and who decays."""

import pytest
import torch
import transformers
from torch import nn

from pretraining.checkpoint import State
from pretraining.data.plan import Plan
from pretraining.optim import learning_rate, make_optimizer, parameter_groups
from pretraining.settings import OptimSettings, TrainSettings
from pretraining.train import progress_of

STEPS, WARMUP = 200, 20


def rates(settings: OptimSettings, hidden_size: int = 64) -> list[float]:
    return [learning_rate(settings, hidden_size, step + 1, step / STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_are_those_of_transformers(schedule: str):
    """With the warm-up as a share of the budget, step n's rate is exactly theirs."""
    ours = rates(OptimSettings(learning_rate=3e-4, schedule=schedule, warmup=WARMUP / STEPS))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    make = getattr(transformers, f"get_{schedule}_schedule_with_warmup")
    theirs = make(optimizer, WARMUP) if schedule == "constant" else make(optimizer, WARMUP, STEPS)
    for rate in ours:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_noam_is_the_formula_of_the_paper():
    """d^-0.5 min(n^-0.5, n w^-1.5) (Vaswani 2017, 5.3)."""
    ours = rates(OptimSettings(learning_rate=None, schedule="noam", warmup=WARMUP), hidden_size=512)
    expected = [512**-0.5 * min(n**-0.5, n * WARMUP**-1.5) for n in range(1, STEPS + 1)]
    assert ours == pytest.approx(expected, rel=1e-12)


def test_wsd_is_stable_then_falls_to_zero():
    ours = rates(OptimSettings(learning_rate=1.0, schedule="wsd", warmup=10, decay=0.25))
    assert ours[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert set(ours[10:150]) == {1.0}
    assert ours[150:] == pytest.approx([(200 - n) / 50 for n in range(150, 200)])


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, rest = parameter_groups(model, 0.1)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in rest["params"]} == {1}
    assert len(decayed["params"]) + len(rest["params"]) == len(list(model.parameters()))
    optimizer = make_optimizer(model, OptimSettings(weight_decay=0.1))
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.allclose(p, old * (0.95 if p.ndim == 2 else 1.0))


@pytest.mark.parametrize(
    ("budget", "state"),
    [
        ({"steps": 40}, State(step=10)),
        ({"epochs": 2}, State(epoch=0, step_in_epoch=3)),
        ({"tokens": 4000}, State(tokens=1000)),
        ({"minutes": 2}, State(seconds=30.0)),
    ],
)
def test_progress_is_the_share_of_the_budget(budget: dict, state: State):
    rows = torch.arange(7).numpy()
    plan = Plan(examples=rows[:6], offsets=rows, rows_per_step=1, fill=1.0, sequences_per_row=1)
    assert progress_of(state, TrainSettings(**budget), plan) == pytest.approx(0.25)
    assert progress_of(State(100, 9, 0, 10**6, 1e6), TrainSettings(**budget), plan) == 1.0
