"""Draw what a ViT has learnt and where it looks: python -m pretraining.pictures.image_maps runs/NAME/model IMAGE ..."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from modeling import KeelViTForImageClassification, KeelViTForMaskedImageModeling, KeelViTModel
from pretraining.data.images.decode import Coloured, Unreadable, decode
from pretraining.errors import UserError, one_line, one_sentence_errors
from pretraining.export import open_one_of
from pretraining.objectives.masked_images import masked_patches
from pretraining.pictures.charts import draw_gallery, draw_similarities, overlaid
from pretraining.pictures.vit_insides import (
    attention_over_patches,
    kernel_components,
    over_pixels,
    position_similarities,
    reconstructed,
)

MOST = 64  # images in one picture
ACROSS = 7  # components in a row
VITS = KeelViTModel, KeelViTForImageClassification, KeelViTForMaskedImageModeling
HIDDEN = 0.5  # grey, in place of a hidden patch
ATTENTION = {"cls": "what the class token looks at", "mean": "what the patches look at, in the mean"}
PREDICTED = {
    "pixels": "their pixels predicted",
    "normalized_pixels": "predicted, each patch's mean and std given",
    "mean_color": "their mean colours predicted, of eight levels a channel",
}


def open_vit(folder: Path) -> PreTrainedModel:
    """The checkpoint under the class that wrote it; a UserError where a folder holds no ViT of ours."""
    model = open_one_of(VITS, "ViT", folder)
    channels = model.config.num_channels
    if channels not in (1, 3):
        raise UserError(f"{folder} has num_channels={channels}: only grey (1) and RGB (3) can be drawn.")
    return model


def read_images(paths: list[Path], folder: Path, config: PreTrainedConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Images as the checkpoint in a folder takes them (B, C, S, S), and its processor's mean and std (C, 1, 1).

    Raises:
        UserError: there are too many images, one cannot be read or has colours that the model does not see, or the
            folder holds no image processor, or another model's.
    """
    if len(paths) > MOST:
        raise UserError(f"{len(paths)} images are too many for one picture: give at most {MOST}.")
    images = []
    for path in paths:
        try:
            images.append(decode(path.read_bytes(), config.num_channels))
        except Coloured as error:
            raise UserError(f"{path} has colours, and the model sees grey (num_channels is 1): convert it.") from error
        except (Unreadable, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path} cannot be read as an image: {reason}.") from error
    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no image processor can be read from {folder} ({one_line(error)}): put the preprocessor_config.json that "
            "the model was trained with there."
        ) from error
    pixel_values = processor(images=images, input_data_format="channels_last", return_tensors="pt").pixel_values
    shape = (config.num_channels, config.image_size, config.image_size)
    if tuple(pixel_values.shape[1:]) != shape:
        raise UserError(
            f"the image processor makes {tuple(pixel_values.shape[1:])} of an image, and the model takes {shape}: "
            "put the preprocessor_config.json that it was trained with beside it."
        )
    mean, std = torch.tensor([processor.image_mean, processor.image_std])[..., None, None]
    return pixel_values, mean, std


