"""What a denoising model is asked about some text: spans hidden, each behind one mask, and sentences out of order."""

import numpy as np


def count_spans(tokens: np.ndarray, rate: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """Of texts of so many tokens: how many tokens are hidden, and in how many spans (Raffel 2019, 3.1.4).

    Both are functions of the length alone, so that an example's length is known before it is made. At least one token
    is hidden and one is not, and no two spans touch.
    """
    hidden = np.clip(np.round(tokens * rate).astype(np.int64), 1, np.maximum(tokens - 1, 1))
    spans = np.clip(
        np.round(hidden / mean_span).astype(np.int64), 1, np.minimum(hidden, np.maximum(tokens - hidden, 1))
    )
    return hidden, spans


def parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """`total` as a sum of `count` numbers of at least 1, every such sum as likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def hide_spans(
    ids: np.ndarray, rate: float, mean_span: float, mask_id: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each hidden span becomes one mask (Lewis 2019, 2.2: text infilling).

    Args:
        ids: (T,), at least two tokens.

    Returns:
        The text with masks, and the hidden spans, each behind a mask.
    """
    hidden, spans = (int(count) for count in count_spans(np.array(len(ids)), rate, mean_span))
    # By turns what stays and what is hidden; a text may also end with what stays, or begin with a span.
    lengths = parts(hidden, spans, random)
    stays = parts(len(ids) - hidden + 1, spans + 1, random)
    stays[random.choice((0, -1))] -= 1
    bounds = np.stack([stays[:-1], lengths], 1).ravel().cumsum()
    kept: list[np.ndarray] = []
    gone: list[np.ndarray] = []
    mask, end = np.array([mask_id], dtype=ids.dtype), 0
    for start, stop in bounds.reshape(-1, 2).tolist():
        kept += [ids[end:start], mask]
        gone += [mask, ids[start:stop]]
        end = stop
    return np.concatenate([*kept, ids[end:]]), np.concatenate(gone)


def permute(ids: np.ndarray, starts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The pieces of `ids` that begin at `starts`, in random order (Lewis 2019, 2.2: sentence permutation)."""
    pieces = np.split(ids, starts)
    return np.concatenate([pieces[i] for i in random.permutation(len(pieces))])
