"""Texts of two classes, a word of which tells the class, for the tests of what fine-tunes over and over."""

import json
from pathlib import Path

import numpy as np

from tests.pretraining.runs import FIXED, NUMBERS

GOOD, BAD, PLAIN = NUMBERS[7], NUMBERS[8], NUMBERS[:7]
# Of every tiny run: what is not the machine's to choose, and little to do.
QUICK = [*FIXED, "--train.threads=1", "--train.rows_per_step=4", "--train.micro_batch=4", "--evaluation.samples=0"]


def draw_texts(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts of five numbers, one of which is seven (class 1) or eight (class 0)."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    texts = []
    for label in labels:
        words = random.choice(PLAIN, 4).tolist()
        words.insert(int(random.integers(5)), GOOD if label else BAD)
        texts.append(" ".join(words))
    return texts, labels.tolist()


def write_lines(path: Path, rows: list[dict]) -> None:
    """A .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
