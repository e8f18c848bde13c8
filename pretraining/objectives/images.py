"""What the objectives of images share: prepared images, what a model sees of them, and the processor saved with it.

An example is an image, alone in its row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from pretraining.data import draws
from pretraining.data.images.augment import cut, draw
from pretraining.data.images.augment_batch import augment
from pretraining.data.images.corpus import prepare_images
from pretraining.data.packing import Example
from pretraining.errors import UserError
from pretraining.init_from import image_statistics, load_image_weights
from pretraining.objectives.base import Objective
from pretraining.settings import Settings

DRAWN = ("flip", "operations", "arguments", "erased", "noise_seed")  # what `augment` reads
FIXED = ("resample", "image_mean", "image_std")  # in all phases of a run
AT_A_TIME = 64  # images that are judged
RESAMPLE = {"bilinear": Resampling.BILINEAR, "bicubic": Resampling.BICUBIC}


@dataclass
class ImageObjectiveSettings:
    """How pixels become the model's input."""

    resample: Literal["bilinear", "bicubic"] = "bicubic"
    """How an image is resized."""
    image_mean: list[float] = field(default_factory=list)
    """What is subtracted from each channel's pixels, which are from 0 to 1; empty: the training images' mean, or what
    the checkpoint of init_from was trained with."""
    image_std: list[float] = field(default_factory=list)
    """What they are divided by; empty: their std, likewise."""

    row_size = 1

    def check(self, run: Settings) -> None:
        """Raises UserError where these settings and the run's others do not go together."""
        if run.train.tokens is not None:
            raise UserError(
                f"train.tokens is {run.train.tokens}, and images have no tokens: give the run its budget by "
                "train.epochs, train.steps or train.minutes."
            )
        for name in ("image_mean", "image_std"):
            given, channels = getattr(self, name), run.model.num_channels  # type: ignore[attr-defined]
            if given and len(given) != channels:
                raise UserError(
                    f"objective.{name} has {len(given)} numbers, and model.num_channels is {channels}: give one for "
                    "each."
                )
        if self.image_std and min(self.image_std) <= 0:
            raise UserError(f"objective.image_std is {self.image_std}: each must be above 0.")


