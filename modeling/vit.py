"""ViT (Dosovitskiy 2020): an encoder over the patches of an image, and its heads.

B batch, P patches, V visible patches, D hidden size, C channels, H and W height and width in patches, N classes.
"""

from copy import copy
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput, MaskedImageModelingOutput
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .base import ForwardKwargs, KeelPreTrainedModel, strict
from .configuration import KeelViTConfig
from .embeddings import DecoderPatchEmbeddings, PatchEmbeddings
from .heads import ZeroLinear, pool
from .layers import EncoderBlock, Stack
from .losses import Counts, classification_loss, labels_loss, training_targets
from .vit_masked import COLOR_LEVELS, pixel_loss, visible_patches


class KeelViTPreTrainedModel(KeelPreTrainedModel):
    """What all ViT classes have in common."""

    config_class = KeelViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _input_embed_layer = "projection"
    _can_record_outputs = {"hidden_states": EncoderBlock, "attentions": MultiHeadAttention}
    # A checkpoint of one head opens under every other class of the family.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^pixels\.", r"^colors\.", r"^decoder\.", r"mask_token"]

    def resize_position_embeddings(self, image_size: int) -> None:
        """Makes the model one of images of another size, its positions interpolated (Dosovitskiy 2020, 3.2).

        `forward(interpolate_pos_encoding=True)` computes the same positions, anew each time and without learning them.

        Raises:
            ValueError: `image_size` is no multiple of `patch_size`.
        """
        config = self.config
        if image_size % config.patch_size:
            raise ValueError(f"image_size={image_size} is no multiple of patch_size={config.patch_size}.")
        if config.position_grid_size is None:
            config.position_grid_size = config.image_size // config.patch_size
        config.image_size = image_size
        for module in self.modules():
            if isinstance(module, PatchEmbeddings | DecoderPatchEmbeddings):
                module.resize(config)


class KeelViTModel(KeelViTPreTrainedModel):
    """The encoder, and the pooled vector of each image."""

    def __init__(self, config: KeelViTConfig, use_mask_token: bool = False):
        super().__init__(config)
        self.embeddings = PatchEmbeddings(config, use_mask_token)
        self.encoder = Stack(config, EncoderBlock, config.num_hidden_layers)
        self.post_init()

    # As in transformers, the last of `hidden_states` is the input of the last norm.
    @strict
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        ids_keep: Tensor | None = None,
        pooler_only: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPooling:
        """Pixels (B, C, height, width) to `last_hidden_state` (B, P + 1, D) and `pooler_output` (B, D).

        Args:
            bool_masked_pos, interpolate_pos_encoding, ids_keep: as for `PatchEmbeddings.forward`.
            pooler_only: compute `pooler_output` alone; `last_hidden_state` is then None.
        """
        x = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding, ids_keep)
        cls_only = pooler_only and self.config.pooling == "cls"
        queries = torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device) if cls_only else None  # the class token
        x = self.encoder(x, queries=queries, **kwargs)
        pooled = pool(x, self.config.pooling)
        return BaseModelOutputWithPooling(last_hidden_state=None if pooler_only else x, pooler_output=pooled)


class KeelViTForImageClassification(KeelViTPreTrainedModel):
    """A class for each image."""

    def __init__(self, config: KeelViTConfig):
        super().__init__(config)
        assert config.num_labels is not None  # transformers fills it in
        self.vit = KeelViTModel(config)
        self.classifier = ZeroLinear(config.hidden_size, config.num_labels)
        self.post_init()

    @strict
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        partner_labels: Tensor | None = None,
        partner_weight: Tensor | None = None,
        num_items_in_batch: Counts = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            labels: (B,) of classes, or (B, N) of zeros and ones for several classes at once.
            partner_labels: (B,), the class of the image that was mixed into this one (mixup, CutMix).
            partner_weight: (B,), that image's share, as `losses.labels_loss` says.
        """
        # Somebody who asks for states or attentions wants those of all patches; the head reads the pooled one alone.
        recorded = ("output_hidden_states", "output_attentions")
        pooler_only = not any(kwargs.get(name, getattr(self.config, name)) for name in recorded)
        outputs = self.vit(
            pixel_values, None, interpolate_pos_encoding, pooler_only=pooler_only, return_dict=True, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            mixed = (partner_labels, partner_weight)
            loss = labels_loss(
                self.config, logits, labels, num_items_in_batch, *mixed, **training_targets(self.config, self.training)
            )
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class KeelViTDecoder(KeelViTPreTrainedModel):
    """The small decoder for masked images (MAE: He 2021, 3): states of visible patches, mask tokens for the others."""

    def __init__(self, config: KeelViTConfig):
        sizes: Any = copy(config)
        sizes.hidden_size = config.decoder_hidden_size
        sizes.num_attention_heads = config.decoder_num_attention_heads
        sizes.intermediate_size = config.decoder_intermediate_size
        super().__init__(sizes)  # a PreTrainedModel, so that `set_attn_implementation` reaches this configuration too
        self.embeddings = DecoderPatchEmbeddings(config)
        self.stack = Stack(sizes, EncoderBlock, config.decoder_num_hidden_layers)
        self.post_init()

    def forward(self, x: Tensor, ids_keep: Tensor | None, height: int, width: int) -> Tensor:
        """The encoder's states (B, V + 1, D) to those of H x W patches, (B, P, decoder_hidden_size)."""
        return self.stack(self.embeddings(x, ids_keep, height, width))[:, -height * width :]


