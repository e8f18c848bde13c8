"""What a page shows of a ViT, and of images that it sees."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling import KeelViTForImageClassification, KeelViTForMaskedImageModeling
from pretraining.errors import UserError
from pretraining.pictures.vit_insides import (
    attention_of_image,
    kernel_components,
    over_pixels,
    position_similarities,
    reconstructed,
)
from pretraining.publish.explore.images import Images, masked_by_run, process_images, read_image
from pretraining.publish.explore.inputs import default_images
from pretraining.publish.explore.pack import pack_similarities, picture
from pretraining.publish.source import Source

MASKED = 0.5  # grey, in place of a masked patch
POOLED = {"cls": "class token", "mean": "mean of all patches"}
PREDICTED = {
    "pixels": "their pixels are predicted",
    "normalized_pixels": "they are predicted up to each patch's mean and std, which are the image's own",
    "mean_color": "their mean colours are predicted, of eight levels a channel",
}


def open_images(source: Source, paths: list[str]) -> Images:
    """Images as the model takes them: those of files, or the default ones."""
    channels = source.config.num_channels  # type: ignore[attr-defined]
    if channels not in (1, 3):
        raise UserError(f"{source.folder} has num_channels={channels}: only grey (1) and RGB (3) can be drawn.")
    images = {path: read_image(Path(path), channels) for path in paths} or default_images(source)
    return process_images(source, images)


@torch.no_grad()
def predicted_class(model: Any, pixel_values: Tensor) -> str:
    """The class of one image (1, C, S, S), in a sentence."""
    logits = model(pixel_values).logits[0]
    if model.config.problem_type == "regression" or len(logits) == 1:
        return f"The model reads: {', '.join(f'{value:.3g}' for value in logits.tolist())}"
    several = model.config.problem_type == "multi_label_classification"
    shares = logits.sigmoid() if several else logits.softmax(0)
    return f"The model reads: {model.config.id2label[int(shares.argmax())]} ({shares.max():.0%})"


@torch.no_grad()
def reconstructions(model: Any, images: Images, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Images without their masked patches (B, P), and with the patches that the model predicts: (B, C, S, S) each."""
    config = model.config
    side = config.image_size // config.patch_size
    where = over_pixels(masked.unflatten(1, (1, side, side)), config.patch_size)
    predicted = reconstructed(model, images.pixel_values, masked, images.mean, images.std)
    return images.pixels.masked_fill(where, MASKED), predicted


def masked_part(source: Source, model: Any, images: Images, mask_ratio: float | None) -> dict[str, Any]:
    """What a model of masked images predicts, or why there is nothing to show."""
    if not isinstance(model, KeelViTForMaskedImageModeling):
        return {"unmasked": f"A {type(model).__name__} has no head that predicts masked patches."}
    masked = masked_by_run(source, mask_ratio, len(images.names))
    if masked is None:
        return {"unmasked": "No run says how much of an image this model does not see: give --mask-ratio."}
    seen, predicted = reconstructions(model, images, masked)
    rows = [[picture(part[number]) for part in (images.pixels, seen, predicted)] for number in range(len(masked))]
    target = PREDICTED[model.config.reconstruction_target]
    return {
        "unmasked": "",
        "masked": rows,
        "target": f"{masked.float().mean():.0%} of the patches are masked; {target}.",
    }


def kernels(model: Any) -> list[tuple[Tensor, float]]:
    """Principal components (C, size, size) of the patches' kernels, grey where a weight is 0, and each one's share."""
    components, shares = kernel_components(model)
    scaled = components / components.abs().amax((1, 2, 3), keepdim=True) / 2 + 0.5
    return list(zip(scaled.detach(), shares.tolist(), strict=True))


def explore_images(
    source: Source, model: Any, paths: list[str], mask_ratio: float | None
) -> tuple[dict[str, Any], list[Tensor]]:
    """Attention, positions, kernels and masked patches of a ViT, and of images, or where there are none, default ones.

    Returns:
        The page's data, and the attention weights of its `maps`, in their order.
    """
    config = model.config
    side = config.image_size // config.patch_size
    images = open_images(source, paths)
    entries: list[dict[str, Any]] = []
    weights: list[Tensor] = []
    for name, pixels, values in zip(images.names, images.pixels, images.pixel_values, strict=True):
        weights.append(attention_of_image(model, values[None]))
        maps = {"name": "image", "title": "over the image", "grid": side, "pooled": POOLED[config.pooling]}
        entry = {"title": Path(name).name, "image": picture(pixels), "maps": [maps]}
        if isinstance(model, KeelViTForImageClassification):
            entry["caption"] = predicted_class(model, values[None])
        entries.append(entry)
    similarities = position_similarities(model).detach().flatten(2).flatten(0, 1)  # (P, P)
    content = {
        "inputs": entries,
        "positions": [{"title": "positions", "grid": side, "maps": pack_similarities(similarities)}],
        "kernels": [{"image": picture(tile), "share": round(share, 4)} for tile, share in kernels(model)],
        **masked_part(source, model, images, mask_ratio),
    }
    return content, weights
