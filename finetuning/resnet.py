"""transformers' ResNet, for comparison with our ViT: a stem for small images, and the losses that our loop asks for.

It imports torch and transformers alone: this file is copied beside the weights, and opens them anywhere.

B images, C channels, H and W their height and width, N classes.
"""

from dataclasses import field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention
from transformers.models.resnet.modeling_resnet import ResNetConvLayer


class KeelResNetConfig(ResNetConfig):
    """A ResNet's, and what its stem and its loss need to know."""

    model_type = "keel-resnet"

    small_images: bool = True
    """The stem is one 3 x 3 convolution (He 2015, 4.2), not a 7 x 7 one of stride 2 and a pooling of stride 2, which
    leave nothing of an image of 8 or 32 pixels."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes."""
    auto_map: dict = field(
        default_factory=lambda: {
            "AutoConfig": "resnet.KeelResNetConfig",
            "AutoModelForImageClassification": "resnet.KeelResNetForImageClassification",
        }
    )


class KeelResNetForImageClassification(ResNetForImageClassification):
    """A ResNet with a classifier (He 2015)."""

    config_class = KeelResNetConfig

    def __init__(self, config: KeelResNetConfig):
        super().__init__(config)
        if config.small_images:
            stem: Any = self.resnet.embedder
            stem.embedder = ResNetConvLayer(config.num_channels, config.embedding_size, activation=config.hidden_act)
            stem.pooler = nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        partner_labels: Tensor | None = None,
        partner_weight: Tensor | None = None,
        num_items_in_batch: dict[str, Tensor] | None = None,
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits (B, N) of images (B, C, H, W), and the loss.

        Args:
            labels: (B,), -100 for none.
            partner_labels, partner_weight: (B,), the class of the image that is mixed in, and its share.
            num_items_in_batch: the number of labels in the whole step; None: this batch's.
        """
        logits = self.classifier(self.resnet(pixel_values).pooler_output)
        if labels is None:
            return ImageClassifierOutputWithNoAttention(logits=logits)
        smoothing = self.config.label_smoothing
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        if partner_labels is not None and partner_weight is not None:
            partners = cross_entropy(logits, partner_labels, reduction="none", label_smoothing=smoothing)
            losses = losses.lerp(partners, partner_weight.to(losses.dtype))
        is_target = labels != -100
        count = is_target.sum() if num_items_in_batch is None else num_items_in_batch["labels"]
        return ImageClassifierOutputWithNoAttention(loss=(losses * is_target).sum() / count, logits=logits)


def make_config(width: int, **fields) -> KeelResNetConfig:
    """A ResNet of three stages of two blocks (He 2015, 4.2), whose channels double from `width` on."""
    stages = [width, 2 * width, 4 * width]
    return KeelResNetConfig(embedding_size=width, hidden_sizes=stages, depths=[2, 2, 2], layer_type="basic", **fields)


def count_parameters(config: KeelResNetConfig) -> int:
    with torch.device("meta"):
        return KeelResNetForImageClassification(config).num_parameters()


def of_size(parameters: int, **fields) -> KeelResNetConfig:
    """The ResNet whose number of parameters is nearest."""
    low, high = 1, 2
    while count_parameters(make_config(high, **fields)) < parameters:
        low, high = high, 2 * high
    while high - low > 1:  # the number of parameters grows with the width
        middle = (low + high) // 2
        below = count_parameters(make_config(middle, **fields)) < parameters
        low, high = (middle, high) if below else (low, middle)
    return min(
        (make_config(width, **fields) for width in (low, high)),
        key=lambda config: abs(count_parameters(config) - parameters),
    )


AutoConfig.register(KeelResNetConfig.model_type, KeelResNetConfig)
AutoModelForImageClassification.register(KeelResNetConfig, KeelResNetForImageClassification)
KeelResNetConfig.register_for_auto_class()
KeelResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
