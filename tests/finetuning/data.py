"""Small labelled data that can be learnt, of every kind, and a tiny checkpoint to learn it from."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.pretraining.runs import FIXED, NUMBERS, WIDTHS

Row = dict[str, object]


def texts(random: np.random.Generator) -> Row:
    """Whether a "seven" is among some numbers."""
    words = [NUMBERS[d] for d in random.integers(10, size=int(random.integers(2, 12)))]
    return {"text": " ".join(words), "label": "seven" if "seven" in words else "none"}


def long_texts(random: np.random.Generator) -> Row:
    """The same of texts of which some need several windows."""
    words = [NUMBERS[d] for d in random.integers(10, size=int(random.choice([4, 60])))]
    return {"text": " ".join(words), "label": "seven" if "seven" in words else "none"}


def pairs(random: np.random.Generator) -> Row:
    """How alike two texts are: a number."""
    first, second = random.integers(10, size=6), random.integers(10, size=6)
    score = float(np.mean(first == second)) * 5 + 0.5
    return {
        "sentence1": " ".join(NUMBERS[d] for d in first),
        "sentence2": " ".join(NUMBERS[d] for d in second),
        "score": score,
    }


def several(random: np.random.Generator) -> Row:
    """Which of three numbers are there."""
    words = [NUMBERS[d] for d in random.integers(10, size=6)]
    return {"text": " ".join(words), "labels": [name for name in ("one", "two", "three") if name in words]}


def tags(random: np.random.Generator) -> Row:
    """Runs of sevens, as entities."""
    words = [NUMBERS[d] for d in random.choice([1, 2, 7], size=int(random.integers(3, 30)))]
    found = []
    for before, word in zip(["", *words], words, strict=False):
        found.append("O" if word != "seven" else "I-SEVEN" if before == "seven" else "B-SEVEN")
    return {"tokens": words, "tags": found}


def spans(random: np.random.Generator) -> Row:
    """The number behind another one, in texts of which some need several windows."""
    order = [NUMBERS[d] for d in random.permutation(10)]
    context = " ".join(["after"] * int(random.choice([0, 40])) + order)
    asked = int(random.integers(9))
    answer = order[asked + 1]
    return {
        "id": str(random.integers(10**9)),
        "question": f"after {order[asked]}",
        "context": context,
        "answers": {"text": [answer], "answer_start": [context.index(order[asked]) + len(order[asked]) + 1]},
    }


def choices(random: np.random.Generator) -> Row:
    """Which text has a seven."""
    right = int(random.integers(2))
    both = [" ".join(NUMBERS[d] for d in random.choice([1, 2, 3], size=5)) for _ in range(2)]
    both[right] += " seven"
    return {"sentence1": both[0], "sentence2": both[1], "label": right}


KINDS: dict[str, tuple[str, Callable[[np.random.Generator], Row]]] = {
    "text": ("sequence_classification", texts),
    "long": ("sequence_classification", long_texts),
    "pair": ("sequence_classification", pairs),
    "several": ("sequence_classification", several),
    "tokens": ("token_classification", tags),
    "spans": ("question_answering", spans),
    "choice": ("multiple_choice", choices),
}


def write_data(kind: str, path: Path, rows: int = 60) -> None:
    """A file of this kind, always the same."""
    random = np.random.default_rng(0)
    make = KINDS[kind][1]
    path.write_text("".join(json.dumps(make(random)) + "\n" for _ in range(rows)))


def arguments_of(kind: str, folder: Path, checkpoint: Path) -> list[str]:
    """The command line of a tiny run."""
    return [
        f"--model={checkpoint}",
        f"--objective.name={KINDS[kind][0]}",
        f"--data.files={folder}/{kind}.jsonl",
        f"--cache={folder}/cache",
        f"--runs={folder}/runs",
        "--objective.sequence_length=32",
        "--objective.row_length=32",
        "--objective.stride=8",
        "--train.rows_per_step=8",
        "--train.micro_batch=8",
        "--train.steps=4",
        "--train.threads=1",
        "--evaluation.every=2",
        "--evaluation.samples=1",
        "--checkpoint.every=2",
        "--checkpoint.keep=5",
        "--checkpoint.export=last",
        "--optim.learning_rate=1e-3",
        *FIXED,
    ]


def pretrain_arguments(folder: Path) -> list[str]:
    """The command line of the pretraining that makes the checkpoint."""
    return [
        "--data.source=files",
        f"--data.files={folder}/text.txt",
        "--data.document=line",
        "--data.near_duplicates=0",
        "--objective.next_sentence=none",
        f"--cache={folder}/cache",
        f"--runs={folder}",
        "--name=pretrained",
        "--tokenizer.vocab_size=60",
        *WIDTHS,
        "--model.num_hidden_layers=2",
        "--model.max_position_embeddings=64",
        "--model.hidden_dropout_prob=0.1",
        "--model.attention_probs_dropout_prob=0",
        "--objective.sequence_length=64",
        "--train.steps=2",
        "--train.threads=1",
        "--train.micro_batch=8",
        "--train.rows_per_step=8",
        *FIXED,
    ]
