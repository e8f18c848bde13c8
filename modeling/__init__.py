"""Keel's architectures. Importing this makes transformers' Auto classes know them."""

import transformers
from transformers import AutoConfig, PreTrainedConfig

from .bert import (
    KeelBertForMaskedLM,
    KeelBertForMultipleChoice,
    KeelBertForNextSentencePrediction,
    KeelBertForPreTraining,
    KeelBertForPreTrainingOutput,
    KeelBertForQuestionAnswering,
    KeelBertForSequenceClassification,
    KeelBertForTokenClassification,
    KeelBertModel,
)
from .configuration import KeelBertConfig, KeelSeq2SeqConfig, KeelViTConfig
from .seq2seq import KeelSeq2SeqForConditionalGeneration, KeelSeq2SeqModel
from .vit import KeelViTForImageClassification, KeelViTForMaskedImageModeling, KeelViTModel

__all__ = [
    "CONFIGS",
    "KeelBertConfig",
    "KeelBertForMaskedLM",
    "KeelBertForMultipleChoice",
    "KeelBertForNextSentencePrediction",
    "KeelBertForPreTraining",
    "KeelBertForPreTrainingOutput",
    "KeelBertForQuestionAnswering",
    "KeelBertForSequenceClassification",
    "KeelBertForTokenClassification",
    "KeelBertModel",
    "KeelSeq2SeqConfig",
    "KeelSeq2SeqForConditionalGeneration",
    "KeelSeq2SeqModel",
    "KeelViTConfig",
    "KeelViTForImageClassification",
    "KeelViTForMaskedImageModeling",
    "KeelViTModel",
]

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "bert": KeelBertConfig,
    "seq2seq": KeelSeq2SeqConfig,
    "vit": KeelViTConfig,
}


def register() -> None:
    """Enter every class that a configuration's `auto_map` names under its Auto class."""
    classes = {name: value for name, value in globals().items() if name.startswith("Keel")}
    for config in CONFIGS.values():
        AutoConfig.register(config.model_type, config)
        config.register_for_auto_class()
        for auto, reference in config().auto_map.items():
            if auto != "AutoConfig":
                model = classes[reference.split(".")[1]]
                getattr(transformers, auto).register(config, model)
                model.register_for_auto_class(auto)


register()
