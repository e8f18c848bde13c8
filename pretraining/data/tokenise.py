"""Texts to token ids, for what text and pairs prepare alike; the processes that tokenise import no torch for it."""

import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, normalizers

from pretraining.data.readers import CONTROL

# What each of our tokenizers does to a text first, as the readers do: control characters go, and there is one normal
# form, or a word would have two spellings. White space becomes a single space. Format characters stay: Persian and
# Sinhala are written with joiners, and emoji are made with them. A lone space does not match: to replace each by itself
# would take time.
SPACE = Regex(r"[[\s\p{Cc}]&&[^ ]][\s\p{Cc}]*| [\s\p{Cc}]+")
CLEAN = [
    normalizers.Replace(Regex(CONTROL.pattern), ""),
    normalizers.NFC(),
    normalizers.Replace(SPACE, " "),
]
BLOCK = 2**24  # tokens looked at together, for memory
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


def _is_clean(text: str) -> bool:
    """Whether `CLEAN` leaves the text as it is."""
    return text.isprintable() and "  " not in text and unicodedata.is_normalized("NFC", text)


def _split_clean(normalizer: normalizers.Normalizer) -> tuple[Callable[[str], str], normalizers.Normalizer]:
    """A normalizer in two: `CLEAN`, if it begins with that, and the rest."""
    if isinstance(normalizer, normalizers.Sequence):
        steps = [normalizer[i] for i in range(len(normalizer))]
        if repr(steps[: len(CLEAN)]) == repr(CLEAN):
            return normalizers.Sequence(CLEAN).normalize_str, normalizers.Sequence(steps[len(CLEAN) :])
    return str, normalizer


class Encoded(NamedTuple):
    """The tokens of N texts."""

    tokens: np.ndarray
    """(T,): one text after another."""
    lengths: np.ndarray
    """(N,): tokens of each."""
    unknown: int
    """Characters that have become the unknown token."""


def encode(runs: list[list[str]], tokenizer: Tokenizer, dtype: str, unknown: int | None) -> Encoded:
    """The tokens of texts; no special token is among them: a text that says [MASK] is a text.

    Args:
        runs: texts in runs without a space between, which are to the tokenizer what they are to a reader: one text.
        unknown: the id of the tokenizer's unknown token.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # pickling loses it
    whole = tokenizer.normalizer or normalizers.Sequence([])
    clean, rest = _split_clean(whole)  # prepared text mostly is clean, and to clean it takes a sixth of the time
    tokens = [np.empty(0, dtype=dtype)]
    lengths: list[int] = []
    lost = 0
    with _one_thread():
        for first in range(0, len(runs), BATCH):
            batch = runs[first : first + BATCH]
            texts = ["".join(run) for run in batch]
            cleaned = [text if _is_clean(text) else clean(text) for text in texts]
            tokenizer.normalizer = rest
            ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)]
            tokens.append(np.fromiter(chain.from_iterable(ids), dtype=dtype))
            tokenizer.normalizer = whole
            # Where in the text a token stands takes longer to find, and is asked of few texts.
            asked = [i for i, run in enumerate(batch) if len(run) > 1 or unknown in ids[i]]
            found = tokenizer.encode_batch([texts[i] for i in asked], add_special_tokens=False)
            counts = [[len(text)] for text in ids]
            for i, encoding in zip(asked, found, strict=True):
                starts = [start for start, _ in encoding.offsets]
                bounds = [*accumulate(map(len, batch[i][:-1]), initial=0)]  # where each text of the run begins
                counts[i] = np.diff(np.searchsorted(starts, bounds), append=len(starts)).tolist()
                lost += sum(
                    end - start
                    for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
                    if number == unknown
                )
            lengths += chain.from_iterable(counts)
    return Encoded(np.concatenate(tokens), np.array(lengths, dtype=np.int64), lost)


def unknown_share(meta: dict[str, Any], tokens: np.ndarray, *unknown: int | None) -> float:
    """The share of the characters that have become the unknown token; what an older cache can tell is of tokens."""
    if "unknown" in meta:
        return meta["unknown"]
    numbers = [number for number in unknown if number is not None]
    count = sum(
        np.count_nonzero(np.isin(tokens[first : first + BLOCK], numbers)) for first in range(0, len(tokens), BLOCK)
    )
    return count / len(tokens)
