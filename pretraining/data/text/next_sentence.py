"""Which two segments an example has, and what is asked about them: does B follow A, or are the two in order?

What is seen of a pair without reading it (lengths, where sentences begin and end) must not tell the answer, or the loss
teaches no more than that: both answers have the same surface. Everything is drawn from (seed, epoch, index).

N examples, each made from one chunk. Places are offsets into the prepared tokens; arrays are (N,) unless they say more.
"""

from dataclasses import dataclass

import numpy as np

from pretraining.data import draws
from pretraining.data.packing import IGNORED
from pretraining.data.text.prepared import PreparedText

VERSION = 2  # of these rules: raise it when they change, and a run that began under older ones is not resumed
IS_NEXT, NOT_NEXT = 0, 1  # as transformers' next_sentence_label
CANDIDATES = 64  # places in other documents where a B is looked for, before the question is given up
BLOCK = 2**16  # candidates looked at together, for memory
STEP = 8  # tokens; the most by which a B is cut that would else end its document

Key = tuple[int, int]  # the seed and the epoch


@dataclass(frozen=True)
class SegmentPairs:
    """Where the segments of N examples lie in the prepared tokens: each is two spans, of which one may be empty."""

    a: np.ndarray
    """(N, 2, 2): the start and the end of the first span and of the second."""
    b: np.ndarray
    """As `a`; empty without pairs."""
    label: np.ndarray
    """(N,). 0: B follows A; 1: it does not (nsp), or sentences of A and B are exchanged (sop); -100: no question."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of A and B together: (N,)."""
        return (self.a[..., 1] - self.a[..., 0] + self.b[..., 1] - self.b[..., 0]).sum(1)


def spans(first: np.ndarray, first_end: np.ndarray, second: np.ndarray, second_end: np.ndarray) -> np.ndarray:
    """Segments of two spans: (N, 2, 2)."""
    return np.stack([first, first_end, second, second_end], 1).reshape(-1, 2, 2)


def draw_pairs(data: PreparedText, kind: str, seed: int, epoch: int, index: np.ndarray) -> SegmentPairs:
    """The pairs of examples `index` in this epoch; every pass over the chunks draws its own.

    Args:
        kind: objective.next_sentence: nsp, sop, or none for one segment alone.
    """
    chunk = index % len(data)
    start, end = data.chunks[chunk], data.chunks[chunk + 1]
    if kind == "none":
        return SegmentPairs(spans(start, end, end, end), spans(end, end, end, end), np.full(len(index), IGNORED))
    is_next = draws.uniform(seed, epoch, draws.IS_NEXT, index) < 0.5
    rule = next_sentence if kind == "nsp" else sentence_order
    return rule(data, start, end, is_next, (seed, epoch), index)


def split_chunks(data: PreparedText, start: np.ndarray, end: np.ndarray, key: Key, index: np.ndarray) -> np.ndarray:
    """Where B begins if it follows A: at a sentence that begins inside the chunk, or else inside its one sentence."""
    first = np.searchsorted(data.sentences, start, side="right")
    inside = np.searchsorted(data.sentences, end, side="left") - first  # how many sentences begin inside
    drawn = draws.integers(np.where(inside, inside, end - start - 1), *key, draws.SPLIT, index)
    return np.where(inside, data.sentences[first + drawn * (inside > 0)], start + 1 + drawn)


def sentence_order(
    data: PreparedText, start: np.ndarray, end: np.ndarray, is_next: np.ndarray, key: Key, index: np.ndarray
) -> SegmentPairs:
    """The whole sentences of a chunk in two parts, in order or exchanged (sentence order, Lan 2019, 3.1).

    The sentence that the chunk begins in stays at the head of A: it is cut, or the document's first, as a title is. One
    that the chunk's end cuts stays at the tail of B. Between them are whole sentences in either order, and no token is
    lost. Where fewer than two are there, nothing is asked.
    """
    # start .. first: head of A | first .. split: one part | split .. last: the other part | last .. end: tail of B
    first = np.searchsorted(data.sentences, start, side="right")
    last = np.searchsorted(data.sentences, end, side="right") - 1
    whole = last - first  # whole sentences between head and tail
    asked = whole >= 2
    middle = first + asked * (1 + draws.integers(np.maximum(whole - 1, 1), *key, draws.SPLIT, index))
    # From sentence numbers to tokens; where nothing is asked A and B meet at any split, without head and tail.
    split = np.where(asked, data.sentences[middle], split_chunks(data, start, end, key, index))
    head_end, tail = np.where(asked, data.sentences[first], split), np.where(asked, data.sentences[last], end)
    in_order = is_next | ~asked
    a = spans(start, head_end, np.where(in_order, head_end, split), np.where(in_order, split, tail))
    b = spans(np.where(in_order, split, head_end), np.where(in_order, tail, split), tail, end)
    return SegmentPairs(a, b, np.where(asked, np.where(is_next, IS_NEXT, NOT_NEXT), IGNORED))