class KeelViTForMaskedImageModeling(KeelViTPreTrainedModel):
    """Masked patches, predicted by one linear layer.

    Without a decoder the encoder sees mask tokens in their places (SimMIM: Xie 2021). With one the encoder sees the
    visible patches alone, and the decoder gets the mask tokens (MAE: He 2021). `reconstruction_target` decides what is
    predicted and the loss: pixels by L1 (Xie 2021, 3.4), normalised pixels by squares (He 2021, 3), mean colors by
    cross-entropy (Dosovitskiy 2020, B.1.2).
    """

    def __init__(self, config: KeelViTConfig):
        super().__init__(config)
        has_decoder = config.decoder_num_hidden_layers > 0
        width = config.decoder_hidden_size if has_decoder else config.hidden_size
        self.vit = KeelViTModel(config, use_mask_token=not has_decoder)
        self.decoder = KeelViTDecoder(config) if has_decoder else None
        self.pixels = self.colors = None
        if config.reconstruction_target == "mean_color":
            self.colors = nn.Linear(width, COLOR_LEVELS**config.num_channels)
        else:
            self.pixels = nn.Linear(width, config.num_channels * config.patch_size**2)
        self.post_init()

    @strict
    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        labels: Tensor | None = None,
        ids_keep: Tensor | None = None,
        num_items_in_batch: Counts = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> MaskedImageModelingOutput:
        """`reconstruction` is (B, C, height, width), pixels or normalised pixels (`patch_statistics` undoes it), or the
        logits (B, P, 8 ** C) of mean colors.

        Args:
            bool_masked_pos: (B, P), True where a patch is masked; with a decoder, equally many of each image.
            labels: (B, P), the `mean_colors` of masked patches, -100 elsewhere, if these are the target.
            ids_keep: (B, V), the visible patches, for a decoder; None: computed from `bool_masked_pos`.

        Raises:
            ValueError: a decoder, no `ids_keep`, and unequal numbers of masked patches.
        """
        height, width = (side // self.config.patch_size for side in pixel_values.shape[2:])
        if self.decoder is None:
            outputs = self.vit(pixel_values, bool_masked_pos, interpolate_pos_encoding, return_dict=True, **kwargs)
            x = outputs.last_hidden_state[:, -height * width :]
        else:
            if ids_keep is None and bool_masked_pos is not None:
                ids_keep = visible_patches(bool_masked_pos)
            outputs = self.vit(pixel_values, None, interpolate_pos_encoding, ids_keep, return_dict=True, **kwargs)
            x = self.decoder(outputs.last_hidden_state, ids_keep, height, width)
        loss = None
        if self.colors is not None:
            reconstruction = self.colors(x)
            if labels is not None:
                loss = classification_loss(reconstruction, labels, "labels", num_items_in_batch)
        else:
            assert self.pixels is not None
            x = self.pixels(x)  # (B, P, C * size * size)
            reconstruction = pixel_shuffle(x.transpose(1, 2).unflatten(2, (height, width)), self.config.patch_size)
            if bool_masked_pos is not None:
                loss = pixel_loss(self.config, reconstruction, pixel_values, bool_masked_pos, num_items_in_batch)
        states = {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}
        return MaskedImageModelingOutput(loss=loss, reconstruction=reconstruction, **states)
