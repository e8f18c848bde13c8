"""The documents of a run: what its sources hold, in which split, from which source."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from datasets import Dataset, concatenate_datasets

from pretraining.data.settings import TextSettings
from pretraining.data.sources import CHARACTERS, OVERHEAD, hash_text, load_source, texts


@dataclass(frozen=True)
class Documents:
    """N documents in order; their text stays on disk, and the arrays (N,) tell what can be told without it."""

    dataset: Dataset
    """Columns "name" and "text", memory-mapped."""
    hash: np.ndarray
    """64 bits of the text."""
    characters: np.ndarray
    """Length of the text."""
    source: np.ndarray
    """Number of the source."""

    def __len__(self) -> int:
        return len(self.dataset)

    @classmethod
    def of(cls, dataset: Dataset, source: int) -> "Documents":
        """All that a source has stored."""
        hashes, characters = (dataset.data.column(name).to_numpy() for name in ("hash", "characters"))
        return cls(dataset, hashes, characters, np.full(len(dataset), source, dtype=np.uint16))

    @classmethod
    def concatenate(cls, parts: list["Documents"]) -> "Documents":
        arrays = ([getattr(part, name) for part in parts] for name in ("hash", "characters", "source"))
        return cls(concatenate_datasets([part.dataset for part in parts]), *map(np.concatenate, arrays))

    def select(self, chosen: np.ndarray) -> "Documents":
        """The documents where `chosen` (N,) is true."""
        rows = np.flatnonzero(chosen)
        return Documents(self.dataset.select(rows), self.hash[rows], self.characters[rows], self.source[rows])

    @property
    def fingerprint(self) -> str:
        """A hash of the documents' text and order, the same on every machine, whatever the files are called."""
        return hashlib.blake2b(self.hash.tobytes(), digest_size=16).hexdigest()

    def texts(self, shard: range | None = None) -> Iterator[str]:
        """All texts, or those of a shard."""
        return texts(self.dataset if shard is None else self.dataset.select(shard))

    def shards(self) -> list[range]:
        """Runs of documents, each of about `CHARACTERS`: what one process works on at a time."""
        sizes = self.characters + OVERHEAD
        number = (sizes.cumsum() - sizes) // CHARACTERS
        bounds = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(self)]
        return [range(*pair) for pair in pairwise(bounds)]


def hold_out(documents: Documents, fraction: float, hashes: np.ndarray) -> dict[str, Documents]:
    """Hold out the documents whose hash falls into the lowest `fraction` of all possible hashes.

    The hashes (N,) alone decide: equal ones never straddle the split, and a document keeps its side when others come
    or go. Where two documents differ, each side gets at least one; with a single document, or only equal ones, or
    `fraction` 0, validation is empty.
    """
    held = hashes < fraction * 2.0**64
    if fraction > 0 and not held.any():
        held = hashes == hashes.min()
    if held.all():
        held = hashes != hashes.max()
    return {"train": documents.select(~held), "validation": documents.select(held)}


def load_text(settings: TextSettings) -> dict[str, Documents]:
    """Load the documents of all sources that have a weight, one source behind the other.

    Returns:
        Splits "train" and "validation". A held-out split that a source names is taken as it is. Otherwise `hold_out`
        makes one, from the documents' text (`pydocs`: from their names, so that a module keeps its side from one
        Python to the next); it is empty where there is one document only, and the caller decides whether that will do.

    Raises:
        ValueError: one sentence on what is wrong with the settings or the data, where, and what to do.
    """
    fraction = settings.validation_fraction
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction is {fraction}: set it to at least 0 and less than 1")
    splits: list[dict[str, Documents]] = []
    for number, source in enumerate(settings.sources):
        try:
            train, held = load_source(source)
        except ValueError as error:
            if source is settings:
                raise
            place = next(i for i, other in enumerate(settings.mixture) if other is source)
            raise ValueError(f"data.mixture, entry {place + 1}: {error}") from error
        documents = Documents.of(train, number)
        if held is not None:
            splits.append({"train": documents, "validation": Documents.of(held, number)})
            continue
        hashes = documents.hash
        if source.source == "pydocs":
            hashes = np.array([hash_text(name) for name in texts(train, "name")], dtype=np.uint64)
        splits.append(hold_out(documents, fraction, hashes))
    return {split: Documents.concatenate([parts[split] for parts in splits]) for split in ("train", "validation")}
