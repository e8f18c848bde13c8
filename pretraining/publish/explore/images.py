"""Images as a ViT takes them, and which of their patches a model of masked images does not see.

B batch, C channels, S pixels of a side, P patches.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor

from pretraining.data.images.decode import Coloured, Unreadable, decode
from pretraining.errors import UserError, one_line
from pretraining.objectives.masked_images import masked_patches
from pretraining.publish.source import Source


@dataclass(frozen=True)
class Images:
    """Images as the model takes them."""

    names: list[str]
    pixel_values: Tensor
    """(B, C, S, S)"""
    mean: Tensor
    """(C, 1, 1), by which the processor normalised."""
    std: Tensor

    @property
    def pixels(self) -> Tensor:
        """(B, C, S, S), from 0 to 1."""
        return self.pixel_values * self.std + self.mean


def read_image(path: Path, channels: int) -> np.ndarray:
    """The pixels of a file (height, width, channels); a UserError where it has none that the model sees."""
    try:
        return decode(path.read_bytes(), channels)
    except Coloured as error:
        raise UserError(f"{path} has colours, and the model sees grey (num_channels is 1): convert it.") from error
    except (Unreadable, OSError) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise UserError(f"{path} cannot be read as an image: {reason}.") from error


def process_images(source: Source, images: dict[str, np.ndarray]) -> Images:
    """What the model's image processor makes of images, by their names.

    Raises:
        UserError: the model's folder holds no image processor, or another model's.
    """
    config: Any = source.config
    try:
        processor: Any = AutoImageProcessor.from_pretrained(source.folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no image processor can be read from {source.folder} ({one_line(error)}): put the "
            "preprocessor_config.json that the model was trained with there."
        ) from error
    pixels = list(images.values())
    pixel_values = processor(images=pixels, input_data_format="channels_last", return_tensors="pt").pixel_values
    shape = (config.num_channels, config.image_size, config.image_size)
    if tuple(pixel_values.shape[1:]) != shape:
        raise UserError(
            f"the image processor makes {tuple(pixel_values.shape[1:])} of an image, and the model takes {shape}: "
            "put the preprocessor_config.json that it was trained with beside it."
        )
    mean, std = torch.tensor([processor.image_mean, processor.image_std])[..., None, None]
    return Images(list(images), pixel_values, mean, std)


def masked_by_run(source: Source, mask_ratio: float | None, images: int) -> Tensor | None:
    """Patches that are masked in squares as large as in the model's run: (B, P).

    Args:
        mask_ratio: the share that is masked; None: the run's.

    Returns:
        None where neither says how much is masked.

    Raises:
        UserError: the ratio is out of range.
    """
    config: Any = source.config
    objective = source.settings().get("objective", {})
    ratio = objective.get("mask_ratio") if mask_ratio is None else mask_ratio
    if ratio is None:
        return None
    if not 0 < ratio < 1:
        raise UserError(f"--mask-ratio is {ratio}: it must be above 0 and below 1.")
    side, size = config.image_size // config.patch_size, objective.get("mask_size", 1)
    return torch.tensor(masked_patches(0, 0, np.arange(images), side, size, ratio))
