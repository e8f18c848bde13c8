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
    """The module whose `objective(settings)` makes it."""


# Of each family the usual objective comes first.
OBJECTIVES = {
    "sentence_pairs": Entry("bert", TextSettings, SentencePairsSettings, "pretraining.objectives.mlm_nsp"),
    "translation": Entry("seq2seq", PairSettings, TranslationSettings, "pretraining.objectives.translation"),
    "denoising": Entry("seq2seq", TextSettings, DenoisingSettings, "pretraining.objectives.denoising"),
    "classification": Entry("vit", ImageSettings, ClassificationSettings, "pretraining.objectives.classification"),
    "masked_images": Entry("vit", ImageSettings, MaskedImagesSettings, "pretraining.objectives.masked_images"),
}


def make_objective(settings: "Settings", entries: dict[str, Entry] = OBJECTIVES) -> "Objective":
    """The objective that the settings name, one of the `entries`; its data is yet to be prepared."""
    return import_module(entries[settings.objective.name].module).objective(settings)
