"""Several sources by weight: how often each is seen, and what another pass over it shows."""

import json
from pathlib import Path

import numpy as np
import pytest

from pretraining.cli import parse
from pretraining.data import readers
from pretraining.data.text import documents, filters
from pretraining.data.text import prepared as prepared_text
from pretraining.objectives import make_objective as objective_of
from pretraining.objectives.base import Objective


@pytest.fixture
def mixed(corpus: Path, make_objective):
    """An objective on three sources, of the given weights."""

    def make(*weights: float, **more: str) -> Objective:
        files = [f"{corpus}/[{letters}]*.txt" for letters in ("a-d", "e-n", "o-z")]
        mixture = [
            {"source": "files", "files": [path], "weight": weight}
            for path, weight in zip(files[1:], weights[1:], strict=True)
        ]
        return make_objective(
            f'--data.files=["{files[0]}"]', f"--data.weight={weights[0]}", f"--data.mixture={json.dumps(mixture)}"
        )

    return make


def counts(objective: Objective, epoch: int) -> list[np.ndarray]:
    """How often the epoch has each chunk, for each source."""
    total = len(objective.examples.data["train"])
    seen = np.bincount(objective.examples.index("train", epoch) % total, minlength=total)
    return [
        seen[objective.examples.corpus.chunk_source("train") == number]
        for number in range(len(objective.examples.corpus.weights))
    ]


def test_a_weight_is_the_number_of_passes(mixed):
    objective = mixed(1, 2, 0.5)
    once, twice, half = counts(objective, 0)
    assert (once == 1).all() and (twice == 2).all() and min(len(once), len(twice), len(half)) > 20
    assert half.max() == 1 and half.sum() == -(-len(half) // 2)
    index = objective.examples.index("train", 0)
    assert len(set(index.tolist())) == len(index)


def test_a_part_is_drawn_anew_in_each_epoch_and_is_always_the_same(mixed):
    objective, again = mixed(1, 1, 1.5), mixed(1, 1, 1.5)
    assert np.array_equal(objective.examples.index("train", 3), again.examples.index("train", 3))
    epochs = np.stack([counts(objective, epoch)[2] - 1 for epoch in range(40)])
    assert set(epochs.ravel().tolist()) == {0, 1}
    # Each chunk is drawn in half of the epochs: 40 draws, five standard stds.
    assert np.abs(epochs.mean(axis=0) - 0.5).max() < 5 * 0.5 / 40**0.5
    other = objective_of(parse(["--train.steps=1", "--seed=1"]))
    other.examples.corpus = objective.examples.corpus
    assert not np.array_equal(objective.examples.index("train", 3), other.examples.index("train", 3))


def test_held_out_text_is_seen_once(mixed):
    objective = mixed(2, 0.5, 1)
    index = objective.examples.index("validation", 0)
    assert np.array_equal(np.sort(index), np.arange(len(objective.examples.data["validation"])))
    few = index[: len(index) // 2]  # the first ones, which evaluation.examples takes, are from everywhere
    assert len(np.unique(objective.examples.corpus.chunk_source("validation")[few])) == 3


def test_every_pass_has_its_own_pairs_and_masks(mixed):
    objective = mixed(2, 1, 1)
    total = len(objective.examples.data["train"])
    chunks = np.flatnonzero(objective.examples.corpus.chunk_source("train") == 0)
    first, second = (objective.examples.draw("train", 0, chunks + turn * total) for turn in range(2))
    assert 0.3 < (first.label != second.label).mean() < 0.7
    true = (first.label == 0) & (second.label == 0)
    assert np.array_equal(first.a[:, 0, 0], second.a[:, 0, 0])
    assert np.array_equal(first.a[true, 0, 1], first.b[true, 0, 0])  # B follows A, wherever each pass has split them
    one, other = (objective.examples.examples("train", 0, chunks + turn * total) for turn in range(2))
    same = [np.array_equal(a["labels"], b["labels"]) for a, b in zip(one, other, strict=True)]
    assert np.mean(same) < 0.05  # the smallest chunks have few masks to choose from
    index = objective.examples.index("train", 0)
    lengths = objective.examples.lengths("train", 0, index).tolist()
    assert lengths == [len(example["input_ids"]) for example in objective.examples.examples("train", 0, index)]


def test_weights_decide_the_data_but_not_its_preparation(mixed, monkeypatch: pytest.MonkeyPatch):
    """Prepared once, a mixture is opened under other weights without a look at the text."""
    first = mixed(1, 1, 1)
    for module in (documents, readers):
        monkeypatch.setattr(module, "texts", None)
    monkeypatch.setattr(prepared_text, "tokenise", None)
    monkeypatch.setattr(filters, "sign", None)
    second = mixed(1, 3, 1)
    assert second.examples.fingerprint != first.examples.fingerprint == mixed(1, 1, 1).examples.fingerprint
    assert np.array_equal(first.examples.data["train"].tokens, second.examples.data["train"].tokens)
    with pytest.raises(TypeError):
        mixed(1, 1, 0)


def test_a_source_without_weight_is_not_there(mixed, make_objective, corpus: Path):
    alone = make_objective(f'--data.files=["{corpus}/[a-d]*.txt"]')
    assert mixed(1, 0, 0).examples.fingerprint == alone.examples.fingerprint


def test_the_report_tells_what_is_there(arguments: list[str], corpus: Path, tmp_path: Path):
    (tmp_path / "one.txt").write_text("\n".join([*(f"Line {n} has {n * n} things in it." for n in range(90)), "!"]))
    mixture = [{"source": "files", "files": [str(tmp_path / "one.txt")], "document": "line", "weight": 2}]
    more = [f"--data.mixture={json.dumps(mixture)}", "--data.min_characters=2"]
    objective = objective_of(parse([*arguments, "--train.steps=1", *more]))
    head, train, validation, *_ = objective.examples.prepare(is_builder=True)
    assert head.startswith("text files + files, fingerprint")
    data = objective.examples.data["train"]
    for part in (
        f"train: {len(data.documents) - 1:,} documents, {len(data.sentences) - 1:,} sentences, ",
        f"{len(data.tokens):,} tokens, {len(data):,} examples (median 61 tokens of text, ",
        "documents left out: 1 too short",
        "% of an epoch",
    ):
        assert part in train, train
    assert validation.startswith("validation: ") and "of an epoch" not in validation


def test_a_mistake_names_the_source(arguments: list[str]):
    mixture = [{"source": "files", "files": ["nowhere.txt"]}]
    objective = objective_of(parse([*arguments, "--train.steps=1", f"--data.mixture={json.dumps(mixture)}"]))
    with pytest.raises(ValueError, match=r"data\.mixture, entry 1: no file matches 'nowhere\.txt'"):
        objective.examples.prepare(is_builder=True)
