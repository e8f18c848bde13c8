"""Tokenise once, cache: documents become flat arrays on disk, cut into chunks when they are opened.

A chunk is what an example is made from. Chunks follow one another without a gap inside a document and never cross its
end, so every array of places here is a list of token offsets. Tokenising is the work of hours that the cache keeps;
cutting is arithmetic, so another sequence length costs nothing.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from pretraining.data import draws
from pretraining.data.arrays import open_arrays, write_arrays
from pretraining.data.cache import build_cached, folder_name, read_meta
from pretraining.data.shards import in_order
from pretraining.data.text.documents import Documents
from pretraining.data.text.sentences import sentences
from pretraining.data.tokenise import encode, token_type, unknown_share
from pretraining.errors import UserError

if TYPE_CHECKING:  # the processes that tokenise import this file, and transformers would bring them torch
    from transformers import PreTrainedTokenizerBase

VERSION = 2  # of what lies on disk: raise it when the arrays change, and old caches are left alone
LIBRARIES = ("sentencex", "tokenizers")  # which say where sentences end, and what their tokens are
BLOCK = 2**24  # tokens cut into chunks at a time
ARRAYS = {"sentences": "int64", "documents": "int64", "sources": "uint16"}


@dataclass(frozen=True)
class PreparedText:
    """Tokens and where things start in them; every offset array ends with the number of tokens."""

    tokens_name: str
    """A hash of all that decides the tokens, whatever they are cut into."""
    limit: int
    """The most tokens in a chunk."""
    short_rate: float
    """Share of the chunks that are shorter by design."""
    tokens: np.ndarray
    sentences: np.ndarray
    """Offsets of the sentences."""
    documents: np.ndarray
    """Offsets of the documents."""
    sources: np.ndarray
    """The source of each document."""
    dropped: int
    """Documents of fewer than two tokens, which no chunk can be made from."""
    unknown: float = 0.0
    """Share of the characters that are the unknown token."""

    def __len__(self) -> int:
        return len(self.chunks) - 1

    @property
    def name(self) -> str:
        """A hash of all that decides the tokens, and what decides the chunks."""
        return f"{self.tokens_name}-{self.limit}-{self.short_rate}"

    @cached_property
    def chunks(self) -> np.ndarray:
        """Offsets of the chunks."""
        return chunk_offsets(self.documents, self.limit, self.short_rate)

    @cached_property
    def chunk_document(self) -> np.ndarray:
        """The document of each chunk."""
        return np.searchsorted(self.documents, self.chunks[:-1], side="right") - 1

    def rechunk(self, limit: int, short_rate: float) -> "PreparedText":
        """The same text in chunks of at most `limit` tokens, a share `short_rate` of them shorter by design."""
        if (limit, short_rate) == (self.limit, self.short_rate):
            return self  # with the chunks that it knows already
        return replace(self, limit=limit, short_rate=short_rate)


def chunk_offsets(documents: np.ndarray, limit: int, short_rate: float) -> np.ndarray:
    """Offsets of the chunks of all documents, ending with the number of tokens.

    A document is cut every `limit` tokens, and so many of these pieces once more, at a place drawn from the numbers of
    document and piece, that `short_rate` of the chunks are shorter by design. No chunk has fewer than two tokens.

    Args:
        documents: offsets of the documents, of two tokens at least, ending with the number of tokens.
        limit: at least 4.
    """
    first_tokens = np.arange(0, documents[-1], BLOCK)
    bounds = np.unique(np.searchsorted(documents, first_tokens, side="right") - 1).tolist()
    blocks = pairwise([*bounds, len(documents) - 1])
    starts = [_chunk_starts(documents[first : last + 1], first, limit, short_rate) for first, last in blocks]
    return np.concatenate([*starts, documents[-1:]])


def _chunk_starts(documents: np.ndarray, first: int, limit: int, short_rate: float) -> np.ndarray:
    """Where the chunks of some documents begin, of which `first` is the number of the first."""
    pieces = -(-np.diff(documents) // limit)  # (documents,)
    document = np.repeat(np.arange(len(pieces)), pieces)  # (pieces,), as all that follows
    piece = np.arange(len(document)) - np.repeat(pieces.cumsum() - pieces, pieces)
    starts = documents[document] + piece * limit
    document += first
    single = np.flatnonzero(np.diff(starts, append=documents[-1]) == 1)  # a last piece of one token gets a second one
    starts[single] -= 1
    sizes = np.diff(starts, append=documents[-1])
    # Of p pieces s p are cut in two: 2 s p short ones among (1 + s) p chunks.
    cut_again = draws.uniform(draws.CHUNK_LENGTH, document, piece, 0) < short_rate / (2 - short_rate)
    inner = starts + 2 + draws.integers(sizes - 3, draws.CHUNK_LENGTH, document, piece, 1)
    return np.sort(np.concatenate([starts, inner[cut_again & (sizes >= 4)]]), kind="stable")


def tokenise(
    documents: Documents, languages: list[str], tokenizer: Tokenizer, dtype: str, unknown: int | None, shard: range
) -> tuple[dict[str, np.ndarray], int]:
    """A shard's tokens; the lengths of its sentences and documents; the documents' sources; and its unknown characters.

    Args:
        languages: of each source.
        unknown: as in `encode`.
    """
    sources = documents.source[shard.start : shard.stop]
    by_document: list[list[list[str]]] = []
    for text, source in zip(documents.texts(shard), sources, strict=True):
        by_document.append(sentences(text, languages[source]))
    tokens, lengths, lost = encode(list(chain.from_iterable(by_document)), tokenizer, dtype, unknown)
    counts = [sum(map(len, runs)) for runs in by_document]
    document = np.repeat(np.arange(len(shard)), counts)  # (sentences,): the one of each
    sizes = np.bincount(document, weights=lengths, minlength=len(shard)).astype(np.int64)
    long = sizes >= 2  # (documents,): those that a chunk can be made from
    arrays = {
        "tokens": tokens[np.repeat(long[document], lengths)],
        "sentences": lengths[long[document] & (lengths > 0)],
        "documents": sizes[long],
        "sources": sources[long],
    }
    return arrays, lost


def prepare_text(
    documents: Documents,
    tokenizer: "PreTrainedTokenizerBase",
    languages: list[str],
    limit: int,
    short_rate: float,
    processes: int,
    cache: Path,
    is_builder: bool,
) -> PreparedText:
    """The prepared form of `documents`, from the cache if it is there.

    Args:
        languages: ISO 639-1 code of each source.
        limit, short_rate: as in `chunk_offsets`.
        processes: how many tokenise; what they write is the same for any number.
        cache, is_builder: as in `build_cached`.

    Raises:
        UserError: not one document has two tokens.
    """
    serialized = tokenizer.backend_tokenizer.to_str()
    content = [
        VERSION,
        documents.fingerprint,
        hashlib.sha256(documents.source.tobytes()).hexdigest(),
        hashlib.sha256(serialized.encode()).hexdigest(),
        languages,
    ]
    if not isinstance(tokenizer.backend_tokenizer.model, WordPiece):  # to which a space before a sentence is nothing
        content.append("runs of sentences")

    def make(folder: Path) -> dict[str, Any]:
        backend = Tokenizer.from_str(serialized)
        dtype = token_type(backend)
        work = partial(tokenise, documents, languages, backend, dtype, tokenizer.unk_token_id)
        count = unknown = 0
        with write_arrays(folder, {"tokens": dtype, **ARRAYS}, offsets=("sentences", "documents")) as append:
            for _, (arrays, lost) in in_order(work, documents.shards(), processes, "tokenising", "documents"):
                append(arrays)
                unknown += lost
                count += len(arrays["documents"])
        if not count:
            raise UserError("The corpus is empty: not one of its documents has two tokens.")
        share = unknown / int(documents.characters.sum())
        return {"token_type": dtype, "dropped": len(documents) - count, "unknown": share}

    # The libraries decide too; not in the name, for a run's contract has their versions under their own names.
    versions = [[library, version(library)] for library in LIBRARIES]
    folder = build_cached(cache, "text", [*content, *versions], make, is_builder)
    meta = read_meta(folder)
    arrays = open_arrays(folder, {"tokens": meta["token_type"], **ARRAYS})
    unknown = unknown_share(meta, arrays["tokens"], tokenizer.unk_token_id)
    name = folder_name("text", content)
    return PreparedText(name, limit, short_rate, **arrays, dropped=meta["dropped"], unknown=unknown)
