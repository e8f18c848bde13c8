"""How training images are changed: drawn from (seed, epoch, index) for many images at once, and cut out one by one.

N images; S, the side in pixels of what the model sees. Rectangles are left, top, right, bottom.
"""

import numpy as np
from PIL import Image

from pretraining.data import draws
from pretraining.data.images.randaugment import OPERATIONS, arguments
from pretraining.data.images.settings import AugmentSettings, MixingSettings

TRIES = 10
ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of timm, and nearly those of Zhong 2017, 4.2


def draw(
    settings: AugmentSettings, seed: int, epoch: int, index: np.ndarray, sizes: np.ndarray, size: int
) -> dict[str, np.ndarray]:
    """What becomes of images `index` in this epoch, whether the model sees them as such or mixed into others.

    Args:
        index: (N,).
        sizes: (N, 2), height and width of the images, pixels.
        size: S.

    Returns:
        `box` (N, 4), what is cut out, in the image's pixels, perhaps beyond its border; `flip` (N,), bool; with
        RandAugment on, `operations` (N, L) and their `arguments` (N, L, 6); with erasing on, `erased` (N, 4), in pixels
        of what was cut out, empty where nothing is, and the `noise_seed` (N,) of what takes its place.
    """
    drawn = {
        "box": draw_boxes(settings, seed, epoch, index, sizes),
        "flip": draws.uniform(seed, epoch, draws.FLIP, index) < settings.flip,
    }
    if settings.randaugment_layers:
        layers = np.arange(settings.randaugment_layers)
        key = index[:, None]
        operations = draws.integers(len(OPERATIONS), seed, epoch, draws.OPERATION, key, layers)
        sign = np.where(draws.uniform(seed, epoch, draws.STRENGTH, key, layers) < 0.5, -1, 1)
        drawn["operations"] = operations
        drawn["arguments"] = arguments(operations, sign * settings.randaugment_magnitude, size)
    if settings.erasing:
        chosen = draws.uniform(seed, epoch, draws.ERASING, index) < settings.erasing
        random = draws.uniform(seed, epoch, draws.ERASING, *np.ix_(np.arange(4), np.arange(TRIES), index))
        boxes, found = rectangles(random, np.full((len(index), 2), size), ERASED_AREA, ERASED_RATIO)
        drawn["erased"] = np.where((chosen & found)[:, None], boxes, 0)
        drawn["noise_seed"] = draws.hash_key(seed, epoch, draws.NOISE, index).view(np.int64)
    return drawn


