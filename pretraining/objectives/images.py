"""What the objectives of images share: prepared images, what a model sees of them, and the processor saved with it.

An example is an image, alone in its row.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from pretraining.data import draws
from pretraining.data.images.augment import augment, draw, draw_erasing
from pretraining.data.images.augment_batch import erase
from pretraining.data.images.corpus import prepare_images
from pretraining.data.packing import Example
from pretraining.errors import UserError
from pretraining.init_from import image_statistics, load_image_weights
from pretraining.objectives.base import Batch, Examples, Head

FIXED = ("resample", "image_mean", "image_std")  # in all phases of a run
AT_A_TIME = 64  # images that a model sees at once, where no step is cut
RESAMPLE = {"bilinear": Resampling.BILINEAR, "bicubic": Resampling.BICUBIC}


class ImageExamples(Examples):
    """An image each, drawn from anew in every epoch; held-out images are seen whole."""

    row_lengths: tuple[int, ...] = (1,)
    labelled: bool
    """Whether classes are read."""

    @property
    def size(self) -> int:
        """Pixels on each side of what the model sees, S."""
        return self.run.model.image_size  # type: ignore[attr-defined]

    def prepare(self, is_builder: bool) -> list[str]:
        config: Any = self.run.model
        cache, options = Path(self.run.cache).expanduser(), self.settings
        images = prepare_images(self.run.data, config.num_channels, self.labelled, cache, is_builder)
        self.data = {"train": images.train, "validation": images.validation}
        mean, std, whose = images.mean.tolist(), images.std.tolist(), "the training images'"
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
        self.index_examples()
        shown = (" ".join(f"{value:.3f}" for value in values) for values in (mean, std))
        return [*images.lines, "pixels' mean {}, std {}: {}".format(*shown, whose)]

    def index_examples(self) -> None:
        """Nothing is chosen: an example is an image.

        Raises:
            UserError: a phase asks for other pixels than the one processor that is saved makes.
        """
        for name, value in self.fixed.items():
            if getattr(self.settings, name) != value:
                raise UserError(f"train.phases: objective.{name} is one for the whole run: take it out of the phases.")

    def index(self, split: str, epoch: int) -> np.ndarray:
        """The images of the split (N,); held-out ones in a drawn order, so that the first are of all kinds."""
        index = np.arange(len(self.data[split]))
        if split == "train":
            return index
        return np.argsort(draws.hash_key(self.seed(split), draws.SUBSET, index), kind="stable")

    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        return np.ones(len(index), dtype=np.int64)

    def whole(self, split: str, number: int) -> np.ndarray:
        """An image as the processor makes it, before it is normalised: uint8 (C, S, S)."""
        image = self.data[split].image(number)
        height, width = image.shape[:2]
        unchanged = {"box": np.array([0, 0, width, height]), "flip": np.array(False)}
        return augment(image, unchanged, self.size, self.processor.resample)

    def augmented(self, split: str, epoch: int, index: np.ndarray) -> list[Example]:
        """Pixels of images `index`, uint8 (C, S, S), and what is erased of them on the device."""
        if split != "train":
            return [{"pixels": self.whole(split, number)} for number in index.tolist()]
        data = self.data[split]
        drawn = draw(self.settings, self.run.seed, epoch, index, data.sizes[index])
        erasing = draw_erasing(self.settings, self.run.seed, epoch, index, self.size)
        examples = []
        for i, number in enumerate(index.tolist()):
            changes = {name: values[i] for name, values in drawn.items()}
            pixels = augment(data.image(number), changes, self.size, self.processor.resample)
            examples.append({"pixels": pixels, **{name: values[i] for name, values in erasing.items()}})
        return examples

    def blank(self) -> Example:
        """What stands for an empty row; it has no target."""
        channels = self.run.model.num_channels  # type: ignore[attr-defined]
        return {"pixels": np.zeros((channels, self.size, self.size), dtype=np.uint8)}

    @abstractmethod
    def count_targets(self, tensors: dict[str, Tensor]) -> tuple[dict[str, int], int]:
        """How many targets each of the model's arguments bears in a batch, and how many images."""

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        """An image each, empty rows left out; of nothing but empty rows one blank image."""
        examples = [row[0] for row in rows if row] or [self.blank()]
        tensors = {name: torch.from_numpy(np.stack([example[name] for example in examples])) for name in examples[0]}
        return Batch(tensors, *self.count_targets(tensors))

    def to_pixels(self, tensors: dict[str, Tensor], prefix: str = "") -> Tensor:
        """A batch's pixels from 0 to 1, (B, C, S, S), of training images erased in part."""
        pixels = tensors[f"{prefix}pixels"] / 255
        if f"{prefix}erased" not in tensors:
            return pixels
        erased, noise_seed = tensors[f"{prefix}erased"], tensors[f"{prefix}noise_seed"]
        return erase(pixels, erased, noise_seed, *self.statistics(pixels.device))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 1, (B, C, S, S), as the processor does."""
        mean, std = self.statistics(pixels.device)
        return (pixels - mean) / std

    def statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Each channel's mean and standard deviation, twice (C, 1, 1)."""
        values = torch.tensor([self.processor.image_mean, self.processor.image_std], device=device)
        mean, std = values[..., None, None]
        return mean, std

    def batches(self, model: Any, split: str, index: np.ndarray) -> Iterator[dict[str, Tensor]]:
        """Images `index` seen whole, as the model takes them."""
        for first in range(0, len(index), AT_A_TIME):
            pixels = np.stack([self.whole(split, number) for number in index[first : first + AT_A_TIME].tolist()])
            yield {"pixel_values": self.normalise(torch.from_numpy(pixels).to(model.device) / 255)}


AnyImages = TypeVar("AnyImages", bound=ImageExamples)


class ImageHead(Head[AnyImages]):
    """A model that sees images."""

    inputs = {"processor": ("AutoImageProcessor", "")}

    def load_weights(self, model: PreTrainedModel, checkpoint: str) -> str:
        return load_image_weights(model, checkpoint)

    def enter_phase(self, model: Any, before: Sequence[Examples]) -> None:
        """Nothing is to be done: phases differ in what is drawn alone."""

    def save_inputs(self, folder: Path) -> None:
        self.examples.processor.save_pretrained(folder)
