"""The pairs of a run: what its source holds, in which split, and what is left out."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from pretraining.data.pairs.settings import PairSettings
from pretraining.data.pairs.sources import load_source
from pretraining.data.split import first_equal, split_by_hash
from pretraining.data.stored import Stored
from pretraining.errors import UserError


@dataclass(frozen=True)
class Pairs(Stored):
    """N pairs in order; columns "name", "source", "target", "group", "alignment"; the arrays are of both sides."""

    alignment_hash: np.ndarray
    """64 bits of the word alignment."""

    @classmethod
    def of(cls, dataset: Dataset) -> "Pairs":
        """All that a source has stored."""
        names = ("hash", "characters", "alignment_hash")
        return cls(dataset, *(dataset.data.column(name).to_numpy() for name in names))

    @property
    def fingerprint(self) -> str:
        content = self.hash.tobytes() + self.alignment_hash.tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def sides(self, shard: range) -> Iterator[tuple[str, str]]:
        """Source and target of a shard's pairs."""
        table = self.dataset.select(shard).with_format("arrow", columns=["source", "target"])[:]
        return zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True)

    def column(self, name: str, shard: range) -> list[str]:
        """One column of a shard's pairs."""
        return self.dataset.select(shard).with_format("arrow", columns=[name])[:][name].to_pylist()

    def texts(self) -> Iterator[str]:
        """Source, then target, of every pair."""
        for shard in self.shards():
            for pair in self.sides(shard):
                yield from pair


@dataclass(frozen=True)
class Side:
    """The sources or the targets of pairs: what a tokenizer of their own is trained on."""

    pairs: Pairs
    name: str
    """The column."""

    @property
    def characters(self) -> np.ndarray:
        return np.fromiter(map(len, self.texts()), dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {self.pairs.fingerprint}"

    def texts(self) -> Iterator[str]:
        for shard in self.pairs.shards():
            yield from self.pairs.column(self.name, shard)


def load_pairs(settings: PairSettings) -> tuple[dict[str, Pairs], dict[str, dict[str, int]]]:
    """Load a source's pairs without those that repeat others.

    Returns:
        Splits "train" and "validation", and for each the number of pairs left out for each reason: those that repeat an
        earlier pair, and training pairs that are also held out. A held-out split that is named is taken as it is, so
        that scores on it compare. Otherwise `split_by_hash` makes one from the pairs' sources (`dates`: from the dates
        themselves), so that none stands on both sides; it is empty where all are the same.

    Raises:
        UserError: the settings or the data are wrong.
    """
    dataset, held_out = load_source(settings)
    pairs = Pairs.of(dataset)
    if held_out is None:
        splits = split_by_hash(pairs, settings.validation_fraction, dataset.data.column("split_hash").to_numpy())
    else:
        splits = {"train": pairs, "validation": Pairs.of(held_out)}
    validation = splits["validation"].hash
    remaining: dict[str, Pairs] = {}
    left_out: dict[str, dict[str, int]] = {}
    for name, split in splits.items():
        leaked = np.isin(split.hash, validation) & (name == "train")
        repeated = np.zeros(len(split), dtype=bool)
        if not settings.duplicates and (name == "train" or held_out is None):
            repeated = first_equal(split.hash) != np.arange(len(split))
        repeated &= ~leaked
        left_out[name] = {"duplicates": int(repeated.sum()), "also held out": int(leaked.sum())}
        remaining[name] = split.select(~(leaked | repeated))
    if not len(remaining["train"]):
        raise UserError(f"All {len(pairs):,} training pairs are also held out: name other held-out pairs.")
    return remaining, left_out