class ImageObjective(Objective):
    """An objective whose model sees images; each is drawn from anew in every epoch, held-out ones are seen whole."""

    unit = "images"
    row_lengths: tuple[int, ...] = (1,)
    inputs = {"processor": ("AutoImageProcessor", "")}
    labelled: bool
    """Whether it asks for classes."""

    def configure(self, settings: Settings) -> None:
        super().configure(settings)
        self.model: Any = settings.model
        self.size: int = self.model.image_size

    def prepare(self, is_builder: bool) -> list[str]:
        config = self.model
        cache, options = Path(self.run.cache).expanduser(), self.settings
        found = prepare_images(self.run.data, config.num_channels, self.labelled, cache, is_builder)
        self.data = {"train": found.train, "validation": found.validation}
        mean, std, whose = found.mean.tolist(), found.std.tolist(), "the training images'"
        theirs = None if self.run.init_from is None else image_statistics(self.run.init_from)
        if theirs is not None:
            (mean, std), whose = theirs, f"those of {self.run.init_from}"
        self.processor = ViTImageProcessorPil(
            size={"height": config.image_size, "width": config.image_size},
            resample=RESAMPLE[options.resample],
            image_mean=list(options.image_mean or mean),
            image_std=list(options.image_std or std),
            do_convert_rgb=config.num_channels == 3,
        )
        mean, std = self.processor.image_mean, self.processor.image_std
        if options.image_mean and options.image_std:
            whose = "as set"
        self.fingerprint = " ".join([*(data.name for data in self.data.values()), f"{mean} {std}"])
        self.fixed = {name: getattr(options, name) for name in FIXED}
        self.open()
        shown = (" ".join(f"{value:.3f}" for value in values) for values in (mean, std))
        return [*found.lines, "pixels' mean {}, std {}: {}".format(*shown, whose)]

    def open(self) -> None:
        """Nothing is chosen: an example is an image.

        Raises:
            UserError: a phase asks for other pixels than the one processor that is saved makes.
        """
        for name, value in self.fixed.items():
            if getattr(self.settings, name) != value:
                raise UserError(f"train.phases: objective.{name} is one for the whole run: take it out of the phases.")

    def load_weights(self, model: PreTrainedModel, checkpoint: str) -> str:
        return load_image_weights(model, checkpoint)

    def begin(self, model: Any, before: Sequence[Any]) -> None:
        """Phases differ in what is drawn alone."""

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)

    def index(self, split: str, epoch: int) -> np.ndarray:
        """The images of the split (N,); held-out ones in a drawn order, so that the first are of all kinds."""
        index = np.arange(len(self.data[split]))
        return (
            index
            if split == "train"
            else np.argsort(draws.hash_key(self.seed(split), draws.SUBSET, index), kind="stable")
        )

    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        return np.ones(len(index), dtype=np.int64)

    def describe_rows(self, fill: float) -> str:
        return self.unit

    def whole(self, split: str, number: int) -> np.ndarray:
        """An image as the processor makes it, before it is normalised: uint8 (C, S, S)."""
        image = self.data[split].image(number)
        height, width = image.shape[:2]
        return cut(image, np.array([0, 0, width, height], dtype=float), self.size, self.processor.resample)

    def augmented(self, split: str, epoch: int, index: np.ndarray) -> list[Example]:
        """Pixels of images `index`, uint8 (C, S, S), and what is to be done to them on the device."""
        if split != "train":
            return [{"pixels": self.whole(split, number)} for number in index.tolist()]
        data = self.data[split]
        drawn = draw(self.settings, self.run.seed, epoch, index, data.sizes[index], self.size)
        boxes = drawn.pop("box")
        return [
            {
                "pixels": cut(data.image(number), boxes[i], self.size, self.processor.resample),
                **{name: values[i] for name, values in drawn.items()},
            }
            for i, number in enumerate(index.tolist())
        ]

    def blank(self) -> Example:
        """What stands for an empty row: it has no target."""
        return {"pixels": np.zeros((self.model.num_channels, self.size, self.size), dtype=np.uint8)}

    def collate(self, rows: list[list[Example]], sequences: int) -> dict[str, Tensor]:
        """An image each, empty rows left out; of nothing but empty rows one blank image."""
        found = [row[0] for row in rows if row] or [self.blank()]
        return {name: torch.from_numpy(np.stack([example[name] for example in found])) for name in found[0]}

    def pixels(self, batch: dict[str, Tensor], whose: str = "") -> Tensor:
        """A collated batch's pixels from 0 to 1 (B, C, S, S), training images changed as was drawn for them."""
        pixels = batch[f"{whose}pixels"]
        drawn = {name: batch[f"{whose}{name}"] for name in DRAWN if f"{whose}{name}" in batch}
        return augment(pixels, drawn, *self.statistics(pixels.device)) if drawn else pixels / 255

    def batches(self, model: Any, split: str, index: np.ndarray) -> Iterator[dict[str, Tensor]]:
        """Images `index` seen whole, as the model takes them."""
        for first in range(0, len(index), AT_A_TIME):
            pixels = np.stack([self.whole(split, number) for number in index[first : first + AT_A_TIME].tolist()])
            yield {"pixel_values": self.normalise(torch.from_numpy(pixels).to(model.device) / 255)}

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 1 (B, C, S, S), as the processor does."""
        mean, std = self.statistics(pixels.device)
        return (pixels - mean) / std

    def statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Each channel's mean and std, twice (C, 1, 1)."""
        values = torch.tensor([self.processor.image_mean, self.processor.image_std], device=device)
        mean, std = values[..., None, None]
        return mean, std
