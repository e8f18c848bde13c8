"""Which tokens of a text are hidden from BERT, and what stands in their place (Devlin 2018, 3.1)."""

import numpy as np

from pretraining.data.packing import IGNORED


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
