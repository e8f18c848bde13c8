"""The head of a ResNet, on the same images, augmented and mixed alike, and scored alike as a ViT's."""

import torch
from transformers import PreTrainedModel

from finetuning.resnet import KeelResNetForImageClassification, of_size
from modeling import KeelViTConfig
from pretraining.objectives.base import Objective
from pretraining.objectives.classification import ClassificationHead, ClassificationScoring, LabelledImages
from pretraining.settings import Settings

SMALL = 64  # pixels on each side, up to which an image goes through a stem that keeps its size


class ResNetHead(ClassificationHead):
    """A ResNet with as many parameters as the ViT that the settings describe."""

    def build_model(self, config: KeelViTConfig) -> PreTrainedModel:
        with torch.device("meta"):  # nothing is computed: its size alone is asked for
            vit = super().build_model(config)
        return KeelResNetForImageClassification(
            of_size(
                vit.num_parameters(),
                num_channels=config.num_channels,
                small_images=config.image_size <= SMALL,
                label_smoothing=config.label_smoothing,
                id2label=config.id2label,
                label2id=config.label2id,
            )
        )


def resnet_objective(settings: Settings) -> Objective:
    return Objective.of(LabelledImages(settings), ResNetHead, ClassificationScoring)