def draw_boxes(settings: AugmentSettings, seed: int, epoch: int, index: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What is cut out of each image: (N, 4).

    `resized`: Szegedy 2014, 6, with torchvision's ten tries, and if none fits the largest allowed ratio's middle.
    """
    whole = np.concatenate([np.zeros_like(sizes), sizes[:, ::-1]], 1)
    if settings.crop == "none":
        return whole
    if settings.crop == "padded":
        padding = np.rint(settings.crop_padding * sizes[:, ::-1]).astype(np.int64)
        shift = draws.integers(2 * padding + 1, seed, epoch, draws.CROP, index[:, None], np.arange(2)) - padding
        return whole + np.concatenate([shift, shift], 1)
    random = draws.uniform(seed, epoch, draws.CROP, *np.ix_(np.arange(4), np.arange(TRIES), index))
    boxes, found = rectangles(random, sizes, settings.crop_scale, settings.crop_ratio)
    height, width = sizes.T
    narrowest, widest = settings.crop_ratio
    ratio = np.clip(width / height, narrowest, widest)
    wide, high = np.minimum(width, np.rint(height * ratio)), np.minimum(height, np.rint(width / ratio))
    left, top = (width - wide) // 2, (height - high) // 2
    middle = np.stack([left, top, left + wide, top + high], 1).astype(np.int64)
    return np.where(found[:, None], boxes, middle)


def rectangles(
    random: np.ndarray, sizes: np.ndarray, area: tuple[float, ...] | list[float], ratio: tuple[float, ...] | list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Of some tries, the first rectangle that fits into each image.

    Args:
        random: (4, tries, N), uniform numbers.
        sizes: (N, 2), height and width.
        area, ratio: the least and the largest share of the image's area, and width over height (log-uniform).

    Returns:
        The rectangles (N, 4), and which of them fit (N,).
    """
    height, width = sizes.T
    areas = (area[0] + (area[1] - area[0]) * random[0]) * height * width
    ratios = np.exp(np.log(ratio[0]) + (np.log(ratio[1]) - np.log(ratio[0])) * random[1])
    wide, high = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = fits.argmax(0), np.arange(len(sizes))
    wide, high = wide[first], high[first]
    left = np.floor(random[2][first] * (width - wide + 1))
    top = np.floor(random[3][first] * (height - high + 1))
    return np.stack([left, top, left + wide, top + high], 1).astype(np.int64), fits.any(0)


def draw_mixing(
    settings: MixingSettings, seed: int, epoch: int, index: np.ndarray, size: int, count: int
) -> dict[str, np.ndarray]:
    """Which other image is mixed into each of images `index`, and how (Zhang 2017; Yun 2019, 3.1).

    Args:
        index: (N,).
        size: S.
        count: images there are; the partner is one of them, itself too, as `draw` makes it in the same epoch.

    Returns:
        `partner` (N,); `weight` (N,), the image's own share, of its labels too, 1 where nothing is mixed; `rectangle`
        (N, 4), what CutMix takes from the partner, empty where all pixels are blended.
    """
    mixed, kind, x, y = draws.uniform(seed, epoch, draws.MIXING, *np.ix_(np.arange(4), index))
    cut = kind < 0.5 if settings.mixup and settings.cutmix else np.full(len(index), settings.cutmix > 0)
    alpha = np.where(cut, settings.cutmix, settings.mixup)
    weight = np.ones(len(index))
    keys = draws.hash_key(seed, epoch, draws.WEIGHT, index)
    for i in np.flatnonzero((mixed < settings.mixing) & (alpha > 0)):
        weight[i] = np.random.default_rng(keys[i]).beta(alpha[i], alpha[i])
    side = np.where(cut, np.floor(size * np.sqrt(1 - weight)), 0).astype(np.int64)
    left, top = (x * size).astype(np.int64) - side // 2, (y * size).astype(np.int64) - side // 2
    rectangle = np.clip(np.stack([left, top, left + side, top + side], 1), 0, size)
    area = (rectangle[:, 2] - rectangle[:, 0]) * (rectangle[:, 3] - rectangle[:, 1])
    return {
        "partner": draws.integers(count, seed, epoch, draws.PARTNER, index),
        "weight": np.where(cut, 1 - area / size**2, weight).astype(np.float32),
        "rectangle": np.where(area[:, None] > 0, rectangle, 0),
    }


def cut(image: np.ndarray, box: np.ndarray, size: int, resample: Image.Resampling) -> np.ndarray:
    """A part of an image, black where it reaches beyond it (as timm and torchvision pad; He 2015, 4.2), resized.

    Args:
        image: (H, W, C), 8-bit; C is 1 or 3.
        box: (4,), whole pixels.
        size: S.

    Returns:
        (C, S, S), 8-bit.
    """
    left, top, right, bottom = (int(side) for side in box)
    height, width = image.shape[:2]
    part = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if left < 0 or top < 0 or right > width or bottom > height:
        padded = np.zeros((bottom - top, right - left, image.shape[2]), dtype=image.dtype)
        row, column = max(-top, 0), max(-left, 0)
        padded[row : row + part.shape[0], column : column + part.shape[1]] = part
        part = padded
    if part.shape[:2] != (size, size):
        picture = Image.fromarray(part[..., 0] if part.shape[2] == 1 else part)
        part = np.asarray(picture.resize((size, size), resample)).reshape(size, size, -1)
    return np.ascontiguousarray(part.transpose(2, 0, 1))
