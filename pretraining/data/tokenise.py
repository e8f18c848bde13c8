"""Texts to token ids, for what text and pairs prepare alike; the processes that tokenise import no torch for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

BATCH = 500  # texts tokenised at a time: token ids take ten times more memory as Python's integers than in an array


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tokenizer on one thread: processes are what data.processes counts, and a fork of its threads warns."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def token_type(*tokenizers: Tokenizer) -> str:
    """The dtype that has room for every token id."""
    largest = max(number for tokenizer in tokenizers for number in tokenizer.get_vocab().values())
    return "uint16" if largest < 2**16 else "int32"


def encode(texts: list[str], tokenizer: Tokenizer, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The token ids of N texts, one text after another (T,), and how many each has (N,).

    No special token is among them: a text that says [MASK] is a text.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # pickling loses it
    tokens = [np.empty(0, dtype=dtype)]
    lengths: list[int] = []
    with _one_thread():
        for first in range(0, len(texts), BATCH):
            encodings = tokenizer.encode_batch_fast(texts[first : first + BATCH], add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings]
            lengths += map(len, ids)
            tokens.append(np.fromiter(chain.from_iterable(ids), dtype=dtype))
    return np.concatenate(tokens), np.array(lengths, dtype=np.int64)
