"""Arrays as a page holds them: bytes in base64, in no more room than there is.

N maps, R rows, K columns; L layers, A heads, Q queries, H and W height and width in patches.
"""

import base64
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretraining.errors import UserError

PNG_SIDE = 96  # pixels; larger pictures are photographs, which JPEG makes small


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def pack_maps(maps: Tensor, low: Tensor, high: Tensor) -> dict[str, Any]:
    """Maps (N, R, K) as bytes, each between its own `low` and `high` (N,): precise to 1/510 of their distance."""
    span = (high - low).clamp(min=1e-12)[:, None, None]
    shares = ((maps - low[:, None, None]) / span).clamp(0, 1)
    return {
        "shape": list(maps.shape),
        "low": [round(value, 6) for value in low.tolist()],
        "high": [round(value, 6) for value in high.tolist()],
        "bytes": base64_of((shares * 255).round().to(torch.uint8).numpy().tobytes()),
    }


def pack_weights(weights: Tensor) -> dict[str, Any]:
    """Attention weights (L, A, Q, K): each head's scale begins at 0 and ends at its largest weight."""
    maps = weights.flatten(0, 1)
    return pack_maps(maps, torch.zeros(len(maps)), maps.amax((1, 2)))


def pack_similarities(cosines: Tensor) -> dict[str, Any]:
    """Cosines (P, P) of things with one another; that of each with itself, which is 1, is left out of the scale."""
    others = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
    low, high = (others.min(), others.max()) if len(others) else cosines.aminmax()
    return pack_maps(cosines[None], low[None], high[None])


def picture(pixels: Tensor) -> str:
    """Pixels (C, height, width) from 0 to 1 as an image's address."""
    array = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    file, kind = BytesIO(), "PNG" if max(array.shape[:2]) <= PNG_SIDE else "JPEG"
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64_of(file.getvalue())}"


def some_layers(count: int, kept: int) -> list[int]:
    """Numbers of `kept` of `count` layers, as evenly apart as can be; the last is one of them."""
    return sorted(count - 1 - number * count // kept for number in range(kept))


def some_patches(side: int, step: int) -> list[int]:
    """Numbers of every `step`-th patch in both directions, of `side` x `side`, the margins equal."""
    line = np.arange(side)[(side - 1) % step // 2 :: step]
    return (line[:, None] * side + line).flatten().tolist()


def fit(maps: list[dict[str, Any]], all_weights: list[Tensor], room: int) -> None:
    """Packs the weights of maps, (L, A, Q, K) each, into at most `room` bytes in all.

    Over texts some layers are left out where all are too many, over images (where `grid` is their patches' side) some
    queries: a map is then complete, and the layers are all there. `layers`, `queries` and `note` say what remains.

    Raises:
        UserError: the inputs are too many, or too long.
    """
    whole = sum(weights.numel() for weights in all_weights)
    for each, weights in zip(maps, all_weights, strict=True):
        share = room * weights.numel() // whole  # bytes
        count = len(weights)
        each["layers"] = list(range(count))
        if "grid" in each:
            each["queries"] = _queries(each["grid"], share // weights[:, :, 0].numel())
            weights = weights[:, :, [0, *(weights.shape[2] - each["grid"] ** 2 + n for n in each["queries"])]]
            if len(each["queries"]) < each["grid"] ** 2:
                each["note"] = f"Of the patches {len(each['queries'])} can be chosen: more would not fit into the page."
        elif weights.numel() > share:
            each["layers"] = some_layers(count, share // weights[0].numel())
            weights = weights[each["layers"]]
            each["note"] = f"{len(weights)} of {count} layers are here: more would not fit into the page."
        if not weights.numel():
            raise UserError("the inputs are more than a page of 2 MB holds: give fewer or shorter ones.")
        each["maps"] = pack_weights(weights)


def _queries(side: int, most: int) -> list[int]:
    """The patches that are queries beside the pooled one, so that there are at most `most` queries."""
    for step in range(1, side + 1):
        patches = some_patches(side, step)
        if len(patches) < most:
            return patches
    raise UserError("the images are more than a page of 2 MB holds: give fewer.")
