"""What a trained ViT has inside, as arrays that can be drawn: positions, first kernels, attention, reconstructions.

B batch, L layers, A heads, T tokens, Q queries, K keys, P patches, N components, C channels, S pixels of a side, H and
W height and width in patches.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from modeling.vit_masked import COLOR_LEVELS, patch_statistics

COMPONENTS = 28  # as many as Dosovitskiy 2020 draws, figure 7


def position_similarities(model: Any) -> Tensor:
    """The cosine of each patch's position with every other's: (H, W, H, W) (Dosovitskiy 2020, figure 7)."""
    embeddings = model.base_model.embeddings
    side = embeddings.image_size // embeddings.patch_size
    positions = normalize(embeddings.interpolated(side, side)[0, -side * side :].double(), dim=-1)  # (P, D)
    return (positions @ positions.T).unflatten(1, (side, side)).unflatten(0, (side, side))


def kernel_components(model: Any) -> tuple[Tensor, Tensor]:
    """The first principal components of the patches' kernels (Dosovitskiy 2020, figure 7).

    Returns:
        (N, C, size, size), orthonormal, the largest weight of each positive; and the share (N,) of the kernels'
        variance that each explains.
    """
    kernels = model.base_model.embeddings.projection.weight.double()  # (D, C, size, size)
    flat = kernels.flatten(1)
    _, scale, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    count = min(COMPONENTS, len(flat) - 1, flat.shape[1])  # D kernels about their mean span D - 1 dimensions
    components, shares = components[:count], scale.square() / scale.square().sum()
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return (components * largest.sign()).unflatten(1, kernels.shape[1:]), shares[:count]


def rollout(layers: Tensor) -> Tensor:
    """How much of each token reaches each other one through the layers so far (Abnar 2020, section 3).

    Each layer is half the mean of its heads and half the identity, which stands for the residual.

    Args:
        layers: attention weights (L, A, T, T), rows sum to 1.

    Returns:
        (L, T, T), rows sum to 1.
    """
    eye = torch.eye(layers.shape[-1], dtype=layers.dtype)
    steps = (layers.mean(1) + eye) / 2
    products = [steps[0]]
    for step in steps[1:]:
        products.append(step @ products[-1])
    return torch.stack(products)


@torch.no_grad()
def attention_of_image(model: Any, pixel_values: Tensor) -> Tensor:
    """Where a model under the eager kernel looks in one image (1, C, S, S), the rollout as one more head.

    Returns:
        (L, A + 1, Q, K): the first query is what is pooled, the class token or the mean of all patches; then comes each
        patch. Keys are the class token, where there is one, and the patches.
    """
    layers = torch.cat(model.base_model(pixel_values, output_attentions=True).attentions)  # (L, A, T, T)
    weights = torch.cat([layers, rollout(layers)[:, None]], 1)
    if model.config.pooling == "cls":
        return weights
    return torch.cat([weights.mean(2, keepdim=True), weights], 2)


def over_patches(model: Any, weights: Tensor) -> Tensor:
    """The part of attention weights (..., K) that falls on patches: (..., H, W)."""
    side = model.config.image_size // model.config.patch_size
    return weights[..., -side * side :].unflatten(-1, (side, side))


def color_of_class(classes: Tensor, channels: int) -> Tensor:
    """The colour in the middle of a class of `mean_colors`: (...) -> (..., C), from 0 to 1."""
    place = COLOR_LEVELS ** torch.arange(channels - 1, -1, -1)
    return (classes[..., None] // place % COLOR_LEVELS + 0.5) / COLOR_LEVELS


def over_pixels(patches: Tensor, size: int) -> Tensor:
    """A value of each patch, at each of its pixels: (..., H, W) -> (..., S, S)."""
    return patches.repeat_interleave(size, -2).repeat_interleave(size, -1)


def reconstructed(model: Any, pixel_values: Tensor, hidden: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images whose hidden patches are those that the model predicts, from 0 to 1: (B, C, S, S).

    Where the model predicts normalised pixels, they get the mean and std of the image's patches, hidden ones too.

    Args:
        pixel_values: (B, C, S, S), as the model takes them.
        hidden: (B, P), True where a patch is hidden.
        mean, std: (C, 1, 1), by which the processor normalised.
    """
    config = model.config
    predicted = model(pixel_values, bool_masked_pos=hidden).reconstruction
    side = config.image_size // config.patch_size
    if config.reconstruction_target == "mean_color":
        colors = color_of_class(predicted.argmax(-1), config.num_channels)  # (B, P, C)
        predicted = over_pixels(colors.transpose(1, 2).unflatten(2, (side, side)), config.patch_size)
    else:
        if config.reconstruction_target == "normalized_pixels":
            patch_mean, patch_std = patch_statistics(pixel_values, config.patch_size)
            predicted = predicted * patch_std + patch_mean
        predicted = (predicted * std + mean).clamp(0, 1)
    where = over_pixels(hidden.unflatten(1, (1, side, side)), config.patch_size)  # (B, 1, S, S)
    return torch.where(where, predicted, pixel_values * std + mean)
