"""What a denoising model is asked about some text: spans masked, each by one mask, and sentences out of order."""

import numpy as np


def count_spans(tokens: np.ndarray, rate: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """Of texts of so many tokens (N,): how many tokens are masked, and in how many spans (Raffel 2019, 3.1.4).

    Both are functions of the length alone, so that an example's length is known before it is made. At least one token
    is masked and one is not, and no two spans touch.
    """
    masked = np.clip(np.round(tokens * rate).astype(np.int64), 1, np.maximum(tokens - 1, 1))
    most = np.minimum(masked, np.maximum(tokens - masked, 1))  # a token in each span, and one between two spans
    spans = np.clip(np.round(masked / mean_span).astype(np.int64), 1, most)
    return masked, spans


def random_sum(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` numbers of at least 1 that add up to `total`, every such sum as likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def hide_spans(
    ids: np.ndarray, rate: float, mean_span: float, mask_id: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each masked span becomes one mask (Lewis 2019, 2.2: text infilling).

    Args:
        ids: (T,), at least two tokens.

    Returns:
        The text with masks, and the masked spans, each behind a mask.
    """
    masked, spans = (int(count) for count in count_spans(np.array(len(ids)), rate, mean_span))
    # Between and around S spans are S + 1 stretches that stay. Each has a token at least, but a text may also begin or
    # end with a span: one token more is dealt out, and the first or the last stretch gives it back.
    span_lengths = random_sum(masked, spans, random)  # (S,)
    stretches = random_sum(len(ids) - masked + 1, spans + 1, random)  # (S + 1,)
    stretches[random.choice((0, -1))] -= 1
    bounds = np.stack([stretches[:-1], span_lengths], 1).ravel().cumsum().reshape(-1, 2)  # (S, 2): start and end
    text: list[np.ndarray] = []
    hidden: list[np.ndarray] = []
    mask, end = np.array([mask_id], dtype=ids.dtype), 0
    for start, stop in bounds.tolist():
        text += [ids[end:start], mask]
        hidden += [mask, ids[start:stop]]
        end = stop
    return np.concatenate([*text, ids[end:]]), np.concatenate(hidden)


def permute(ids: np.ndarray, starts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The pieces of `ids` that begin at `starts`, in random order (Lewis 2019, 2.2: sentence permutation)."""
    pieces = np.split(ids, starts)
    return np.concatenate([pieces[i] for i in random.permutation(len(pieces))])
