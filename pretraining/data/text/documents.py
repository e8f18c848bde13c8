"""The documents of a run: what its sources hold, in which split, from which source."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, concatenate_datasets

from pretraining.data.readers import texts
from pretraining.data.split import split_by_hash
from pretraining.data.stored import Stored, hash_text
from pretraining.data.text.settings import TextSettings
from pretraining.data.text.sources import load_source
from pretraining.errors import UserError


@dataclass(frozen=True)
class Documents(Stored):
    """N documents in order; columns "name" and "text"."""

    source: np.ndarray
    """Number of the source."""

    @classmethod
    def of(cls, dataset: Dataset, source: int) -> "Documents":
        """All that a source has stored."""
        hashes, characters = (dataset.data.column(name).to_numpy() for name in ("hash", "characters"))
        return cls(dataset, hashes, characters, np.full(len(dataset), source, dtype=np.uint16))

    @classmethod
    def concatenate(cls, parts: list["Documents"]) -> "Documents":
        arrays = ([getattr(part, name) for part in parts] for name in ("hash", "characters", "source"))
        return cls(concatenate_datasets([part.dataset for part in parts]), *map(np.concatenate, arrays))

    def texts(self, shard: range | None = None) -> Iterator[str]:
        """All texts, or those of a shard."""
        return texts(self.dataset if shard is None else self.dataset.select(shard))


def load_text(settings: TextSettings) -> dict[str, Documents]:
    """Load the documents of all sources that have a weight, one source behind the other.

    Returns:
        Splits "train" and "validation". A held-out split that a source names is taken as it is. Otherwise
        `split_by_hash` makes one, from the documents' text (`pydocs`: from their names, so that a module keeps its side
        from one Python to the next). It is empty where there is one document only.

    Raises:
        UserError: the settings or the data are wrong.
    """
    splits: list[dict[str, Documents]] = []
    for number, source in enumerate(settings.sources):
        try:
            train, held_out = load_source(source)
        except UserError as error:
            if source is settings:
                raise
            place = next(i for i, other in enumerate(settings.mixture) if other is source)
            raise UserError(f"data.mixture, entry {place + 1}: {error}") from error
        documents = Documents.of(train, number)
        if held_out is not None:
            splits.append({"train": documents, "validation": Documents.of(held_out, number)})
            continue
        hashes = documents.hash
        if source.source == "pydocs":
            hashes = np.array([hash_text(name) for name in texts(train, "name")], dtype=np.uint64)
        splits.append(split_by_hash(documents, settings.validation_fraction, hashes))
    return {name: Documents.concatenate([split[name] for split in splits]) for name in ("train", "validation")}
