"""ViT (Dosovitskiy 2020): an encoder over the patches of an image, and its heads.

B batch, P patches, D hidden size, C channels, N classes.
"""

from typing import Unpack

from torch import Tensor, nn
from torch.nn.functional import l1_loss, pixel_shuffle
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput, MaskedImageModelingOutput
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .base import ForwardKwargs, KeelPreTrainedModel
from .configuration import KeelViTConfig
from .embeddings import PatchEmbeddings
from .heads import Counts, ZeroLinear, divided, labels_loss, pool
from .layers import EncoderBlock, Stack


class KeelViTPreTrainedModel(KeelPreTrainedModel):
    """What all ViT classes share."""

    config_class = KeelViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _input_embed_layer = "projection"
    _can_record_outputs = {"hidden_states": EncoderBlock, "attentions": MultiHeadAttention}
    _keys_to_ignore_on_load_unexpected = [r"^pixels\.", r"mask_token"]


class KeelViTModel(KeelViTPreTrainedModel):
    """The encoder, and the pooled vector of each image."""

    def __init__(self, config: KeelViTConfig, use_mask_token: bool = False):
        super().__init__(config)
        self.embeddings = PatchEmbeddings(config, use_mask_token)
        self.encoder = Stack(config, EncoderBlock, config.num_hidden_layers)
        self.post_init()

    # As in transformers, the last of the hidden states is what the last norm reads.
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPooling:
        """Pixels (B, C, height, width) to `last_hidden_state` (B, P + 1, D) and `pooler_output` (B, D)."""
        x = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        x = self.encoder(x, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pool(x, self.config.pooling))


class KeelViTForImageClassification(KeelViTPreTrainedModel):
    """A class for each image."""

    def __init__(self, config: KeelViTConfig):
        super().__init__(config)
        assert config.num_labels is not None  # transformers fills it in
        self.num_labels = config.num_labels
        self.vit = KeelViTModel(config)
        self.classifier = ZeroLinear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: Counts = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> ImageClassifierOutput:
        """`labels` (B,) of classes, or (B, N) of zeros and ones for several classes at once."""
        outputs = self.vit(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else labels_loss(self.config, logits, labels, num_items_in_batch)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class KeelViTForMaskedImageModeling(KeelViTPreTrainedModel):
    """Hidden patches, their pixels predicted by one linear layer (SimMIM, Xie 2021, 3.4): L1 over hidden pixels."""

    def __init__(self, config: KeelViTConfig):
        super().__init__(config)
        self.vit = KeelViTModel(config, use_mask_token=True)
        self.pixels = nn.Linear(config.hidden_size, config.num_channels * config.patch_size**2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: Counts = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> MaskedImageModelingOutput:
        """`bool_masked_pos` (B, P), True where a patch is hidden; `reconstruction` is (B, C, height, width)."""
        outputs = self.vit(pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs)
        size = self.config.patch_size
        height, width = (side // size for side in pixel_values.shape[2:])
        x = self.pixels(outputs.last_hidden_state[:, -height * width :])  # (B, P, C * size * size)
        reconstruction = pixel_shuffle(x.transpose(1, 2).unflatten(2, (height, width)), size)
        loss = None
        if bool_masked_pos is not None:
            error = l1_loss(reconstruction, pixel_values, reduction="none").mean(1)  # (B, height, width)
            error = error.unflatten(2, (width, size)).unflatten(1, (height, size)).mean((2, 4)).flatten(1)  # (B, P)
            hidden = bool_masked_pos.bool()
            total, targets = (error * hidden).sum(), hidden.long().where(hidden, -100)
            loss = divided(total, targets, "bool_masked_pos", num_items_in_batch)
        return MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
