"""RandAugment's operations (Cubuk 2019) on batches of 8-bit images, as PIL computes them, to the bit.

G images of C channels (1 or 3) and S x S pixels; arguments are whole numbers, in 1/65536, as in PIL's own warp. So an
image's result depends neither on its batch nor on the device.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

STRONGEST = 30
ONE = 1 << 16
GREY = 128  # what comes in from outside


def grey(x: Tensor) -> Tensor:
    """(G, C, S, S) -> (G, 1, S, S), ITU-R 601-2 luma; int32."""
    if x.shape[1] == 1:
        return x.int()
    red, green, blue = x.int().split(1, 1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def blend(base: Tensor | int, x: Tensor, argument: Tensor) -> Tensor:
    """`base` at a factor of 0, the image at 1, beyond it at more; cut to a whole number as PIL does."""
    factor = (argument[:, 0] / ONE)[:, None, None, None]
    return (x.float() - base).mul_(factor).add_(base).clamp_(0, 255).byte()


def identity(x: Tensor, argument: Tensor) -> Tensor:
    return x


def autocontrast(x: Tensor, argument: Tensor) -> Tensor:
    """Each channel's darkest value becomes 0 and its brightest 255."""
    low, high = x.amin((2, 3), keepdim=True).float(), x.amax((2, 3), keepdim=True).float()
    return torch.where(high > low, (x.float() - low).mul_(255).div_(high - low), x).byte()


def equalize(x: Tensor, argument: Tensor) -> Tensor:
    """Each channel's values are spread, so that each is about as frequent."""
    values = x.flatten(2).flatten(0, 1).long()  # (G * C, S * S)
    channels = torch.arange(len(values), device=x.device)[:, None]
    counts = torch.bincount((values + 256 * channels).flatten(), minlength=256 * len(values)).view(-1, 256)
    brightest = counts.gather(1, values.amax(1, keepdim=True))
    step = (values.shape[1] - brightest) // 255
    table = (step // 2 + counts.cumsum(1) - counts) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=x.device))
    return table.byte().gather(1, values).view(x.shape)


def solarize(x: Tensor, argument: Tensor) -> Tensor:
    """Values from the threshold on are inverted."""
    threshold = (argument[:, 0] + ONE - 1 >> 16).byte()[:, None, None, None]
    return x ^ (x >= threshold).byte().mul_(255)


def posterize(x: Tensor, argument: Tensor) -> Tensor:
    """Each value keeps its first bits."""
    bits = argument[:, 0] >> 16
    return x & (256 - (1 << (8 - bits))).byte()[:, None, None, None]


def color(x: Tensor, argument: Tensor) -> Tensor:
    """From the grey image to one of stronger colours."""
    return blend(grey(x), x, argument) if x.shape[1] > 1 else x


def contrast(x: Tensor, argument: Tensor) -> Tensor:
    """From the image's mean grey to a stronger contrast."""
    luma = grey(x)
    pixels = luma[0].numel()
    mean = (2 * luma.sum((1, 2, 3), keepdim=True) + pixels) // (2 * pixels)
    return blend(mean.int(), x, argument)


def brightness(x: Tensor, argument: Tensor) -> Tensor:
    """From black to brighter."""
    return blend(0, x, argument)


def sharpness(x: Tensor, argument: Tensor) -> Tensor:
    """From a smoothed image to a sharper one; its border stays as it is."""
    base = x.float()
    rows = base[:, :, :-2] + base[:, :, 1:-1] + base[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * base[:, :, 1:-1, 1:-1]
    base[:, :, 1:-1, 1:-1] = (around / 13 + 0.5).floor()
    return blend(base, x, argument)


def warp(x: Tensor, argument: Tensor) -> Tensor:
    """Each pixel of the result is the image's nearest one, or grey."""
    size = x.shape[-1]
    across = torch.arange(size, device=x.device, dtype=torch.int32)
    down = across[:, None]
    a, b, c, d, e, f = (part[:, None, None] for part in argument.unbind(1))
    column, row = (a * across + (b * down + c)) >> 16, (d * across + (e * down + f)) >> 16  # (G, S, S)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    place = torch.where(inside, row * size + column, 0).flatten(1).long()
    moved = x.flatten(2).gather(2, place[:, None].expand(-1, x.shape[1], -1)).view(x.shape)
    return torch.where(inside[:, None], moved, GREY)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": identity,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "rotate": warp,
    "solarize": solarize,
    "color": color,
    "posterize": posterize,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "shear-x": warp,
    "shear-y": warp,
    "translate-x": warp,
    "translate-y": warp,
}


def arguments(operations: np.ndarray, magnitudes: np.ndarray, size: int) -> np.ndarray:
    """What each operation is told at a strength from -30 to 30; of solarize and posterize the sign does not count.

    The ranges are those of the paper's code and of torchvision: at most 30 degrees, a shear of 0.3, a shift of 150/331
    of the side, 4 of 8 bits, and factors from 0.1 to 1.9.

    Args:
        operations, magnitudes: (N, L).
        size: S, pixels.

    Returns:
        (N, L, 6), in 1/65536: of a warp, the matrix that leads from the pixels of the result to those of the image; of
        others the first alone counts: a threshold, bits or a factor.
    """
    share = magnitudes / STRONGEST
    angle = np.radians(30 * share)
    cos, sin, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(share), np.ones_like(share)
    half = size / 2
    shear, shift, factor = 0.3 * share, size * 150 / 331 * share, 1 + 0.9 * share
    told = {
        "rotate": (cos, -sin, half * (1 - cos + sin), sin, cos, half * (1 - cos - sin)),
        "shear-x": (one, shear, zero, zero, one, zero),
        "shear-y": (one, zero, zero, shear, one, zero),
        "translate-x": (one, zero, shift, zero, one, zero),
        "translate-y": (one, zero, zero, zero, one, shift),
        "solarize": (255 * (1 - abs(share)),),
        "posterize": (8 - np.rint(4 * abs(share)),),
        "color": (factor,),
        "contrast": (factor,),
        "brightness": (factor,),
        "sharpness": (factor,),
    }
    names, result = list(OPERATIONS), np.zeros((*operations.shape, 6))
    for name, values in told.items():
        chosen = operations == names.index(name)
        for place, value in enumerate(values):
            result[chosen, place] = value[chosen]
    warps = np.isin(operations, [place for place, function in enumerate(OPERATIONS.values()) if function is warp])
    result[..., 2] += np.where(warps, (result[..., 0] + result[..., 1]) / 2, 0)  # from the middle of the pixels
    result[..., 5] += np.where(warps, (result[..., 3] + result[..., 4]) / 2, 0)
    return np.floor(result * ONE + 0.5).astype(np.int32)


def randaugment(pixels: Tensor, operations: Tensor, told: Tensor) -> Tensor:
    """Each image's operations, one after another; images of the same operation together.

    Args:
        pixels: (B, C, S, S), 8-bit.
        operations: (B, L), places in `OPERATIONS`; the host reads them, so that a GPU that has them is waited for.
        told: (B, L, 6), their `arguments`.

    Returns:
        (B, C, S, S), 8-bit.
    """
    functions, pixels = list(OPERATIONS.values()), pixels.clone()
    for layer, numbers in enumerate(operations.T.tolist()):
        groups: dict[Callable[[Tensor, Tensor], Tensor], list[int]] = {}
        for image, number in enumerate(numbers):
            groups.setdefault(functions[number], []).append(image)
        for function, images in groups.items():
            members = torch.tensor(images, device=pixels.device)
            pixels[members] = function(pixels[members], told[members, layer])
    return pixels
