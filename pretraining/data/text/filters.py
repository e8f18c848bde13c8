"""Which documents are left out: those that are too short, and those that say what another one said.

Near-duplicates are found by MinHash (Broder 1997): two sets have the same smallest hash as often as they overlap. All
is counted on the sets of a document's runs of five words, with N documents and K hash functions.

datasketch and rensa are right too, once they are given these words, but hold a document as objects: of 100,000 lines
rensa takes as long and three times the memory, datasketch thirty times as long and five times the memory.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from zlib import crc32

import numpy as np
import regex

from pretraining.data import draws
from pretraining.data.cache import build_cached
from pretraining.data.shards import count_processes, in_order
from pretraining.data.split import first_equal
from pretraining.data.text.documents import Documents
from pretraining.data.text.settings import TextSettings
from pretraining.errors import UserError

VERSION = 2  # of what is left out: raise it when the same settings leave out other documents
SHINGLE = 5  # words in a run
HASHES = 128  # hash functions: the estimate of a similarity s has the std sqrt(s (1 - s) / 128), 0.035 for s = 0.8
RECALL = 0.99  # share that is compared of the pairs that are exactly as similar as asked
BLOCK = 2**18  # characters, or pairs, at a time
# Scripts that put no space between words (South East Asian, kana, Chinese): each of their characters is one.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u3040-\u312f\u31f0-\u31ff\u3400-\u9fff"
UNSPACED += "\ua000-\ua4cf\ua980-\uaa7f\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
WORD = regex.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
# `re` is three times as fast, and right for Latin, Greek, Cyrillic and Hangul; a vowel sign would end a word of Hindi.
SIMPLE_WORD = re.compile(r"\w+")
NOT_SIMPLE = re.compile("[^\0-\u02ff\u0370-\u0482\u048a-\u052f\u2000-\u20cf\u2100-\u2bff\uac00-\ud7a3]")

REMAINS, SHORT, NEAR_DUPLICATE = range(3)
REASONS = {SHORT: "too short", NEAR_DUPLICATE: "near-duplicates"}


def words(text: str) -> list[str]:
    """The words of a text, in small letters."""
    text = unicodedata.normalize("NFC", text).lower()
    return (WORD if NOT_SIMPLE.search(text) else SIMPLE_WORD).findall(text)


def shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of each text's runs of five words, one text behind the other (S,), where each text's begin (T,).

    And how many words each has (T,). Case and punctuation do not count. A text of fewer words has them all as its one
    run.
    """
    all_words: list[str] = []
    sizes: list[int] = []
    word_counts: list[int] = []
    for text in texts:
        text_words = words(text)
        word_counts.append(len(text_words))
        text_words += [""] * (SHINGLE - len(text_words))
        all_words += text_words
        sizes.append(len(text_words) - SHINGLE + 1)
    hashes = np.fromiter(map(crc32, map(str.encode, all_words)), dtype=np.uint64, count=len(all_words))
    runs = draws.hash_key(*(hashes[at : len(hashes) - SHINGLE + 1 + at] for at in range(SHINGLE)))
    counts = np.array(sizes)
    starts = counts.cumsum() - counts
    # Runs that begin in a text's last four words reach into the next one.
    inside = np.arange(counts.sum()) + np.repeat(np.arange(len(texts)) * (SHINGLE - 1), counts)
    return (runs[inside] >> np.uint64(32)).astype(np.uint32), starts, np.array(word_counts)


