"""Which images a run is given, and how they are changed while it trains."""

from dataclasses import dataclass, field
from typing import Literal

from pretraining.data.settings import between
from pretraining.errors import UserError


@dataclass(frozen=True)
class ImageSettings:
    """Where images come from, and which of them are kept."""

    source: str = "digits"
    """`digits` (1,797 scanned digits that scikit-learn carries), `folder`, `files`, or the name of a Hub data set."""
    folder: str | None = None
    """For `folder`: a folder with a folder of images for each class; where no labels are learnt, one of images."""
    validation_folder: str | None = None
    """Held-out images, like `folder`; none named: `validation_fraction` is held out."""
    files: list[str] = field(default_factory=list)
    """For `files`: .parquet and .arrow files or globs."""
    validation_files: list[str] = field(default_factory=list)
    """Held-out files or globs, like `files`."""
    column: str = "image"
    """The column that holds the image, encoded or as the path of a file, for `files` and Hub data sets."""
    label_column: str = "label"
    """The column that holds the class: a number or a name."""
    subset: str | None = None
    """The Hub data set's configuration, as in `load_dataset(name, subset)`."""
    split: str = "train"
    """The Hub data set's training split."""
    validation_split: str | None = None
    """The Hub data set's held-out split; none: `validation_fraction` of the images."""
    validation_fraction: float = 0.05
    """Share of images held out, chosen by a hash of their content, where no held-out images are named; 0: none."""
    examples: int = 0
    """Train on this many of the training images, drawn evenly over the classes; 0: on all."""
    skip_bad_images: int = 0
    """Images that may be unreadable and are left out, counted and listed; one more ends the run before it begins."""
    decoded_megabytes: int = 4096
    """Images are kept decoded if all that are read for training, or as held out, take no more than this (all of them
    where these are parted by `validation_fraction`); else they are decoded each time anew."""
    processes: int = 0
    """Processes that read images; 0: cores divided by the training processes on this machine."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            fraction = self.validation_fraction
            raise UserError(f"data.validation_fraction is {fraction}: it must be at least 0 and less than 1.")
        for name in ("examples", "skip_bad_images", "decoded_megabytes", "processes"):
            between(f"data.{name}", getattr(self, name), 0)
        named = {"folder": self.folder or self.validation_folder, "files": self.files or self.validation_files}
        for source, given in named.items():
            if given and self.source != source:
                raise UserError(f"data.source is {self.source!r}, but data names a {source}: set it to {source}.")
        for source, given in {"folder": self.folder, "files": self.files}.items():
            if self.source == source and not given:
                raise UserError(f"data.source is {source!r}, but data.{source} is empty: name what there is to read.")


@dataclass(frozen=True)
class AugmentSettings:
    """How a training image is changed each time it is seen; every choice is drawn from (seed, epoch, index)."""

    crop: Literal["none", "padded", "resized"] = "resized"
    """What is cut out: the whole image; of its size, from an image padded all round (He 2015, 4.2); or an area of
    `crop_scale` and a ratio of `crop_ratio`, resized (Szegedy 2014, 6)."""
    crop_padding: float = 0.125
    """Of `padded`: what is added on each side, as a share of the image's own side."""
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Of `resized`: the least and the largest share of the image's area."""
    crop_ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])
    """Of `resized`: the least and the largest width over height."""
    flip: float = 0.5
    """Share of the images mirrored left to right."""
    randaugment_layers: int = 0
    """Operations one after another on each image (RandAugment, Cubuk 2019); 0: none."""
    randaugment_magnitude: float = 10.0
    """Their strength, 0 to 30."""
    erasing: float = 0.0
    """Share of the images of which a rectangle becomes noise (Zhong 2017)."""

    def __post_init__(self) -> None:
        between("objective.crop_padding", self.crop_padding, 0, 1)
        for name, low, high in (("crop_scale", 0.0, 1.0), ("crop_ratio", 0.0, float("inf"))):
            pair = getattr(self, name)
            if len(pair) != 2 or not low < pair[0] <= pair[1] <= high:
                raise UserError(f"objective.{name} is {pair}: it must be the least and the largest, both above {low}.")
        for name in ("flip", "erasing"):
            between(f"objective.{name}", getattr(self, name), 0, 1)
        between("objective.randaugment_layers", self.randaugment_layers, 0)
        between("objective.randaugment_magnitude", self.randaugment_magnitude, 0, 30)


@dataclass(frozen=True)
class MixingSettings(AugmentSettings):
    """How, besides, another training image is mixed in."""

    mixup: float = 0.0
    """Alpha of the Beta distribution of the weight with which another image is mixed in (Zhang 2017); 0: none is."""
    cutmix: float = 0.0
    """Alpha of the Beta distribution of the area that another image takes (Yun 2019); 0: none is."""
    mixing: float = 1.0
    """Share of the images that get a partner, where `mixup` or `cutmix` is on; if both are, each has half of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        between("objective.mixing", self.mixing, 0, 1)
        for name in ("mixup", "cutmix"):
            between(f"objective.{name}", getattr(self, name), 0)