def hidden_by_run(folder: Path, mask_ratio: float | None, images: int, side: int) -> Tensor:
    """Patches that are hidden in squares as large as in the model's run: (B, P), `side` of them in a row.

    Args:
        mask_ratio: the share that is hidden; None: the run's.

    Raises:
        UserError: the ratio is out of range, or none is given and the model lies in no run of masked images.
    """
    path = folder.absolute().parent / "config.yaml"
    try:
        objective = yaml.safe_load(path.read_text())["objective"]
        size, ratio = objective["mask_size"], objective["mask_ratio"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        if mask_ratio is None:
            raise UserError(
                f"{path} does not say how much of an image its run hides, as one of masked images does: give "
                "--mask-ratio."
            ) from error
        size = 1
    ratio = ratio if mask_ratio is None else mask_ratio
    if not 0 < ratio < 1:
        raise UserError(f"--mask-ratio is {ratio}: it must be above 0 and below 1.")
    return torch.tensor(masked_patches(0, 0, np.arange(images), side, size, ratio))


def caption(path: Path) -> str:
    """A file's name, shortened to stand above a picture."""
    return path.name if len(path.name) <= 24 else f"{path.name[:12]}…{path.name[-11:]}"


def picture(pixels: Tensor) -> np.ndarray:
    """(C, S, S) to (S, S, C)."""
    return pixels.permute(1, 2, 0).numpy()


def draw_model(model: PreTrainedModel, out: Path) -> list[Path]:
    """`positions.png` and `kernels.png`, for which no image is needed."""
    paths = [out / "positions.png", out / "kernels.png"]
    draw_similarities(position_similarities(model).numpy(), paths[0])
    components, shares = kernel_components(model)
    scaled = components / components.abs().amax((1, 2, 3), keepdim=True) / 2 + 0.5  # grey where a weight is 0
    cells = [
        (f"{n}: {share:.1%}", picture(tile)) for n, (tile, share) in enumerate(zip(scaled, shares, strict=True), 1)
    ]
    rows = [cells[first : first + ACROSS] for first in range(0, len(cells), ACROSS)]
    draw_gallery(rows, "principal components of the patches' kernels; the variance that each explains", paths[1])
    return paths


def draw_attention_over(
    model: PreTrainedModel, files: list[Path], pixel_values: Tensor, pixels: Tensor, every_layer: bool, out: Path
) -> list[Path]:
    """`attention.png`: the last layer's heads, and the rollout, over each image.

    Args:
        pixel_values, pixels: (B, C, S, S), normalised for the model and from 0 to 1.
        every_layer: draws also `attention-N-NAME.png`: all layers over the N-th image.
    """
    config = model.config
    even = (config.patch_size / config.image_size) ** 2
    legend = f"{ATTENTION[config.pooling]} (yellow: the most; even: {even:.1%})"
    last, paths = [], [out / "attention.png"]
    for number, file in enumerate(files):
        image = picture(pixels[number])
        heads, rollouts = attention_over_patches(model, pixel_values[number : number + 1])
        rows = []
        for layer, (maps, rolled) in enumerate(zip(heads.numpy(), rollouts.numpy(), strict=True)):
            named = {f"head {head}": weights for head, weights in enumerate(maps)} | {"rollout": rolled}
            cells = [
                (f"{name}: up to {weights.max():.1%}", overlaid(image, weights)) for name, weights in named.items()
            ]
            rows.append([(f"layer {layer}", image), *cells])
        last.append([(caption(file), image), *rows[-1][1:]])
        if every_layer:
            paths.append(out / f"attention-{number + 1}-{file.stem}.png")
            draw_gallery(rows, f"{caption(file)}: {legend}", paths[-1])
    draw_gallery(last, f"last layer, and rollout through all: {legend}", paths[0])
    return paths


def draw_reconstructions(
    model: Any, files: list[Path], pixel_values: Tensor, mean: Tensor, std: Tensor, hidden: Tensor, path: Path
) -> None:
    """Each image, its visible patches, and these with the model's prediction of the `hidden` ones (B, P)."""
    config = model.config
    side = config.image_size // config.patch_size
    pixels = pixel_values * std + mean  # (B, C, S, S)
    visible = pixels.masked_fill(over_pixels(hidden.unflatten(1, (1, side, side)), config.patch_size), HIDDEN)
    predicted = reconstructed(model, pixel_values, hidden, mean, std)
    rows = [
        [(caption(file), picture(whole)), ("seen", picture(part)), ("predicted", picture(filled))]
        for file, whole, part, filled in zip(files, pixels, visible, predicted, strict=True)
    ]
    title = f"{hidden.float().mean():.0%} of the patches are hidden; {PREDICTED[config.reconstruction_target]}"
    draw_gallery(rows, title, path)


@torch.no_grad()
def draw_maps(
    folder: Path, images: list[Path], out: Path, every_layer: bool = False, mask_ratio: float | None = None
) -> list[Path]:
    """Draws what a checkpoint has learnt, and what it makes of images.

    Args:
        every_layer: draws the attention of all layers, beside that of the last.
        mask_ratio: the share of the patches that is hidden from a model of masked images; None: the run's.

    Returns:
        The pictures: `positions.png` and `kernels.png`; with images `attention.png`, and `reconstructions.png` of a
        model of masked images.

    Raises:
        UserError: the folder holds no ViT of ours or no image processor, an image cannot be read, or `mask_ratio` is
            unknown, out of range, or given for a model that hides nothing.
    """
    model = open_vit(folder)
    masked = isinstance(model, KeelViTForMaskedImageModeling)
    if mask_ratio is not None and not masked:
        raise UserError(f"--mask-ratio is for models of masked images, and {folder} has a {type(model).__name__}.")
    if images:  # a mistake in them ends the program before anything is drawn
        side = model.config.image_size // model.config.patch_size
        hidden = hidden_by_run(folder, mask_ratio, len(images), side) if masked else None
        pixel_values, mean, std = read_images(images, folder, model.config)
    out.mkdir(parents=True, exist_ok=True)
    paths = draw_model(model, out)
    if images:
        paths += draw_attention_over(model, images, pixel_values, pixel_values * std + mean, every_layer, out)
        if hidden is not None:
            paths.append(out / "reconstructions.png")
            draw_reconstructions(model, images, pixel_values, mean, std, hidden, paths[-1])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="image_maps",
        description=__doc__,
        epilog="positions.png shows how alike the patches' positions are. kernels.png shows the principal components "
        "of the first layer. attention.png shows where the last layer's heads look in each image, and the rollout "
        "through all layers. reconstructions.png shows what a model of masked images predicts of the hidden patches.",
    )
    parser.add_argument("model", type=Path, help="Folder of a ViT: runs/NAME/model.")
    parser.add_argument(
        "images", type=Path, nargs="*", metavar="IMAGE", help=f"Up to {MOST} image files; none: no attention is drawn."
    )
    parser.add_argument("--out", type=Path, help="Folder for the pictures; default: the run's.")
    parser.add_argument(
        "--every-layer", action="store_true", help="Draw the attention of every layer too, as attention-N-IMAGE.png."
    )
    parser.add_argument(
        "--mask-ratio",
        type=float,
        help="Share of the patches hidden from a model of masked images; default: the run's.",
    )
    options = parser.parse_args()
    with one_sentence_errors("image_maps"):
        out = options.out or options.model.absolute().parent
        paths = draw_maps(options.model, options.images, out, options.every_layer, options.mask_ratio)
        print(*paths, sep="\n")


if __name__ == "__main__":
    main()