def _blocks(texts: Iterator[str]) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Numbers and texts, about `BLOCK` characters at a time; of a longer text, in pieces, no run across a cut."""
    pieces = (
        (number, text[first : first + BLOCK])
        for number, text in enumerate(texts)
        for first in range(0, len(text), BLOCK)
    )
    total = 0

    def block(piece: tuple[int, str]) -> int:
        nonlocal total
        total += len(piece[1])
        return (total - 1) // BLOCK

    for _, group in groupby(pieces, key=block):
        numbers, block_texts = zip(*group, strict=True)
        yield np.array(numbers), list(block_texts)


def sign(documents: Documents, shard: range) -> np.ndarray:
    """Signatures of a shard's documents, uint16 (K, N): their estimate of a similarity is the share of equal entries.

    Of each smallest hash 16 bits are kept (Li 2010), drawn from all of its own: others agree in them once in 65,536
    times. A document of one run at most has the text itself instead: in these few words, or none, every sign counts.
    """
    smallest = np.full((HASHES, len(shard)), 2**32 - 1, dtype=np.uint32)
    word_counts = np.zeros(len(shard), dtype=np.int64)
    salts = draws.hash_key(np.arange(2 * HASHES)).astype(np.uint32).reshape(2, HASHES)
    for numbers, texts in _blocks(documents.texts(shard)):
        values, starts, counts = shingles(texts)
        np.add.at(word_counts, numbers, counts)
        for row, salt, factor in zip(smallest, salts[0], salts[1] | np.uint32(1), strict=True):
            np.minimum.at(row, numbers, np.minimum.reduceat((values ^ salt) * factor, starts))
    short = np.flatnonzero(word_counts <= SHINGLE)
    short_hashes = documents.hash[shard.start : shard.stop][short]
    signatures = np.empty(smallest.shape, dtype=np.uint16)
    for number, row in enumerate(smallest):
        signatures[number] = draws.hash_key(row) >> np.uint64(48)
        signatures[number, short] = draws.hash_key(number, short_hashes) >> np.uint64(48)
    return signatures


def band_rows(threshold: float) -> int:
    """Rows of a band: the most with which documents as similar as `threshold` share one of the K / rows bands."""
    return max(
        (rows for rows in range(1, HASHES + 1) if 1 - (1 - threshold**rows) ** (HASHES // rows) >= RECALL), default=1
    )


def near_duplicates(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Which documents are at least as similar as `threshold` to an earlier one: bool (N,).

    Documents that agree in a band of rows are compared: each with the first of them, and with the one before it, so
    that a page copied a million times costs two million comparisons.

    Args:
        signatures: uint16 (K, N).
    """
    is_duplicate = np.zeros(signatures.shape[1], dtype=bool)
    rows = band_rows(threshold)
    for first in range(0, HASHES - rows + 1, rows):
        key = draws.hash_key(*signatures[first : first + rows])
        order = np.argsort(key, kind="stable")
        key = key[order]
        same = np.flatnonzero(key[1:] == key[:-1]) + 1  # places of documents that are not the first of their band
        for earlier in (same - 1, np.searchsorted(key, key[same], side="left")):
            for start in range(0, len(same), BLOCK):
                at = slice(start, start + BLOCK)
                a, b = order[earlier[at]], order[same[at]]
                a, b = a[~is_duplicate[b]], b[~is_duplicate[b]]
                equal = np.zeros(len(b), dtype=np.uint16)
                for row in signatures:
                    equal += row[a] == row[b]
                is_duplicate[b[equal >= threshold * HASHES]] = True
    return is_duplicate


def filter_text(
    documents: dict[str, Documents], settings: TextSettings, cache: Path, is_builder: bool
) -> tuple[dict[str, Documents], dict[str, dict[str, int]]]:
    """Leaves out short documents, then near-duplicates; held-out documents come first, so that nothing leaks.

    Args:
        documents: splits "train" and "validation".
        cache, is_builder: as in `build_cached`; what is left out is kept there.

    Returns:
        The splits that remain, and for each the number left out for each reason.

    Raises:
        UserError: nothing of a split remains.
    """
    splits = {split: documents[split] for split in ("validation", "train")}
    all_documents = Documents.concatenate(list(splits.values()))
    held_out = len(splits["validation"])

    def make(folder: Path) -> dict[str, str]:
        reasons = np.zeros(len(all_documents), dtype=np.uint8)
        reasons[all_documents.characters < settings.min_characters] = SHORT
        long = np.flatnonzero(reasons == REMAINS)
        rest = all_documents.select(reasons == REMAINS)
        if settings.near_duplicates == 1:
            reasons[long[first_equal(rest.hash) != np.arange(len(rest))]] = NEAR_DUPLICATE
        elif settings.near_duplicates and len(long):
            path = folder / "signatures"
            signatures = np.memmap(path, dtype=np.uint16, mode="w+", shape=(HASHES, len(rest)))
            work = partial(sign, rest)
            title, processes = "looking for near-duplicates", count_processes(settings.processes)
            for shard, columns in in_order(work, rest.shards(), processes, title, "documents"):
                signatures[:, shard.start : shard.stop] = columns
            reasons[long[near_duplicates(signatures, settings.near_duplicates)]] = NEAR_DUPLICATE
            path.unlink()
        reasons.tofile(folder / "reasons.bin")
        return {}

    content = [VERSION, all_documents.fingerprint, held_out, settings.min_characters, settings.near_duplicates]
    folder = build_cached(cache, "kept", content, make, is_builder)
    reasons = np.fromfile(folder / "reasons.bin", dtype=np.uint8)
    remaining: dict[str, Documents] = {}
    left_out: dict[str, dict[str, int]] = {}
    for split, split_reasons in zip(splits, np.split(reasons, [held_out]), strict=True):
        left_out[split] = {name: int((split_reasons == reason).sum()) for reason, name in REASONS.items()}
        remaining[split] = splits[split].select(split_reasons == REMAINS)
        if len(split_reasons) and not len(remaining[split]):
            why = " and ".join(f"{count:,} are {name}" for name, count in left_out[split].items() if count)
            raise UserError(
                f"Nothing of the {split} split is left, of whose {len(split_reasons):,} documents {why}: set "
                "data.min_characters or data.near_duplicates lower."
            )
    return remaining, left_out
