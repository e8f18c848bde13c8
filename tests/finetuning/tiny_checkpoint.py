"""A checkpoint of a second, and texts that it can learn: shared by the tests of what fine-tunes over and over."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling import KeelBertConfig, KeelBertForPreTraining
from tests.pretraining.runs import FIXED

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD, BAD = ["good", "fine", "great", "warm"], ["bad", "poor", "cold", "dull"]
PLAIN = ["a", "the", "film", "plot", "is", "was", "very", "and", "so", "it"]
# Of every tiny run: what is not the machine's to choose, and little to do.
QUICK = [*FIXED, "--train.threads=1", "--train.rows_per_step=4", "--train.micro_batch=4", "--evaluation.samples=0"]


def write_checkpoint(folder: Path) -> Path:
    """A pretraining's model/ of random weights, with a tokenizer of the words above."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *GOOD, *BAD, *PLAIN])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    torch.manual_seed(1)  # a run from fresh weights has seed 0
    config = KeelBertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    KeelBertForPreTraining(config).save_pretrained(folder)
    return folder


def draw_texts(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts of five words, one of which says good (1) or bad (0)."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    texts = []
    for label in labels:
        words = random.choice(PLAIN, 4).tolist()
        words.insert(int(random.integers(5)), str(random.choice(GOOD if label else BAD)))
        texts.append(" ".join(words))
    return texts, labels.tolist()


def write_lines(path: Path, rows: list[dict]) -> None:
    """A .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