def next_sentence(
    data: PreparedText, start: np.ndarray, end: np.ndarray, is_next: np.ndarray, key: Key, index: np.ndarray
) -> SegmentPairs:
    """The two sides of a split of a chunk, or A and a B of another document (next sentence, Devlin 2018, 3.1).

    For every B that follows its A another one is looked for that looks the same, whichever of the two is then taken:
    as long, and alike in `surface`. Where there is none, nothing is asked, and B is the one that follows.

    Where the document goes on behind the chunk, B is cut anywhere in a sentence. A document ends with a sentence, and
    what is cut out of another hardly ever would; so a B that would end its document is cut as well, up to STEP tokens
    early, at a length that does not depend on the text.
    """
    split = split_chunks(data, start, end, key, index)
    at_end = end == data.documents[data.chunk_document[index % len(data)] + 1]
    shortest = 1 + draws.integers(STEP, *key, draws.CUT, index)  # lengths are shortest, shortest + STEP, ...
    length = np.where(at_end, (end - split - 1 - shortest) // STEP * STEP + shortest, end - split)
    other = find_others(data, split, length, at_end, key, index)
    asked = other >= 0
    b_start = np.where(asked & ~is_next, other, split)
    b_end = np.where(asked, b_start + length, end)
    label = np.where(asked, np.where(is_next, IS_NEXT, NOT_NEXT), IGNORED)
    return SegmentPairs(spans(start, split, split, split), spans(b_start, b_end, b_end, b_end), label)


def find_others(
    data: PreparedText, split: np.ndarray, length: np.ndarray, at_end: np.ndarray, key: Key, index: np.ndarray
) -> np.ndarray:
    """Where a B of another document starts that looks like the one at `split`; -1: no candidate does.

    A candidate begins with the next sentence after any token of another document; or with that token, where the split
    is inside a sentence. Where B has been cut before its document's end (`at_end`), candidates begin as many sentences
    before the end of their documents, and are cut as near to it.

    Args:
        length: of B in tokens; below 1 where B is too short to be cut.
    """
    sentences, documents = np.asarray(data.sentences), np.asarray(data.documents)  # as arrays memory maps are faster
    document = data.chunk_document[index % len(data)]
    target = surface(sentences, split, length)
    sentence = np.searchsorted(sentences, split)
    by_sentence = sentences[sentence] == split  # B begins with a sentence
    by_end = at_end & by_sentence
    sentences_left = np.searchsorted(sentences, documents[document + 1]) - sentence

    other = np.full(len(index), -1)
    waiting, turn = np.flatnonzero(length > 0), 0
    while len(waiting) and turn < CANDIDATES:
        # Twice as many candidates in each round, as memory allows; the first that fits is taken, however they are cut.
        turns = np.arange(turn, turn + min(max(turn, 1), max(BLOCK // len(waiting), 1), CANDIDATES - turn))
        i = waiting[:, None]  # from here on arrays are (waiting, turns)
        draw = (*key, draws.PARTNER, index[i], turns)
        token = number_outside(documents[document[i]], documents[document[i] + 1], documents[-1], *draw)
        candidate_document = np.where(
            by_end[i],
            number_outside(document[i], document[i] + 1, len(documents) - 1, *draw),
            np.searchsorted(documents, token, side="right") - 1,
        )
        document_end = documents[candidate_document + 1]
        # The sentence that the candidate begins with: the next one, or as many before the end as there are behind B.
        at = np.searchsorted(sentences, np.where(by_end[i], document_end, token)) - by_end[i] * sentences_left[i]
        start = np.where(by_sentence[i], sentences[np.maximum(at, 0)], token)
        left = document_end - start - length[i]  # tokens of the document behind this candidate
        # Not a document's first sentence either: no B that follows its A is one.
        fits = (start > documents[candidate_document]) & (left > 0) & ((left <= STEP) | ~at_end[i])
        row, column = np.nonzero(fits)  # the surface is worked out for these alone: it is what takes time
        example = waiting[row]
        alike = surface(sentences, start[row, column], length[example]) == target[example]
        fits[row, column] = alike.all(1)
        has_other = fits.any(1)
        other[waiting[has_other]] = start[has_other, fits[has_other].argmax(1)]
        waiting, turn = waiting[~has_other], turn + len(turns)
    return other


def number_outside(first: np.ndarray, end: np.ndarray, count: int, *key: draws.Key) -> np.ndarray:
    """Numbers below `count` that are not in [first, end), drawn from the key."""
    drawn = draws.integers(count - (end - first), *key)
    return drawn + np.where(drawn >= first, end - first, 0)


def surface(sentences: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """What is seen of some text without reading it, beside its length: (N, 3).

    Whether it begins with a sentence, how many sentences begin inside, and whether it ends with one.

    Args:
        sentences: offsets of the sentences.
        start, length: of the text, in tokens.
    """
    first = np.searchsorted(sentences, start, side="right")
    last = np.searchsorted(sentences, start + length, side="left")
    return np.stack([sentences[first - 1] == start, last - first, sentences[last] == start + length], 1)
