"""Tokenise once, cache: documents become flat arrays on disk, cut into chunks when they are opened.

A chunk is what an example is made from. Chunks follow one another without a gap inside a document and never cross its
end, so every array of places here is a list of token offsets. Tokenising is the work of hours that the cache keeps;
cutting is arithmetic, so another sequence length costs nothing.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from pretraining.data import draws
from pretraining.data.cache import build_cached, key, read_meta
from pretraining.data.shards import in_order
from pretraining.data.text.documents import Documents
from pretraining.data.text.sentences import sentences
from pretraining.errors import UserError

if TYPE_CHECKING:  # the processes that tokenise import this file, and transformers would bring them torch
    from transformers import PreTrainedTokenizerBase

VERSION = 2  # of what lies on disk: raise it when the arrays change, and old caches are left alone
LIBRARIES = ("sentencex", "tokenizers")  # which say where sentences end, and what their tokens are
SENTENCES = 500  # tokenised at a time
BLOCK = 2**24  # tokens cut into chunks at a time
ARRAYS = {"sentences": "int64", "documents": "int64", "sources": "uint16"}


@dataclass(frozen=True)
class PreparedText:
    """Tokens and where things start in them; every offset array ends with the number of tokens."""

    name: str
    """A hash of all that decides the content."""
    tokens_name: str
    """The tokens' own, whatever they are cut into."""
    tokens: np.ndarray
    sentences: np.ndarray
    """Offsets of the sentences."""
    chunks: np.ndarray
    """Offsets of the chunks."""
    documents: np.ndarray
    """Offsets of the documents."""
    sources: np.ndarray
    """The source of each document."""
    chunk_document: np.ndarray
    """The document of each chunk."""
    document_chunk: np.ndarray
    """The first chunk of each document; ends with the number of chunks."""
    dropped: int
    """Documents of fewer than two tokens, which no chunk can be made from."""

    def __len__(self) -> int:
        return len(self.chunks) - 1

    @classmethod
    def load(cls, folder: Path, name: str, limit: int, short_rate: float) -> "PreparedText":
        """The text in `folder`, cut as `cut` says; `name` is that of the tokens."""
        meta = read_meta(folder)
        types = {"tokens": meta["token_type"], **ARRAYS}
        arrays = {name: np.memmap(folder / f"{name}.bin", dtype=types[name], mode="r") for name in types}
        return cls(
            name=f"{name}-{limit}-{short_rate}",
            tokens_name=name,
            **arrays,
            **chunked(arrays["documents"], limit, short_rate),
            dropped=meta["dropped"],
        )

    def cut(self, limit: int, short_rate: float) -> "PreparedText":
        """The same text in chunks of at most `limit` tokens, a share `short_rate` of them shorter by design."""
        name = f"{self.tokens_name}-{limit}-{short_rate}"
        if name == self.name:
            return self
        chunks: dict[str, Any] = chunked(self.documents, limit, short_rate)
        return replace(self, name=name, **chunks)


def chunked(documents: np.ndarray, limit: int, short_rate: float) -> dict[str, np.ndarray]:
    """The chunks that `cut` makes, the document of each, and the first of each document."""
    chunks = cut(documents, limit, short_rate)
    return {
        "chunks": chunks,
        "chunk_document": np.searchsorted(documents, chunks[:-1], side="right") - 1,
        "document_chunk": np.searchsorted(chunks, documents, side="left"),
    }


def cut(documents: np.ndarray, limit: int, short_rate: float) -> np.ndarray:
    """Offsets of the chunks of all documents, ending with the number of tokens.

    A document is cut every `limit` tokens, and so many of these pieces once more, at a place drawn from the numbers of
    document and piece, that `short_rate` of the chunks are shorter by design. No chunk has fewer than two tokens.

    Args:
        documents: offsets of the documents, of two tokens at least, ending with the number of tokens.
        limit: the most tokens in a chunk, at least 4.
    """
    first_tokens = np.arange(0, documents[-1], BLOCK)
    bounds = np.unique(np.searchsorted(documents, first_tokens, side="right") - 1).tolist()
    blocks = pairwise([*bounds, len(documents) - 1])
    starts = [_cut(documents[first : last + 1], first, limit, short_rate) for first, last in blocks]
    return np.concatenate([*starts, documents[-1:]])


