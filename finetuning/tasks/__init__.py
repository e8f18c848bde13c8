"""What a model can be fine-tuned for; a task's code is imported when a run starts: `--help` needs settings alone."""

from typing import TYPE_CHECKING

from finetuning.data.settings import ChoiceTableSettings, SpanTableSettings, TextTableSettings, TokenTableSettings
from finetuning.settings import (
    ImageClassificationSettings,
    MultipleChoiceSettings,
    QuestionAnsweringSettings,
    SequenceClassificationSettings,
    TokenClassificationSettings,
)
from pretraining.data.images.settings import ImageSettings
from pretraining.data.pairs.settings import PairSettings
from pretraining.objectives import Entry, make_objective
from pretraining.objectives.settings import TranslationSettings
from pretraining.settings import Settings

if TYPE_CHECKING:
    from pretraining.objectives.base import Objective

# Of each family the usual task comes first.
TASKS = {
    "sequence_classification": Entry(
        "bert", TextTableSettings, SequenceClassificationSettings, "finetuning.tasks.text"
    ),
    "token_classification": Entry("bert", TokenTableSettings, TokenClassificationSettings, "finetuning.tasks.tokens"),
    "question_answering": Entry("bert", SpanTableSettings, QuestionAnsweringSettings, "finetuning.tasks.spans"),
    "multiple_choice": Entry("bert", ChoiceTableSettings, MultipleChoiceSettings, "finetuning.tasks.choice"),
    "translation": Entry("seq2seq", PairSettings, TranslationSettings, "pretraining.objectives.translation"),
    "classification": Entry("vit", ImageSettings, ImageClassificationSettings, "finetuning.tasks.images"),
}


def make_task(settings: Settings) -> "Objective":
    """The task that the settings name; its data is yet to be prepared."""
    return make_objective(settings, TASKS)
