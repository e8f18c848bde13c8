"""What a page shows, as PNG: for a model's card, or a paper."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from modeling import KeelViTForMaskedImageModeling
from pretraining.pictures.charts import draw_attention, draw_gallery, draw_similarities, overlaid
from pretraining.pictures.vit_insides import attention_of_image, over_patches, position_similarities
from pretraining.publish.explore.image_page import POOLED, PREDICTED, kernels, open_images, reconstructions
from pretraining.publish.explore.images import Images, masked_by_run
from pretraining.publish.explore.inputs import default_texts
from pretraining.publish.explore.texts import load_tokenizers, read_text
from pretraining.publish.source import Source

ACROSS = 7  # components in a row


def caption(name: str) -> str:
    """A file's name, shortened to stand above a picture."""
    name = Path(name).name
    return name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}"


def to_array(pixels: Tensor) -> np.ndarray:
    """(C, S, S) to (S, S, C)."""
    return pixels.permute(1, 2, 0).numpy()


def draw_texts(source: Source, model: Any, texts: list[str], folder: Path) -> list[Path]:
    """`attention-N-NAME.png`: every layer and head over the N-th text."""
    tokenizers = load_tokenizers(source)
    paths: list[Path] = []
    for number, text in enumerate(texts or default_texts(source), 1):
        for each in read_text(model, *tokenizers, text).maps:
            paths.append(folder / f"attention-{number}-{each.name}.png")
            draw_attention(list(each.weights.numpy()), each.queries, each.keys, each.title, paths[-1])
    return paths


def draw_kernels(model: Any, path: Path) -> None:
    """The principal components of the patches' kernels; grey is a weight of 0."""
    cells = [(f"{n}: {share:.1%}", to_array(tile)) for n, (tile, share) in enumerate(kernels(model), 1)]
    rows = [cells[first : first + ACROSS] for first in range(0, len(cells), ACROSS)]
    draw_gallery(rows, "principal components of the patches' kernels; the variance that each explains", path)


def draw_attention_over(model: Any, images: Images, path: Path) -> None:
    """What the last layer's heads look at in each image, and the rollout."""
    config = model.config
    rows: list[list[tuple[str, np.ndarray]]] = []
    for name, pixels, values in zip(images.names, images.pixels, images.pixel_values, strict=True):
        last = attention_of_image(model, values[None])[-1, :, 0]  # (A + 1, K), of what is pooled
        *heads, rolled = over_patches(model, last).numpy()
        named = {f"head {head}": weights for head, weights in enumerate(heads)} | {"rollout": rolled}
        image = to_array(pixels)
        cells = [(f"{name}: up to {weights.max():.1%}", overlaid(image, weights)) for name, weights in named.items()]
        rows.append([(caption(name), image), *cells])
    even = (config.patch_size / config.image_size) ** 2
    title = f"last layer, and rollout through all: what the {POOLED[config.pooling]} looks at"
    draw_gallery(rows, f"{title} (yellow: the most; even: {even:.1%})", path)


def draw_images(source: Source, model: Any, files: list[str], folder: Path, mask_ratio: float | None) -> list[Path]:
    """`positions.png`, `kernels.png`, `attention.png`, and `reconstructions.png` of a model of masked images."""
    images = open_images(source, files)
    paths = [folder / f"{name}.png" for name in ("positions", "kernels", "attention")]
    draw_similarities(position_similarities(model).detach().numpy(), paths[0])
    draw_kernels(model, paths[1])
    draw_attention_over(model, images, paths[2])
    masked = masked_by_run(source, mask_ratio, len(images.names))
    if isinstance(model, KeelViTForMaskedImageModeling) and masked is not None:
        seen, predicted = reconstructions(model, images, masked)
        rows = [
            [(caption(name), to_array(whole)), ("seen", to_array(part)), ("predicted", to_array(filled))]
            for name, whole, part, filled in zip(images.names, images.pixels, seen, predicted, strict=True)
        ]
        paths.append(folder / "reconstructions.png")
        target = PREDICTED[model.config.reconstruction_target]
        draw_gallery(rows, f"{masked.float().mean():.0%} of the patches are masked; {target}", paths[-1])
    return paths


def draw_pictures(source: Source, inputs: list[str], folder: Path, mask_ratio: float | None = None) -> list[Path]:
    """Draws what `write_page` shows of the same inputs; errors are as there.

    Returns:
        The pictures.
    """
    model = source.open()
    folder.mkdir(parents=True, exist_ok=True)
    if source.family == "vit":
        return draw_images(source, model, inputs, folder, mask_ratio)
    return draw_texts(source, model, inputs, folder)
