"""The part of augmentation that is done to a batch of images at once, on whatever device it lies: erasing and mixing.

B images of C channels and S x S pixels, with values from 0 to 1. To the bit, an image's result does not depend on the
others in its batch.
"""

from functools import cache

import torch
from torch import Tensor

PER_DRAW = 4  # numbers of 16 bits in one of 64


def erase(pixels: Tensor, erased: Tensor, noise_seed: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """A rectangle of each image becomes noise, which alone may lie beyond 0 and 1 (Zhong 2017).

    Args:
        pixels: (B, C, S, S).
        erased, noise_seed: (B, 4) and (B,), from `draw_erasing`.
        mean, std: (C, 1, 1), what the images are normalised with afterwards. The noise is then standard normal, as in
            timm's "pixel" mode.

    Returns:
        (B, C, S, S).
    """
    chosen = (erased[:, 2] > erased[:, 0]).nonzero().squeeze(1)
    noise = normal(noise_seed[chosen], pixels[0].numel()).view(-1, *pixels.shape[1:])
    result = pixels.clone()
    result[chosen] = torch.where(inside(erased[chosen], pixels.shape[-1]), mean + std * noise, pixels[chosen])
    return result


def mix_images(pixels: Tensor, partners: Tensor, weight: Tensor, rectangle: Tensor) -> Tensor:
    """Each image and its partner, blended (Zhang 2017), or the partner's rectangle pasted over (Yun 2019).

    Args:
        pixels, partners: (B, C, S, S).
        weight, rectangle: (B,) and (B, 4), from `draw_mixing`.

    Returns:
        (B, C, S, S).
    """
    pasted = (rectangle[:, 2] > rectangle[:, 0])[:, None, None, None]  # (B, 1, 1, 1)
    visible = (~inside(rectangle, pixels.shape[-1])).float()  # (B, 1, S, S)
    share = torch.where(pasted, visible, weight[:, None, None, None])
    return (pixels * share).add_(partners * (1 - share))


def inside(rectangle: Tensor, size: int) -> Tensor:
    """Which pixels lie in each rectangle: (B, 4) -> (B, 1, S, S)."""
    position = torch.arange(size, device=rectangle.device)  # (S,)
    left, top, right, bottom = rectangle[:, :, None].unbind(1)  # (B, 1)
    columns = (position >= left) & (position < right)  # (B, S)
    rows = (position >= top) & (position < bottom)
    return (rows[:, :, None] & columns[:, None])[:, None]


def normal(seeds: Tensor, count: int) -> Tensor:
    """`count` standard normal numbers from each seed, the same on every device: (B,) int64 -> (B, count).

    SplitMix64 (Steele 2014) counts from the seed. Each 16 bits of it choose one of 65,536 quantiles.
    """
    counter = torch.arange(1, -(-count // PER_DRAW) + 1, device=seeds.device)
    z = seeds[:, None] + counter * -0x61C8864680B583EB  # 0x9E3779B97F4A7C15, as a signed number
    z = (z ^ shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ shift(z, 27)) * -0x6B2FB644ECCEEE15
    z = z ^ shift(z, 31)
    return quantiles(seeds.device)[z.view(torch.int16)[:, :count].long() + 2**15]


def shift(z: Tensor, bits: int) -> Tensor:
    """Signed numbers to the right by some bits, as if they were unsigned."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


@cache
def quantiles(device: torch.device) -> Tensor:
    """The middles of 65,536 equally likely parts of the standard normal distribution."""
    return torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16).float().to(device)
