"""Tokenise pairs once, cache: both sides become one flat array on disk, source and target by turns."""

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from pretraining.data.arrays import open_arrays, write_arrays
from pretraining.data.cache import build_cached, folder_name, read_meta
from pretraining.data.pairs.corpus import Pairs
from pretraining.data.shards import in_order
from pretraining.data.tokenise import encode, token_type, unknown_share

if TYPE_CHECKING:  # the processes that tokenise import this file, and transformers would bring them torch
    from transformers import PreTrainedTokenizerBase

VERSION = 2  # of what lies on disk: raise it when the arrays change, and old caches are left alone
LIBRARIES = ("tokenizers",)  # which says what the tokens of a text are
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
    unknown: float
    """Share of the characters of both sides that are the unknown token."""

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
    pairs: Pairs,
    group_names: list[str],
    tokenizers: list[Tokenizer],
    dtype: str,
    unknown: list[int | None],
    shard: range,
) -> tuple[dict[str, np.ndarray], int]:
    """A shard's tokens, the lengths of its sides, the groups of its pairs, their points and the number of these.

    Args:
        unknown: each tokenizer's unknown token. How many characters became it is returned too.
    """
    sides = list(pairs.sides(shard))
    encoded = [
        encode([[text] for text in texts], tokenizer, dtype, number)
        for texts, tokenizer, number in zip(zip(*sides, strict=True), tokenizers, unknown, strict=True)
    ]
    lengths = np.stack([side.lengths for side in encoded], 1).ravel()  # (2 pairs,): source and target by turns
    is_target = np.repeat(np.tile([False, True], len(sides)), lengths)  # (tokens,)
    tokens = np.empty(len(is_target), dtype=dtype)
    tokens[~is_target], tokens[is_target] = (side.tokens for side in encoded)
    points = [np.empty((0, 2), dtype=np.uint16)]
    counts: list[int] = []
    for texts, alignment in zip(sides, pairs.column("alignment", shard), strict=True):
        if alignment:
            points.append(token_points(alignment, *map(words_of, tokenizers, texts)))
        counts.append(len(points[-1]) if alignment else 0)
    number_of = {name: number for number, name in enumerate(group_names)}
    arrays = {
        "tokens": tokens,
        "offsets": lengths,
        "groups": np.array([number_of[name] for name in pairs.column("group", shard)]),
        "points": np.concatenate(points),
        "point_offsets": np.array(counts),
    }
    return arrays, sum(side.unknown for side in encoded)


def prepare_pairs(
    pairs: Pairs, tokenizers: "list[PreTrainedTokenizerBase]", processes: int, cache: Path, is_builder: bool
) -> PreparedPairs:
    """The prepared form of `pairs`, from the cache if it is there; no special token among the tokens.

    Args:
        tokenizers: the sources' and the targets'.
        processes: how many tokenise; what they write is the same for any number.
        cache, is_builder: as in `build_cached`.
    """
    serialized = [tokenizer.backend_tokenizer.to_str() for tokenizer in tokenizers]
    unknown = [tokenizer.unk_token_id for tokenizer in tokenizers]
    group_names = sorted(set(pairs.column("group", range(len(pairs)))))
    content = [VERSION, pairs.fingerprint, group_names, *dict.fromkeys(serialized)]

    def make(folder: Path) -> dict[str, Any]:
        backends = list(map(Tokenizer.from_str, serialized))
        dtype = token_type(*backends)
        work = partial(tokenise, pairs, group_names, backends, dtype, unknown)
        lost = 0
        with write_arrays(folder, {"tokens": dtype, **ARRAYS}, offsets=("offsets", "point_offsets")) as append:
            for _, (arrays, characters) in in_order(work, pairs.shards(), processes, "tokenising", "pairs"):
                append(arrays)
                lost += characters
        return {"token_type": dtype, "groups": group_names, "unknown": lost / int(pairs.characters.sum())}

    # The library decides too; not in the name, for a run's contract has its version under its own name.
    versions = [[library, version(library)] for library in LIBRARIES]
    folder = build_cached(cache, "pairs", [*content, *versions], make, is_builder)
    meta = read_meta(folder)
    arrays = open_arrays(folder, {"tokens": meta["token_type"], **ARRAYS})
    arrays["points"] = arrays["points"].reshape(-1, 2)
    share = unknown_share(meta, arrays["tokens"], *unknown)
    return PreparedPairs(folder_name("pairs", content), group_names=meta["groups"], **arrays, unknown=share)
