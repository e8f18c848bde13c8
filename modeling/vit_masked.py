"""Masked images: which patches the encoder sees, and what is predicted of the others.

B batch, P patches, V visible patches, C channels, H and W height and width in patches.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss
from transformers import PreTrainedConfig

from .losses import Counts, mean_over_step

COLOR_LEVELS = 8  # of each channel of a mean color: three bits (Dosovitskiy 2020, B.1.2)


def visible_patches(bool_masked_pos: Tensor) -> Tensor:
    """The indices of the patches that are not masked, in their order: (B, P) -> (B, V) (MAE: He 2021, 3).

    Reading the counts makes the host wait for the accelerator. An image with nothing masked (an empty row, which has no
    loss) gives its first V patches.

    Raises:
        ValueError: unequal numbers of patches are masked.
    """
    masked = bool_masked_pos.bool()
    counts = masked.sum(1).tolist()
    most = max(counts)
    if any(count not in (0, most) for count in counts):
        raise ValueError(
            f"bool_masked_pos hides {min(filter(None, counts))} patches of one image and {most} of another: with a "
            "decoder (decoder_num_hidden_layers) the images of a batch hide equally many."
        )
    return masked.int().argsort(stable=True, dim=1)[:, : masked.shape[1] - most]  # visible patches come first


def patch_statistics(pixels: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Mean and std of each patch, at each of its pixels: (B, C, height, width) -> twice (B, 1, height, width).

    Normalised pixels are (pixels - mean) / std (He 2021, 3; as in the release, the variance is unbiased and 1e-6 is
    added to it). So a reconstruction of them, times std and plus mean, is one of pixels.
    """
    patches = pixels.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, C, H, size, W, size)
    variance, mean = torch.var_mean(patches, (1, 3, 5), keepdim=True)  # (B, 1, H, 1, W, 1)
    shape = (-1, -1, -1, patch_size, -1, patch_size)
    mean, std = (x.expand(shape).flatten(4).flatten(2, 3) for x in (mean, (variance + 1e-6).sqrt()))
    return mean, std


def mean_colors(pixels: Tensor, patch_size: int) -> Tensor:
    """The class of each patch's mean color, out of 8 ** C (Dosovitskiy 2020, 4.6 and B.1.2).

    Pixels (B, C, height, width) from 0 to 1, not normalised, to (B, P): three bits a channel, the first one highest.
    """
    mean = nn.functional.avg_pool2d(pixels, patch_size).flatten(2)  # (B, C, P)
    levels = (mean * COLOR_LEVELS).long().clamp(0, COLOR_LEVELS - 1)
    weight = COLOR_LEVELS ** torch.arange(pixels.shape[1] - 1, -1, -1, device=pixels.device)  # (C,): 64, 8, 1
    return (levels * weight[:, None]).sum(1)


def pixel_loss(
    config: PreTrainedConfig,
    reconstruction: Tensor,
    pixels: Tensor,
    bool_masked_pos: Tensor,
    num_items_in_batch: Counts,
) -> Tensor:
    """L1 over pixels, or squares over normalised pixels: the mean over a patch's values and over masked patches.

    Reconstruction and pixels (B, C, height, width); `bool_masked_pos` (B, P), True where a patch is masked.
    """
    size = config.patch_size
    if config.reconstruction_target == "pixels":
        error = l1_loss(reconstruction, pixels, reduction="none")
    else:
        mean, std = patch_statistics(pixels, size)
        error = mse_loss(reconstruction, (pixels - mean) / std, reduction="none")
    error = error.mean(1).unflatten(2, (-1, size)).unflatten(1, (-1, size))  # (B, H, size, W, size)
    error = error.mean((2, 4)).flatten(1)  # (B, P)
    masked = bool_masked_pos.bool()
    targets = masked.long().where(masked, -100)  # mean_over_step counts what is not -100
    return mean_over_step((error * masked).sum(), targets, "bool_masked_pos", num_items_in_batch)
