"""Tokenise once, cache: documents become flat arrays on disk, cut into fixed chunks.

A chunk is what an example is made from, and its number is the example's index. Chunks follow one another without a
gap inside a document and never cross its end, so every array here is a list of token offsets.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pretraining.data import draws
from pretraining.data.sources import fingerprint, sentences, texts

VERSION = 1  # of what lies on disk: raise it when the arrays change, and old caches are left alone
BATCH = 64  # documents tokenised at a time


@dataclass(frozen=True)
class PreparedText:
    """Tokens and where things start in them; every offset array ends with the number of tokens."""

    name: str
    """A hash of all that decides the content."""
    tokens: np.ndarray
    sentences: np.ndarray
    """Offsets of the sentences."""
    chunks: np.ndarray
    """Offsets of the chunks."""
    documents: np.ndarray
    """Offsets of the documents."""
    chunk_document: np.ndarray
    """The document of each chunk."""
    document_chunk: np.ndarray
    """The first chunk of each document; ends with the number of chunks."""
    dropped: int
    """Documents without a chunk of two tokens."""

    def __len__(self) -> int:
        return len(self.chunks) - 1

    @classmethod
    def load(cls, folder: Path) -> "PreparedText":
        meta = json.loads((folder / "complete.json").read_text())

        def array(name: str, dtype: str) -> np.ndarray:
            return np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r")

        chunks, documents = array("chunks", "int64"), array("documents", "int64")
        return cls(
            name=folder.name,
            tokens=array("tokens", meta["token_type"]),
            sentences=array("sentences", "int64"),
            chunks=chunks,
            documents=documents,
            chunk_document=np.searchsorted(documents, chunks[:-1], side="right") - 1,
            document_chunk=np.searchsorted(chunks, documents, side="left"),
            dropped=meta["dropped"],
        )


def cut(length: int, limit: int, short_rate: float, first: int) -> list[int]:
    """Lengths of a document's chunks: `limit` tokens each, some shorter by design, the last as it comes.

    Args:
        length: the document's tokens; a last chunk of one token, which no pair can be made from, is left out.
        limit: the most tokens in a chunk.
        short_rate: share of the chunks whose limit is drawn between 2 and `limit`.
        first: the number of the first chunk, from which those limits are drawn.
    """
    sizes: list[int] = []
    while length >= 2:
        number = first + len(sizes)
        short = draws.uniform(draws.CHUNK_LENGTH, number, 0) < short_rate
        target = 2 + int(draws.below(limit - 1, draws.CHUNK_LENGTH, number, 1)) if short else limit
        sizes.append(min(target, length))
        length -= sizes[-1]
    return sizes


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids with no special token among them: a text that says [MASK] is a text."""
    if not texts:
        return []
    return tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def write(
    folder: Path, documents: Dataset, tokenizer: PreTrainedTokenizerBase, language: str, limit: int, short_rate: float
) -> None:
    """Streams the documents through the tokenizer into `folder`; memory does not grow with them."""
    token_type = "uint16" if len(tokenizer) <= 2**16 else "int32"
    total = chunk_count = dropped = 0
    names = ("tokens", "sentences", "chunks", "documents")
    files = {name: (folder / f"{name}.bin").open("wb") for name in names}

    def put(name: str, values: np.ndarray | list[int], dtype: str = "int64") -> None:
        np.asarray(values, dtype=dtype).tofile(files[name])

    stream = iter(tqdm(texts(documents), "tokenising", len(documents), unit=" documents", disable=None, leave=False))
    while batch := [sentences(text, language) for text in islice(stream, BATCH)]:
        flat = [sentence for document in batch for paragraph in document for sentence in paragraph]
        encoded = iter(encode(tokenizer, flat))
        for document in batch:
            pieces = [piece for paragraph in document for _ in paragraph if (piece := next(encoded))]
            sizes = cut(sum(map(len, pieces)), limit, short_rate, chunk_count)
            length = sum(sizes)
            if not length:
                dropped += 1
                continue
            starts = np.cumsum([0, *map(len, pieces)])
            put("documents", [total])
            put("sentences", total + starts[:-1][starts[:-1] < length])
            put("chunks", total + np.cumsum([0, *sizes[:-1]]))
            put("tokens", [token for piece in pieces for token in piece][:length], token_type)
            total, chunk_count = total + length, chunk_count + len(sizes)
    for name in names[1:]:
        put(name, [total])
    for file in files.values():
        file.close()
    (folder / "complete.json").write_text(json.dumps({"token_type": token_type, "dropped": dropped}))


def prepare_text(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    language: str,
    sequence_length: int,
    short_rate: float,
    cache: Path,
    writer: bool,
) -> PreparedText:
    """The prepared form of `documents`, from the cache if it is there.

    Args:
        sequence_length: an example's most tokens; [CLS] and two [SEP] leave three less for a chunk.
        short_rate: as in `cut`.
        cache: the folder of all prepared data; this one's name is a hash of all that decides its content.
        writer: whether this process prepares; the others wait for the folder to appear, which it does whole.

    Raises:
        ValueError: not one document has two tokens.
    """
    content = [
        VERSION,
        fingerprint(documents),
        hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        language,
        sequence_length,
        short_rate,
    ]
    folder = cache / f"text-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]}"
    if writer and not (folder / "complete.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f"{folder.name}.") as temporary:
            unfinished = Path(temporary, "text")
            unfinished.mkdir()
            write(unfinished, documents, tokenizer, language, sequence_length - 3, short_rate)
            if not (unfinished / "tokens.bin").stat().st_size:
                raise ValueError("The corpus is empty: not one of its documents has two tokens.")
            if not (folder / "complete.json").exists():  # another node that shares the cache may have been quicker
                shutil.rmtree(folder, ignore_errors=True)  # what a deletion left that was cut short
                os.replace(unfinished, folder)
    while not (folder / "complete.json").exists():
        time.sleep(0.2)
    return PreparedText.load(folder)
