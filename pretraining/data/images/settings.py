"""Settings of images: where they come from, and how they are changed while a run trains."""

from dataclasses import dataclass, field
from typing import Literal

from pretraining.data.settings import between
from pretraining.errors import UserError


@dataclass(frozen=True)
class ImageSettings:
    """Where images come from, and which of them are used."""

    source: str = "digits"
    """The source: `digits` (1,797 scanned digits of scikit-learn), `folder`, `files`, or the name of a Hub data set."""
    folder: str | None = None
    """The folder of data.source=folder: a folder of images for each class, or images if no labels are learnt; or train/
    and val/, each with these."""
    validation_folder: str | None = None
    """The folder of held-out images, like data.folder; null: what data.folder has as val/ or test/, or else
    data.validation_fraction of the images."""
    files: list[str] = field(default_factory=list)
    """The files of data.source=files: names or globs of .parquet and .arrow files."""
    validation_files: list[str] = field(default_factory=list)
    """The files of held-out images, named like data.files; empty: data.validation_fraction is held out."""
    column: str = "image"
    """The column of files and Hub data sets that holds the image, encoded or as the path of a file."""
    label_column: str = "label"
    """The column of files and Hub data sets that holds the class, a number or a name."""
    subset: str | None = None
    """The Hub data set's configuration, as in `load_dataset(name, subset)`."""
    split: str = "train"
    """The Hub data set's training split."""
    validation_split: str | None = None
    """The Hub data set's held-out split; null: data.validation_fraction of the images is held out."""
    validation_fraction: float = 0.05
    """The share of the images that is held out if no held-out images are named, chosen by a hash of their content."""
    examples: int = 0
    """The number of training images, drawn evenly over the classes; 0: all of them."""
    skip_bad_images: int = 0
    """The number of unreadable images that are left out and listed; one more ends the run before it begins."""
    decoded_megabytes: int = 4096
    """The room in megabytes for the decoded images of a source, training or held-out; if they need more, each image is
    decoded anew each time it is used."""
    processes: int = 0
    """The number of processes that read images; 0: the cores divided by the training processes of this machine."""

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
    """How a training image is changed each time it is used; every choice is drawn from (seed, epoch, index)."""

    crop: Literal["none", "padded", "resized"] = "resized"
    """The part that is cut out: `none`, the whole image; `padded`, a part as large as the image, of the image with its
    padding (He 2015, 4.2); `resized`, a part of another area and ratio, which is resized (Szegedy 2014, 6)."""
    crop_padding: float = 0.125
    """The padding of objective.crop=padded on each side, as a share of the image's side."""
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """The area of objective.crop=resized: the least and the largest share of the image's area."""
    crop_ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])
    """The ratio of objective.crop=resized: the least and the largest width divided by height."""
    flip: float = 0.5
    """The share of the images that is mirrored, left to right."""
    randaugment_layers: int = 0
    """The number of RandAugment's operations on each image, one after another (Cubuk 2019); 0: none."""
    randaugment_magnitude: float = 10.0
    """The magnitude of RandAugment's operations, 0 to 30."""
    erasing: float = 0.0
    """The share of the images in which noise replaces a rectangle (Zhong 2017)."""

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
    """How a training image is changed, and how another one is mixed into it."""

    mixup: float = 0.0
    """The alpha of the Beta distribution of Mixup's weights (Zhang 2017); 0: no image is blended with another."""
    cutmix: float = 0.0
    """The alpha of the Beta distribution of CutMix's areas (Yun 2019); 0: no image gets a rectangle of another."""
    mixing: float = 1.0
    """The share of the images that is mixed; if objective.mixup and objective.cutmix are both on, each gets half."""

    def __post_init__(self) -> None:
        super().__post_init__()
        between("objective.mixing", self.mixing, 0, 1)
        for name in ("mixup", "cutmix"):
            between(f"objective.{name}", getattr(self, name), 0)
