"""Noise: as much as asked for, nothing lost, and lengths known before anything is drawn."""

import numpy as np
import pytest

from pretraining.data.text.noise import count_spans, hide_spans, permute

MASK = 7


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.3, 0.9])
@pytest.mark.parametrize("mean_span", [1, 3, 5])
@pytest.mark.parametrize("tokens", [2, 3, 5, 8, 33, 127])
def test_masks_stand_for_what_is_hidden(rate: float, mean_span: float, tokens: int):
    """Damaged text and spans together are the text; their lengths are those that `count_spans` foretells."""
    ids = np.arange(100, 100 + tokens)
    for seed in range(10):
        damaged, gone = hide_spans(ids, rate, mean_span, MASK, np.random.default_rng(seed))
        hidden, spans = count_spans(np.array(tokens), rate, mean_span)
        assert (len(damaged), len(gone)) == (tokens - hidden + spans, hidden + spans)
        whole, place = [], np.flatnonzero(gone == MASK)
        pieces = iter(np.split(gone, place[1:]))
        for token in damaged:
            whole += next(pieces)[1:].tolist() if token == MASK else [token]
        assert whole == ids.tolist()
        assert not ((damaged[1:] == MASK) & (damaged[:-1] == MASK)).any(), "two spans touch"


def test_every_token_is_hidden_as_often():
    ids = np.arange(10, 110)
    drawn = [hide_spans(ids, 0.3, 3, MASK, np.random.default_rng(seed))[1] for seed in range(4000)]
    share = np.bincount(np.concatenate(drawn), minlength=110)[10:] / len(drawn)
    assert share.mean() == pytest.approx(0.3)
    # Five standard stds; the first and last few differ, since a text begins with a span half of the time.
    assert np.abs(share[10:-10] - 0.3).max() < 5 * (0.3 * 0.7 / len(drawn)) ** 0.5 + 0.01
    spans = [np.diff(np.append(np.flatnonzero(gone == MASK), len(gone))) - 1 for gone in drawn]
    assert np.concatenate(spans).mean() == pytest.approx(3)
    assert len(np.unique(np.concatenate(spans))) > 8, "all spans are alike"


def test_sentences_change_places_whole():
    ids, starts = np.arange(30), np.array([4, 11, 20])
    orders = {permute(ids, starts, np.random.default_rng(seed)).tobytes() for seed in range(200)}
    assert len(orders) == 24  # all orders of four sentences
    for order in orders:
        found = np.frombuffer(order, dtype=ids.dtype)
        assert np.array_equal(np.sort(found), ids)
        begins = np.flatnonzero(np.diff(found, prepend=-9) != 1)
        assert set(found[begins]) <= {0, *starts}