def _cut(documents: np.ndarray, first: int, limit: int, short_rate: float) -> np.ndarray:
    """Where the chunks of some documents begin, of which `first` is the number of the first."""
    pieces = -(-np.diff(documents) // limit)
    document = np.repeat(np.arange(len(pieces)), pieces)
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


@contextmanager
def one_thread() -> Iterator[None]:
    """The tokenizer on one thread: processes are what data.processes counts, and a fork of its threads warns."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids with no special token among them: a text that says [MASK] is a text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # pickling loses it
    with one_thread():
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def tokenise(
    documents: Documents, languages: list[str], tokenizer: Tokenizer, token_type: str, shard: range
) -> dict[str, np.ndarray]:
    """A shard's tokens; the lengths of its sentences and documents; the documents' sources.

    Args:
        languages: of each source.
    """
    source = documents.source[shard.start : shard.stop]
    found = [
        [sentence for paragraph in sentences(text, languages[number]) for sentence in paragraph]
        for text, number in zip(documents.texts(shard), source, strict=True)
    ]
    flat = list(chain.from_iterable(found))
    tokens = [np.empty(0, dtype=token_type)]
    lengths: list[int] = []
    for first in range(0, len(flat), SENTENCES):
        ids = encode(tokenizer, flat[first : first + SENTENCES])
        lengths += map(len, ids)
        tokens.append(np.fromiter(chain.from_iterable(ids), dtype=token_type))
    sizes = np.array(lengths, dtype=np.int64)
    owner = np.repeat(np.arange(len(shard)), list(map(len, found)))
    document_sizes = np.bincount(owner, weights=sizes, minlength=len(shard)).astype(np.int64)
    long = document_sizes >= 2
    return {
        "tokens": np.concatenate(tokens)[np.repeat(long[owner], sizes)],
        "sentences": sizes[long[owner] & (sizes > 0)],
        "documents": document_sizes[long],
        "sources": source[long],
    }


def write(
    folder: Path, documents: Documents, tokenizer: Tokenizer, languages: list[str], processes: int
) -> dict[str, Any]:
    """Streams the documents through the tokenizer into `folder`; memory does not grow with them."""
    token_type = "uint16" if max(tokenizer.get_vocab().values()) < 2**16 else "int32"
    names = ("tokens", *ARRAYS)
    files = {name: (folder / f"{name}.bin").open("wb") for name in names}
    total = kept = 0
    work = partial(tokenise, documents, languages, tokenizer, token_type)
    for _, part in in_order(work, documents.shards(), processes, "tokenising", "documents"):
        for name in ("sentences", "documents"):
            (total + part[name].cumsum() - part[name]).tofile(files[name])
        for name in ("tokens", "sources"):
            part[name].tofile(files[name])
        total += len(part["tokens"])
        kept += len(part["documents"])
    if not total:
        raise UserError("The corpus is empty: not one of its documents has two tokens.")
    for name in ("sentences", "documents"):
        np.array([total]).tofile(files[name])
    for file in files.values():
        file.close()
    return {"token_type": token_type, "dropped": len(documents) - kept}


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
        limit, short_rate: as in `cut`.
        processes: how many tokenise; what they write is the same for any number.
        cache, is_builder: as in `build_cached`.

    Raises:
        UserError: not one document has two tokens.
    """
    backend = tokenizer.backend_tokenizer.to_str()
    content = [
        VERSION,
        documents.fingerprint,
        hashlib.sha256(documents.source.tobytes()).hexdigest(),
        hashlib.sha256(backend.encode()).hexdigest(),
        languages,
    ]

    def make(folder: Path) -> dict[str, Any]:
        return write(folder, documents, Tokenizer.from_str(backend), languages, processes)

    # The libraries decide too; not in the name, for a run's contract has their versions under their own names.
    versions = [[library, version(library)] for library in LIBRARIES]
    folder = build_cached(cache, "text", [*content, *versions], make, is_builder)
    return PreparedText.load(folder, key("text", content), limit, short_rate)
