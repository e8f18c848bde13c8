"""Which tokens of a text BERT has to predict, and what stands in their place (Devlin 2018, 3.1)."""

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
    """Masks `rate` of the maskable tokens, at least one; BERT: 80 % [MASK], 10 % random, 10 % unchanged.

    Args:
        ids, maskable: (T,).
        word_start: (T,), where words begin, to mask whole words (Cui 2019); None: single tokens.
        mask_token_rate, random_token_rate: the shares of the masked tokens that become [MASK], or a random token.
        replacements: the ids that random tokens are drawn from.

    Returns:
        Inputs and labels, (T,) each; labels are -100 where nothing is to be predicted.
    """
    candidates = np.flatnonzero(maskable)  # (candidates,): places in the text
    inputs, labels = ids.copy(), np.full(len(ids), IGNORED, dtype=np.int64)
    if not rate or not len(candidates):
        return inputs, labels
    count = max(1, round(rate * len(candidates)))
    if word_start is None:
        masked = random.permutation(candidates)[:count]
    else:
        # A word never reaches across a special token, which leaves a gap between the candidates.
        gap = np.diff(candidates, prepend=-2) > 1
        words = np.split(candidates, np.flatnonzero(word_start[candidates] | gap)[1:])
        chosen: list[np.ndarray] = []
        room = count
        for word in random.permutation(len(words)):
            # A word that is longer than the room left is passed over, or the rate would be exceeded; but not the
            # first one, or a text of a single long word would have nothing masked.
            if len(words[word]) <= room or not chosen:
                chosen.append(words[word])
                room -= len(words[word])
            if room <= 0:
                break
        masked = np.concatenate(chosen)
    labels[masked] = ids[masked]
    # One number for each masked token: below the first bound [MASK], below the second a random token, else unchanged,
    # so that the model cannot trust what it sees in any place.
    fate = random.random(len(masked))
    inputs[masked[fate < mask_token_rate]] = mask_id
    replaced = masked[(fate >= mask_token_rate) & (fate < mask_token_rate + random_token_rate)]
    inputs[replaced] = random.choice(replacements, len(replaced))
    return inputs, labels
