"""What a model can be fine-tuned for; a task's code is imported when a run starts: `--help` needs settings alone."""

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
from pretraining.objectives import Entry
from pretraining.objectives.settings import TranslationSettings

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
