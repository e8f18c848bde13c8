"""The plan: every example once, dense rows, the same on every cut."""

import numpy as np
import pytest

from pretraining.data import draws
from pretraining.data.plan import Plan, choose_row_lengths, make_plan, pack, pack_sides, share


@pytest.fixture
def lengths() -> np.ndarray:
    return np.random.default_rng(0).lognormal(3.6, 0.6, 20_000).clip(5, 128).astype(np.int64)


def plan_of(lengths: np.ndarray, window: int, seed: int = 0, epoch: int = 0) -> Plan:
    return make_plan(np.arange(len(lengths)), lengths, (128,), lambda _: 64, window, seed, epoch)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("window", [100, 4096, 10**6])
def test_every_example_once_and_no_row_too_long(lengths: np.ndarray, window: int, seed: int):
    plan = plan_of(lengths, window, seed, epoch=3)
    rows = [row for step in range(plan.steps) for row in plan.step(step)]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(lengths)))
    assert max(lengths[row].sum() for row in rows) <= 128
    assert max(map(len, rows)) == plan.sequences_per_row
    assert {len(plan.step(step)) for step in range(plan.steps - 1)} == {64}


def test_rows_are_at_least_98_percent_full(lengths: np.ndarray):
    assert plan_of(lengths, 4096).fill >= 0.98


def test_packing_is_no_worse_than_the_known_bound(lengths: np.ndarray):
    """Best fit decreasing needs at most 11/9 of the best possible, plus one (Johnson 1973)."""
    sample = lengths[:500]
    best_possible = -(-sample.sum() // 128)
    assert best_possible <= len(pack(sample, 128)) <= 11 / 9 * best_possible + 1


def test_a_plan_is_a_function_of_seed_and_epoch(lengths: np.ndarray):
    def order(seed: int, epoch: int) -> bytes:
        return plan_of(lengths, 4096, seed, epoch).examples.tobytes()

    assert order(0, 1) == order(0, 1)
    assert len({order(0, 0), order(0, 1), order(1, 0)}) == 3


def test_long_and_short_examples_are_mixed_over_the_epoch(lengths: np.ndarray):
    """Packing sorts by length; steps must not: their mean example length varies as that of random rows does."""
    plan = plan_of(lengths, len(lengths))
    means = [lengths[np.concatenate(plan.step(step))].mean() for step in range(plan.steps - 1)]
    assert np.std(means) < 0.15 * lengths.std()


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 32), (1, 8), (2, 4), (3, 5), (4, 64)])
def test_a_step_is_the_same_rows_however_it_is_cut(ranks: int, micro_batch: int):
    rows = [np.array([i, i + 100]) for i in range(32)]
    parts = [share(rows, rank, ranks, micro_batch) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert {len(batch) for part in parts for batch in part} == {micro_batch}
    seen = [row.tolist() for part in parts for batch in part for row in batch if len(row)]
    assert sorted(seen) == sorted(row.tolist() for row in rows)


def test_draws_are_uniform_independent_of_order_and_differ_by_purpose():
    index = np.arange(200_000)
    values = draws.uniform(7, 0, draws.SPLIT, index)
    assert np.array_equal(values[::-1], draws.uniform(7, 0, draws.SPLIT, index[::-1]))
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 50  # chi-square, 19 degrees of freedom: p < 1e-4 above
    for other in (
        draws.uniform(8, 0, draws.SPLIT, index),
        draws.uniform(7, 1, draws.SPLIT, index),
        draws.uniform(7, 0, draws.PARTNER, index),
        draws.uniform(7, 0, draws.SPLIT, index + 1),
    ):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.01
    assert draws.uniform(7, 0, draws.SPLIT, 5) == values[5]
    assert set(np.unique(draws.integers(3, 0, index))) == {0, 1, 2}


# ---- pairs: two sides ----


@pytest.fixture
def sides() -> np.ndarray:
    """Of pairs like those of spoken language: a target is 0.85 to 1.2 times its source."""
    random = np.random.default_rng(0)
    source = random.lognormal(2.95, 0.6, 20_000).clip(4, 80)
    return np.stack([source, source * random.uniform(0.85, 1.2, len(source))], 1).astype(np.int64)


@pytest.mark.parametrize("lengths", [(96, 96), (100, 128)])
def test_a_pair_lies_in_one_row_that_is_too_long_on_no_side(sides: np.ndarray, lengths: tuple[int, int]):
    rows = pack_sides(sides[:5000], lengths)
    assert sorted(example for row in rows for example in row) == list(range(5000))
    assert (np.stack([sides[row].sum(0) for row in rows]) <= lengths).all()


def test_measured_rows_of_pairs_are_at_least_97_percent_full(sides: np.ndarray):
    lengths = choose_row_lengths(sides, sides.max(0), None)
    plan = make_plan(np.arange(len(sides)), sides, lengths, lambda _: 16, 8192, 0, 0)
    assert plan.fill >= 0.97
    assert plan.tokens_before[-1] == sides.sum()
    assert (np.array(lengths) >= sides.max(0)).all() and max(lengths) <= 4 * sides.max()


def test_a_given_row_length_is_that_of_the_longer_side(sides: np.ndarray):
    sides = sides * [1, 2]
    source, target = choose_row_lengths(sides, sides.max(0), 400)
    assert target == 400 and 0.99 <= source / (400 * sides.mean(0)[0] / sides.mean(0)[1]) <= 1.07
