"""What a model can learn from. An objective's code is imported when a run starts: `--help` needs its settings alone."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from pretraining.data.images.settings import ImageSettings
from pretraining.data.pairs.settings import PairSettings
from pretraining.data.text.settings import TextSettings
from pretraining.objectives.settings import (
    ClassificationSettings,
    DenoisingSettings,
    MaskedImagesSettings,
    SentencePairsSettings,
    TranslationSettings,
)

if TYPE_CHECKING:
    from pretraining.objectives.base import Objective
    from pretraining.settings import Settings


class Entry(NamedTuple):
    """What is known of an objective before its code is imported."""

    family: str
    data: type
    """The settings class of the section `data`."""
    settings: type
    """The settings class of the section `objective`."""
    module: str
    """Where `objective(settings)` makes it."""


# Of each family the usual objective comes first.
OBJECTIVES = {
    "sentence_pairs": Entry("bert", TextSettings, SentencePairsSettings, "mlm_nsp"),
    "translation": Entry("seq2seq", PairSettings, TranslationSettings, "translation"),
    "denoising": Entry("seq2seq", TextSettings, DenoisingSettings, "denoising"),
    "classification": Entry("vit", ImageSettings, ClassificationSettings, "classification"),
    "masked_images": Entry("vit", ImageSettings, MaskedImagesSettings, "masked_images"),
}


def make_objective(settings: "Settings") -> "Objective":
    """The objective that the settings name; its data is yet to be prepared."""
    module = import_module(f"pretraining.objectives.{OBJECTIVES[settings.objective.name].module}")
    return module.objective(settings)
