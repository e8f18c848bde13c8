"""What BERT is asked about some text: two segments, the second perhaps exchanged, and tokens that are hidden.

Devlin 2018, 3.1; everything is drawn from (seed, epoch, index).
"""

from dataclasses import dataclass

import numpy as np

from pretraining.data import draws
from pretraining.data.prepare import PreparedText
from pretraining.data.rows import IGNORED

IS_NEXT, NOT_NEXT = 0, 1


@dataclass(frozen=True)
class Pairs:
    """Where the two segments of some examples lie in the prepared tokens, arrays (N,); B is empty without pairs."""

    a_start: np.ndarray
    a_end: np.ndarray
    b_start: np.ndarray
    b_end: np.ndarray
    label: np.ndarray
    """0: B follows A; 1: it does not (nsp), or the two are swapped (sop); -100: no pair."""


def draw_pairs(data: PreparedText, kind: str, seed: int, epoch: int, index: np.ndarray) -> Pairs:
    """The pairs of examples `index` (N,) in this epoch; every pass over the chunks draws its own.

    A and B are the two sides of a split at one of the chunk's sentences (inside its one sentence, where it has no
    second). For `nsp`, half of the B are replaced by as many tokens from another document, beginning at a sentence
    too and early enough to be as long: a pair's length must not tell whether it is a true one.
    """

    def draw(high: np.ndarray, purpose: int) -> np.ndarray:
        return draws.below(high, seed, epoch, purpose, index)

    chunk = index % len(data)
    start, end = data.chunks[chunk], data.chunks[chunk + 1]
    if kind == "none":
        return Pairs(start, end, end, end, np.full(len(index), IGNORED))
    first = np.searchsorted(data.sentences, start, side="right")
    inside = np.searchsorted(data.sentences, end, side="left") - first  # sentences that begin inside the chunk
    at_sentence = inside > 0
    split = np.where(
        at_sentence,
        data.sentences[first + draw(np.maximum(inside, 1), draws.SPLIT) * at_sentence],
        start + 1 + draw(end - start - 1, draws.SPLIT),
    )
    true = draws.uniform(seed, epoch, draws.IS_NEXT, index) < 0.5
    label = np.where(true, IS_NEXT, NOT_NEXT)
    if kind == "sop":
        a_start, a_end = np.where(true, start, split), np.where(true, split, end)
        b_start, b_end = np.where(true, split, start), np.where(true, end, split)
        return Pairs(a_start, a_end, b_start, b_end, label)

    # A chunk of another document: one number below the count of the others' chunks, own ones stepped over.
    document = data.chunk_document[chunk]
    own_first = data.document_chunk[document]
    own = data.document_chunk[document + 1] - own_first
    partner = draw(len(data) - own, draws.PARTNER)
    partner = partner + np.where(partner >= own_first, own, 0)
    first = np.searchsorted(data.sentences, data.chunks[partner], side="left")
    inside = np.searchsorted(data.sentences, data.chunks[partner + 1], side="left") - first
    by_sentence = at_sentence & (inside > 0)
    chosen = np.where(
        by_sentence,
        data.sentences[first + draw(np.maximum(inside, 1), draws.PARTNER_START) * by_sentence],
        data.chunks[partner] + draw(data.chunks[partner + 1] - data.chunks[partner], draws.PARTNER_START),
    )
    partner_document = data.chunk_document[partner]
    bounds = data.documents[partner_document], data.documents[partner_document + 1]
    latest = np.maximum(bounds[1] - (end - split), bounds[0])
    last_sentence = data.sentences[np.searchsorted(data.sentences, latest, side="right") - 1]
    latest = np.where(at_sentence, last_sentence, latest)
    other_start = np.minimum(chosen, latest)
    other_end = np.minimum(other_start + (end - split), bounds[1])
    return Pairs(start, split, np.where(true, split, other_start), np.where(true, end, other_end), label)


def mask_tokens(
    ids: np.ndarray,
    maskable: np.ndarray,
    word_start: np.ndarray | None,
    random: np.random.Generator,
    rate: float,
    mask_token_rate: float,
    random_token_rate: float,
    mask_id: int,
    replacements: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Hides `rate` of the maskable tokens, at least one; BERT: 80 % [MASK], 10 % random, 10 % kept (Devlin 2018, 3.1).

    Args:
        ids, maskable: (T,).
        word_start: (T,), where words begin, to hide whole words; None: single tokens.
        mask_token_rate, random_token_rate: of the hidden ones, the share that becomes [MASK], or a random token.
        replacements: the ids that random tokens are drawn from.

    Returns:
        Inputs and labels, (T,) each; labels are -100 where nothing is to be predicted.
    """
    candidates = np.flatnonzero(maskable)
    inputs, labels = ids.copy(), np.full(len(ids), IGNORED, dtype=np.int64)
    if not rate or not len(candidates):
        return inputs, labels
    count = max(1, round(rate * len(candidates)))
    if word_start is None:
        chosen = random.permutation(candidates)[:count]
    else:
        gap = np.diff(candidates, prepend=-2) > 1  # a word never reaches across a special token
        words = np.split(candidates, np.flatnonzero(word_start[candidates] | gap)[1:])
        picked: list[np.ndarray] = []
        room = count
        for word in random.permutation(len(words)):
            if len(words[word]) <= room or not picked:
                picked.append(words[word])
                room -= len(words[word])
            if room <= 0:
                break
        chosen = np.concatenate(picked)
    labels[chosen] = ids[chosen]
    fate = random.random(len(chosen))
    inputs[chosen[fate < mask_token_rate]] = mask_id
    replaced = chosen[(fate >= mask_token_rate) & (fate < mask_token_rate + random_token_rate)]
    inputs[replaced] = random.choice(replacements, len(replaced))
    return inputs, labels
