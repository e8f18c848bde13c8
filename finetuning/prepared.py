"""Tokenise a labelled table once, cache: the texts of each row become one flat array on disk."""

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer

from pretraining.data.arrays import open_arrays, write_arrays
from pretraining.data.cache import build_cached, folder_name, read_meta
from pretraining.data.shards import in_order
from pretraining.data.tokenise import encode, token_type

if TYPE_CHECKING:  # the processes that tokenise import this file, and transformers would bring them torch
    from transformers import PreTrainedTokenizerBase

    from finetuning.data.tables import Table

VERSION = 1  # of what lies on disk: raise it when the arrays change, and old caches are left alone
LIBRARIES = ("tokenizers",)  # which says what the tokens of a text are
BATCH = 500  # texts tokenised at a time

Reader = partial[list[str]]


@dataclass(frozen=True)
class PreparedTexts:
    """The tokens of N rows of S texts each, one text after another."""

    name: str
    """A hash of all that decides the content."""
    tokens: np.ndarray
    bounds: np.ndarray
    """(N * S + 1,): where each text begins; ends with the number of tokens."""
    sides: int
    """S."""
    unknown: float
    """Share of the characters that are the unknown token."""
    places: np.ndarray | None
    """(tokens, 2): where in its text each token begins and ends, in characters; None: not asked for."""

    def __len__(self) -> int:
        return (len(self.bounds) - 1) // self.sides

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text (N, S)."""
        return np.diff(self.bounds).reshape(-1, self.sides)

    def span(self, row: int, side: int) -> slice:
        """Where a text's tokens are."""
        at = row * self.sides + side
        return slice(int(self.bounds[at]), int(self.bounds[at + 1]))


def place_tokens(texts: list[str], tokenizer: Tokenizer, unknown: int | None) -> tuple[dict[str, np.ndarray], int]:
    """The tokens of texts, their number in each, and their places; and how many characters became unknown."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # pickling loses it: a text that says [MASK] is a text
    ids: list[list[int]] = []
    places: list[tuple[int, int]] = []
    lost = 0
    for first in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch(texts[first : first + BATCH], add_special_tokens=False):
            ids.append(encoding.ids)
            places += encoding.offsets
            lost += sum(
                end - start
                for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
                if number == unknown
            )
    arrays = {
        "tokens": np.fromiter(chain.from_iterable(ids), dtype=np.int64),
        "bounds": np.array([len(text) for text in ids], dtype=np.int64),
        "places": np.array(places, dtype=np.int64).ravel(),
    }
    return arrays, lost


def read_texts(dataset: Dataset, columns: list[str], rows: range) -> list[str]:
    """The texts in some columns, row by row; None is no text."""
    part = dataset.select(rows)
    values = [part[column][:] for column in columns]
    return [text or "" for text in chain.from_iterable(zip(*values, strict=True))]


def tokenise(
    read: Reader, dataset: Dataset, tokenizer: Tokenizer, unknown: int | None, places: bool, shard: range
) -> tuple[dict[str, np.ndarray], int, int]:
    """A shard's arrays, how many of its characters became unknown, and how many it has."""
    texts = read(dataset, rows=shard)
    characters = sum(map(len, texts))
    if places:
        return *place_tokens(texts, tokenizer, unknown), characters
    encoded = encode([[text] for text in texts], tokenizer, token_type(tokenizer), unknown)
    return {"tokens": encoded.tokens, "bounds": encoded.lengths}, encoded.unknown, characters


def prepare_texts(
    table: "Table",
    read: Reader,
    sides: int,
    tokenizer: "PreTrainedTokenizerBase",
    places: bool,
    processes: int,
    cache: Path,
    is_builder: bool,
) -> PreparedTexts:
    """The prepared form of a table's texts, from the cache if it is there.

    Args:
        read: a partial of a function of this package, that gives `sides` texts of each of some rows.
        places: whether it is kept where in its text each token stands.
        processes: how many tokenise; what they write is the same for any number.
        cache, is_builder: as in `build_cached`.
    """
    serialized, unknown = tokenizer.backend_tokenizer.to_str(), tokenizer.unk_token_id
    content = [VERSION, table.fingerprint, read.func.__name__, read.keywords, places, serialized]

    def make(folder: Path) -> dict[str, Any]:
        backend = Tokenizer.from_str(serialized)
        dtype = token_type(backend)
        types = {"tokens": dtype, "bounds": "int64"} | ({"places": "uint32"} if places else {})
        work = partial(tokenise, read, table.dataset, backend, unknown, places)
        lost = characters = 0
        with write_arrays(folder, types, offsets=("bounds",)) as append:
            for _, (arrays, missing, seen) in in_order(work, table.shards(), processes, "tokenising", "rows"):
                append(arrays)
                lost, characters = lost + missing, characters + seen
        return {"types": types, "unknown": lost / max(characters, 1)}

    versions = [[library, version(library)] for library in LIBRARIES]
    folder = build_cached(cache, "labelled", [*content, *versions], make, is_builder)
    meta = read_meta(folder)
    arrays = open_arrays(folder, meta["types"])
    found = arrays["places"].reshape(-1, 2) if places else None
    name = folder_name("labelled", content)
    return PreparedTexts(name, arrays["tokens"], arrays["bounds"], sides, meta["unknown"], found)
