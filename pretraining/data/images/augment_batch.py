"""What was drawn for images, done to a batch of them at once, on whatever device it lies.

B images of C channels and S x S pixels. None depends on which others are in its batch, to the bit.
"""

from functools import cache

import torch
from torch import Tensor

from pretraining.data.images.randaugment import randaugment

PER_DRAW = 4  # numbers of 16 bits in one of 64


def augment(pixels: Tensor, drawn: dict[str, Tensor], mean: Tensor | float = 0.5, std: Tensor | float = 0.5) -> Tensor:
    """Flipped, through RandAugment and partly erased, as far as `drawn` says so.

    Args:
        pixels: (B, C, S, S), 8-bit.
        drawn: what `draw` returns, of these images.
        mean, std: what images are normalised with afterwards, (C, 1, 1) or numbers: the noise will then be
            standard normal, as in timm's "pixel" mode.

    Returns:
        (B, C, S, S), from 0 to 1; only the noise reaches beyond.
    """
    pixels = torch.where(drawn["flip"][:, None, None, None], pixels.flip(3), pixels)
    if "operations" in drawn:
        pixels = randaugment(pixels, drawn["operations"], drawn["arguments"])
    result = pixels.float().div_(255)
    if "erased" in drawn:
        erased = drawn["erased"]
        some = (erased[:, 2] > erased[:, 0]).nonzero().squeeze(1)
        noise = normal(drawn["noise_seed"][some], result[0].numel()).view(-1, *result.shape[1:])
        result[some] = torch.where(inside(erased[some], result.shape[-1]), mean + std * noise, result[some])
    return result


def mix(pixels: Tensor, partners: Tensor, weight: Tensor, rectangle: Tensor) -> Tensor:
    """Each image and its partner, blended (Zhang 2017), or the partner's rectangle pasted over (Yun 2019).

    Args:
        pixels, partners: (B, C, S, S).
        weight, rectangle: (B,) and (B, 4), from `draw_mixing`.

    Returns:
        (B, C, S, S).
    """
    pasted = (rectangle[:, 2] > rectangle[:, 0])[:, None, None, None]
    own = torch.where(pasted, (~inside(rectangle, pixels.shape[-1])).float(), weight[:, None, None, None])
    return (pixels * own).add_(partners * (1 - own))


def inside(rectangle: Tensor, size: int) -> Tensor:
    """Which pixels lie in each rectangle: (B, 4) -> (B, 1, S, S)."""
    place = torch.arange(size, device=rectangle.device)
    left, top, right, bottom = rectangle[:, :, None].unbind(1)  # (B, 1)
    columns, rows = (place >= left) & (place < right), (place >= top) & (place < bottom)  # (B, S)
    return (rows[:, :, None] & columns[:, None])[:, None]


def normal(seeds: Tensor, count: int) -> Tensor:
    """So many standard normal numbers from each seed, the same on every device: (B,) int64 -> (B, count).

    SplitMix64 (Steele 2014) counts from the seed; 16 bits choose one of 65,536 quantiles.
    """
    counter = torch.arange(1, -(-count // PER_DRAW) + 1, device=seeds.device)
    z = seeds[:, None] + counter * -0x61C8864680B583EB  # 0x9E3779B97F4A7C15, as a signed number
    z = (z ^ shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ shift(z, 27)) * -0x6B2FB644ECCEEE15
    z = z ^ shift(z, 31)
    return quantiles(seeds.device)[z.view(torch.int16)[:, :count].long() + 2**15]


def shift(z: Tensor, bits: int) -> Tensor:
    """To the right, as an unsigned number."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


@cache
def quantiles(device: torch.device) -> Tensor:
    """The middles of 65,536 equally likely parts of the standard normal distribution."""
    return torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16).float().to(device)
