"""Tokenise pairs once, cache: both sides become one flat array on disk, source and target by turns."""

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from pretraining.data.cache import build_cached, key, open_array, read_meta
from pretraining.data.pairs.corpus import Pairs
from pretraining.data.shards import in_order
from pretraining.data.text.prepared import encode

if TYPE_CHECKING:  # the processes that tokenise import this file, and transformers would bring them torch
    from transformers import PreTrainedTokenizerBase

VERSION = 2  # of what lies on disk: raise it when the arrays change, and old caches are left alone
LIBRARIES = ("tokenizers",)  # which says what the tokens of a text are
AT_A_TIME = 500  # pairs tokenised
ARRAYS = {"offsets": "int64", "groups": "uint16", "points": "uint16", "point_offsets": "int64"}


@dataclass(frozen=True)
class PreparedPairs:
    """The tokens of N pairs, source and target by turns."""

    name: str
    """A hash of all that decides the content."""
    tokens: np.ndarray
    offsets: np.ndarray
    """(2 N + 1,): where source and target of each pair begin; ends with the number of tokens."""
    groups: np.ndarray
    """(N,): the group of each pair, a number into `group_names`."""
    group_names: list[str]
    points: np.ndarray
    """(P, 2): the word alignments of all pairs, as places of a source and a target token."""
    point_offsets: np.ndarray
    """(N + 1,): where each pair's points begin."""

    @classmethod
    def load(cls, folder: Path, name: str) -> "PreparedPairs":
        meta = read_meta(folder)
        types = {"tokens": meta["token_type"], **ARRAYS}
        arrays = {name: open_array(folder / f"{name}.bin", kind) for name, kind in types.items()}
        arrays["points"] = arrays["points"].reshape(-1, 2)
        return cls(name, group_names=meta["groups"], **arrays)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of source and target (N, 2)."""
        return np.diff(self.offsets).reshape(-1, 2)

    def source(self, pair: int) -> np.ndarray:
        return self.tokens[self.offsets[2 * pair] : self.offsets[2 * pair + 1]]

    def target(self, pair: int) -> np.ndarray:
        return self.tokens[self.offsets[2 * pair + 1] : self.offsets[2 * pair + 2]]

    def alignment(self, pair: int) -> np.ndarray:
        """The pair's points (P, 2)."""
        return self.points[self.point_offsets[pair] : self.point_offsets[pair + 1]]


def words_of(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The number of the word, by spaces, that each token of a text ends in, or that stands behind it."""
    spaces = np.array([c.isspace() for c in text], dtype=bool)
    begins = ~spaces & np.concatenate([[True], spaces[:-1]])
    number = begins.cumsum() - ~spaces  # of the word that a character belongs to, or that a space stands before
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return np.array([number[min(end, len(text)) - 1] for _, end in offsets], dtype=np.int64)


def token_points(alignment: str, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Word alignments as token alignments (P, 2): every token of one word with every token of the other.

    Args:
        alignment: "0-0 1-2".
        source, target: the word of each token.
    """
    points = [
        (s, t)
        for point in alignment.split()
        for a, b in [point.split("-")]
        for s in np.flatnonzero(source == int(a))
        for t in np.flatnonzero(target == int(b))
    ]
    return np.array(points, dtype=np.uint16).reshape(-1, 2)


def tokenise(
    pairs: Pairs, group_names: list[str], tokenizers: list[Tokenizer], token_type: str, shard: range
) -> dict[str, np.ndarray]:
    """A shard's tokens, the lengths of its sides, the groups of its pairs, their points and the number of these."""
    sides = list(pairs.sides(shard))
    tokens = [np.empty(0, dtype=token_type)]
    lengths: list[int] = []
    for first in range(0, len(sides), AT_A_TIME):
        texts = zip(*sides[first : first + AT_A_TIME], strict=True)  # all sources, all targets
        tokenised = [encode(tokenizer, list(side)) for tokenizer, side in zip(tokenizers, texts, strict=True)]
        ids = list(chain.from_iterable(zip(*tokenised, strict=True)))
        lengths += map(len, ids)
        tokens.append(np.fromiter(chain.from_iterable(ids), dtype=token_type))
    points = [np.empty((0, 2), dtype=np.uint16)]
    counts: list[int] = []
    for number, alignment in enumerate(pairs.column("alignment", shard)):
        found = points[0]
        if alignment:
            found = token_points(alignment, *map(words_of, tokenizers, sides[number]))
        points.append(found)
        counts.append(len(found))
    number_of = {name: number for number, name in enumerate(group_names)}
    return {
        "tokens": np.concatenate(tokens),
        "offsets": np.array(lengths),
        "groups": np.array([number_of[name] for name in pairs.column("group", shard)], dtype=np.uint16),
        "points": np.concatenate(points),
        "point_offsets": np.array(counts),
    }


def write(
    folder: Path, pairs: Pairs, group_names: list[str], tokenizers: list[Tokenizer], processes: int
) -> dict[str, Any]:
    """Streams the pairs through their sides' tokenizers into `folder`; memory does not grow with them."""
    largest = max(number for tokenizer in tokenizers for number in tokenizer.get_vocab().values())
    token_type = "uint16" if largest < 2**16 else "int32"
    files = {name: (folder / f"{name}.bin").open("wb") for name in ("tokens", *ARRAYS)}
    total = {"offsets": 0, "point_offsets": 0}
    for name in total:
        np.zeros(1, dtype=np.int64).tofile(files[name])
    work = partial(tokenise, pairs, group_names, tokenizers, token_type)
    for _, part in in_order(work, pairs.shards(), processes, "tokenising", "pairs"):
        for name, end in total.items():
            (end + part[name].cumsum()).astype(np.int64).tofile(files[name])
            total[name] = end + int(part[name].sum())
        for name in ("tokens", "groups", "points"):
            part[name].tofile(files[name])
    for file in files.values():
        file.close()
    return {"token_type": token_type, "groups": group_names}


def prepare_pairs(
    pairs: Pairs, tokenizers: "list[PreTrainedTokenizerBase]", processes: int, cache: Path, is_builder: bool
) -> PreparedPairs:
    """The prepared form of `pairs`, from the cache if it is there; no special token among the tokens.

    Args:
        tokenizers: the sources' and the targets'.
        processes: how many tokenise; what they write is the same for any number.
        cache, is_builder: as in `build_cached`.
    """
    backends = [tokenizer.backend_tokenizer.to_str() for tokenizer in tokenizers]
    group_names = sorted(set(pairs.column("group", range(len(pairs)))))
    content = [VERSION, pairs.fingerprint, group_names, *dict.fromkeys(backends)]

    def make(folder: Path) -> dict[str, Any]:
        return write(folder, pairs, group_names, [Tokenizer.from_str(backend) for backend in backends], processes)

    # The library decides too; not in the name, for a run's contract has its version under its own name.
    versions = [[library, version(library)] for library in LIBRARIES]
    return PreparedPairs.load(
        build_cached(cache, "pairs", [*content, *versions], make, is_builder), key("pairs", content)
    )
