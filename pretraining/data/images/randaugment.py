"""RandAugment (Cubuk 2019): PIL's operations, with the ranges of the paper's code and of torchvision.

A strength is from -1 to 1. Its sign does not count for solarize and posterize. Pixels from outside the image are grey.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

STRONGEST = 30  # the magnitude at which the strength is 1


def enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance], image: Image.Image, strength: float) -> Image.Image:
    """Factors from 0.1 to 1.9, in 65536ths: PIL's 32-bit numbers hold them exactly."""
    return kind(image).enhance(round((1 + 0.9 * strength) * 2**16) / 2**16)


def warp(image: Image.Image, *matrix: float) -> Image.Image:
    """Pixel (x, y) of the result is the image's nearest one to (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor="grey")


def shift(image: Image.Image, strength: float) -> float:
    return image.width * 150 / 331 * strength


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
    "rotate": lambda image, strength: image.rotate(30 * strength, fillcolor="grey"),  # degrees
    "solarize": lambda image, strength: ImageOps.solarize(image, 255 - 255 * abs(strength)),  # type: ignore[arg-type]
    "color": lambda image, strength: enhance(ImageEnhance.Color, image, strength),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "contrast": lambda image, strength: enhance(ImageEnhance.Contrast, image, strength),
    "brightness": lambda image, strength: enhance(ImageEnhance.Brightness, image, strength),
    "sharpness": lambda image, strength: enhance(ImageEnhance.Sharpness, image, strength),
    "shear-x": lambda image, strength: warp(image, 1, 0.3 * strength, 0, 0, 1, 0),
    "shear-y": lambda image, strength: warp(image, 1, 0, 0, 0.3 * strength, 1, 0),
    "translate-x": lambda image, strength: warp(image, 1, 0, shift(image, strength), 0, 1, 0),
    "translate-y": lambda image, strength: warp(image, 1, 0, 0, 0, 1, shift(image, strength)),
}


def randaugment(pixels: np.ndarray, operations: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """An image's operations, one after another.

    Args:
        pixels: (S, S, C), 8-bit; C is 1 or 3.
        operations: (L,), positions in `OPERATIONS`.
        magnitudes: (L,), from -30 to 30.

    Returns:
        (S, S, C), 8-bit.
    """
    functions = list(OPERATIONS.values())
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    for operation, magnitude in zip(operations.tolist(), magnitudes.tolist(), strict=True):
        image = functions[operation](image, magnitude / STRONGEST)
    return np.asarray(image).reshape(pixels.shape)
