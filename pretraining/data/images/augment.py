"""How training images are changed: what is drawn from (seed, epoch, index) for many of them, and one image's change.

N images of C channels (1 or 3); S, the side in pixels of what the model sees; L operations of RandAugment. A rectangle
is left, top, right, bottom.
"""

import numpy as np
from PIL import Image

from pretraining.data import draws
from pretraining.data.images.randaugment import OPERATIONS, randaugment
from pretraining.data.images.settings import AugmentSettings, MixingSettings

TRIES = 10
ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of timm, and nearly those of Zhong 2017, 4.2


def rectangles(
    random: np.ndarray, sizes: np.ndarray, area: tuple[float, ...] | list[float], ratio: tuple[float, ...] | list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The first try whose rectangle fits into each image: rectangles (N, 4), and whether there is one (N,).

    Args:
        random: (4, tries, N), uniform numbers.
        sizes: (N, 2), height and width.
        area, ratio: the least and the largest share of the image's area, and width over height (log-uniform).
    """
    height, width = sizes.T
    areas = (area[0] + (area[1] - area[0]) * random[0]) * height * width  # (tries, N)
    ratios = np.exp(np.log(ratio[0]) + (np.log(ratio[1]) - np.log(ratio[0])) * random[1])
    box_width, box_height = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = fits.argmax(0), np.arange(len(sizes))  # of each image the first try that fits
    box_width, box_height = box_width[first], box_height[first]  # (N,)
    left = np.floor(random[2][first] * (width - box_width + 1))
    top = np.floor(random[3][first] * (height - box_height + 1))
    return np.stack([left, top, left + box_width, top + box_height], 1).astype(np.int64), fits.any(0)


def draw_boxes(settings: AugmentSettings, seed: int, epoch: int, index: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What is cut out of each image: (N, 4).

    `resized` is of Szegedy 2014, section 6, with torchvision's ten tries. Where none of them fits, it is the middle of
    the image, as large as the allowed ratios let it be.
    """
    whole = np.concatenate([np.zeros_like(sizes), sizes[:, ::-1]], 1)
    if settings.crop == "none":
        return whole
    if settings.crop == "padded":
        padding = np.rint(settings.crop_padding * sizes[:, ::-1]).astype(np.int64)
        shift = draws.integers(2 * padding + 1, seed, epoch, draws.CROP, index[:, None], np.arange(2)) - padding
        return whole + np.concatenate([shift, shift], 1)
    random = draws.uniform(seed, epoch, draws.CROP, *np.ix_(np.arange(4), np.arange(TRIES), index))
    boxes, fits = rectangles(random, sizes, settings.crop_scale, settings.crop_ratio)
    height, width = sizes.T
    narrowest, widest = settings.crop_ratio
    ratio = np.clip(width / height, narrowest, widest)
    box_width = np.minimum(width, np.rint(height * ratio))
    box_height = np.minimum(height, np.rint(width / ratio))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    middle = np.stack([left, top, left + box_width, top + box_height], 1).astype(np.int64)
    return np.where(fits[:, None], boxes, middle)


def draw(
    settings: AugmentSettings, seed: int, epoch: int, index: np.ndarray, sizes: np.ndarray
) -> dict[str, np.ndarray]:
    """How `augment` changes images `index` (N,) of `sizes` (N, 2), height and width, in this epoch.

    Returns:
        `box` (N, 4), what is cut out, in the image's pixels, perhaps beyond its border; `flip` (N,), bool; with
        RandAugment on, `operations` and `magnitudes` (N, L).
    """
    drawn = {
        "box": draw_boxes(settings, seed, epoch, index, sizes),
        "flip": draws.uniform(seed, epoch, draws.FLIP, index) < settings.flip,
    }
    if settings.randaugment_layers:
        image, layer = index[:, None], np.arange(settings.randaugment_layers)  # (N, 1) and (L,)
        drawn["operations"] = draws.integers(len(OPERATIONS), seed, epoch, draws.OPERATION, image, layer)
        negative = draws.uniform(seed, epoch, draws.STRENGTH, image, layer) < 0.5
        drawn["magnitudes"] = np.where(negative, -1, 1) * settings.randaugment_magnitude
    return drawn


def draw_erasing(
    settings: AugmentSettings, seed: int, epoch: int, index: np.ndarray, size: int
) -> dict[str, np.ndarray]:
    """Where `erase` puts noise into images `index` (N,): `erased` (N, 4), some of them empty, and `noise_seed` (N,)."""
    if not settings.erasing:
        return {}
    chosen = draws.uniform(seed, epoch, draws.ERASING, index) < settings.erasing  # (N,)
    random = draws.uniform(seed, epoch, draws.ERASING, *np.ix_(np.arange(4), np.arange(TRIES), index))
    boxes, fits = rectangles(random, np.full((len(index), 2), size), ERASED_AREA, ERASED_RATIO)
    return {
        "erased": np.where((chosen & fits)[:, None], boxes, 0),
        "noise_seed": draws.hash_key(seed, epoch, draws.NOISE, index).view(np.int64),
    }


def draw_mixing(
    settings: MixingSettings, seed: int, epoch: int, index: np.ndarray, size: int, count: int
) -> dict[str, np.ndarray]:
    """Which of `count` images is mixed into each of images `index` (N,), and how (Zhang 2017; Yun 2019, 3.1).

    Returns:
        `partner` (N,), which may be the image itself and is augmented as in its own row of the same epoch; `weight`
        (N,), the image's share of pixels and labels, 1 where nothing is mixed; `rectangle` (N, 4), what CutMix takes
        from the partner, empty where all pixels are blended.
    """
    mixed, kind, x, y = draws.uniform(seed, epoch, draws.MIXING, *np.ix_(np.arange(4), index))
    cut = kind < 0.5 if settings.mixup and settings.cutmix else np.full(len(index), settings.cutmix > 0)
    alpha = np.where(cut, settings.cutmix, settings.mixup)
    weight = np.ones(len(index))
    # Beta numbers have no closed inverse that a hash could be put through: each image gets a generator of its own.
    keys = draws.hash_key(seed, epoch, draws.WEIGHT, index)
    for i in np.flatnonzero((mixed < settings.mixing) & (alpha > 0)):
        weight[i] = np.random.default_rng(keys[i]).beta(alpha[i], alpha[i])
    # CutMix's square of area 1 - weight about (x, y) may be cut by the border: its weight is what is left of the image.
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
    """A part of an image (H, W, C), resized to (S, S, C), 8-bit.

    It is black where it reaches beyond the image, as timm and torchvision pad (He 2015, 4.2).
    """
    left, top, right, bottom = (int(side) for side in box)
    height, width, channels = image.shape
    part = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if left < 0 or top < 0 or right > width or bottom > height:
        padded = np.zeros((bottom - top, right - left, channels), dtype=image.dtype)
        row, column = max(-top, 0), max(-left, 0)
        padded[row : row + part.shape[0], column : column + part.shape[1]] = part
        part = padded
    if part.shape[:2] == (size, size):
        return part
    picture = Image.fromarray(part[..., 0] if channels == 1 else part)
    return np.asarray(picture.resize((size, size), resample)).reshape(size, size, channels)


def augment(image: np.ndarray, drawn: dict[str, np.ndarray], size: int, resample: Image.Resampling) -> np.ndarray:
    """What `draw` drew for an image (H, W, C), done to it: cut out, flipped, through RandAugment; (C, S, S), 8-bit."""
    pixels = cut(image, drawn["box"], size, resample)
    if drawn["flip"]:
        pixels = pixels[:, ::-1]
    if "operations" in drawn:
        pixels = randaugment(pixels, drawn["operations"], drawn["magnitudes"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
