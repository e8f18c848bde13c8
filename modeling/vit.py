"""ViT (Dosovitskiy 2020): an encoder over the patches of an image, and its heads.

B batch, P patches, V of them visible, D hidden size, C channels, H and W height and width in patches, N classes.
"""

from copy import copy
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss, pixel_shuffle
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput, MaskedImageModelingOutput
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .base import ForwardKwargs, KeelPreTrainedModel, strict
from .configuration import KeelViTConfig
from .embeddings import DecoderPatchEmbeddings, PatchEmbeddings
from .heads import Counts, ZeroLinear, classification_loss, divided, labels_loss, pool
from .layers import EncoderBlock, Stack

COLOR_LEVELS = 8  # of a channel of a patch's mean color: three bits (Dosovitskiy 2020, B.1.2)


class KeelViTPreTrainedModel(KeelPreTrainedModel):
    """What all ViT classes share."""

    config_class = KeelViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _input_embed_layer = "projection"
    _can_record_outputs = {"hidden_states": EncoderBlock, "attentions": MultiHeadAttention}
    # A checkpoint of one head opens under every other class of the family.
    _keys_to_ignore_on_load_unexpected = [r"^pixels\.", r"^colors\.", r"^decoder\.", r"mask_token"]

    def resize_position_embeddings(self, image_size: int) -> None:
        """Images of another size from now on, the positions interpolated to it (Dosovitskiy 2020, 3.2).

        As `forward(interpolate_pos_encoding=True)` does each time; but learned positions are then learned further.

        Raises:
            ValueError: `image_size` is no multiple of the patches'.
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

    # As in transformers, the last of the hidden states is what the last norm reads.
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
            bool_masked_pos: (B, P), True where a mask token stands for the patch.
            interpolate_pos_encoding: take images of another size.
            ids_keep: (B, V), the only patches that the encoder sees.
            pooler_only: compute no more than `pooler_output`; `last_hidden_state` is then None.
        """
        x = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding, ids_keep)
        x = self.encoder(x, cls_only=pooler_only and self.config.pooling == "cls", **kwargs)
        states = None if pooler_only else x
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pool(x, self.config.pooling))


class KeelViTForImageClassification(KeelViTPreTrainedModel):
    """A class for each image."""

    def __init__(self, config: KeelViTConfig):
        super().__init__(config)
        assert config.num_labels is not None  # transformers fills it in
        self.num_labels = config.num_labels
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
            partner_weight: (B,), its share of this one, as `heads.mixed_loss` says.
        """
        asked = ("output_hidden_states", "output_attentions")
        whole = any(kwargs.get(name, getattr(self.config, name)) for name in asked)
        outputs = self.vit(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, pooler_only=not whole, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            smoothing = self.config.label_smoothing if self.training else 0.0
            mixed = (partner_labels, partner_weight)
            loss = labels_loss(self.config, logits, labels, num_items_in_batch, *mixed, smoothing=smoothing)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Masked images: which patches are seen, and what is predicted of the others.


def visible_patches(bool_masked_pos: Tensor) -> Tensor:
    """Which patches are not hidden, in their order: (B, P) -> (B, V).

    Their number is read on the host, so an accelerator is waited for. Of an image with nothing hidden, which has no
    loss (an empty row of a batch), the first V are taken.

    Raises:
        ValueError: images of which unequal numbers of patches are hidden.
    """
    hidden = bool_masked_pos.bool()
    counts = hidden.sum(1).tolist()
    most = max(counts)
    if any(count not in (0, most) for count in counts):
        raise ValueError(
            f"bool_masked_pos hides {min(filter(None, counts))} patches of one image and {most} of another: with a "
            "decoder (decoder_num_hidden_layers) the images of a batch hide equally many."
        )
    return hidden.int().argsort(stable=True, dim=1)[:, : hidden.shape[1] - most]


def patch_statistics(pixels: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Mean and std of each patch, at each of its pixels: (B, C, height, width) -> twice (B, 1, height, width).

    `normalized_pixels` are (pixels - mean) / std (He 2021, 3, as released: unbiased, 1e-6 added to the variance);
    a reconstruction of them, times the std and plus the mean of the image's own patches, is one of pixels.
    """
    patches = pixels.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, C, H, size, W, size)
    variance, mean = torch.var_mean(patches, (1, 3, 5), keepdim=True)
    shape = (-1, -1, -1, patch_size, -1, patch_size)
    mean, std = (x.expand(shape).flatten(4).flatten(2, 3) for x in (mean, (variance + 1e-6).sqrt()))
    return mean, std


def mean_colors(pixels: Tensor, patch_size: int) -> Tensor:
    """The class of each patch's mean color, out of 8 ** C (Dosovitskiy 2020, 4.6 and B.1.2).

    Args:
        pixels: (B, C, height, width), from 0 to 1: not normalised.

    Returns:
        (B, P), the first channel's three bits the highest.
    """
    mean = nn.functional.avg_pool2d(pixels, patch_size).flatten(2)  # (B, C, P)
    levels = (mean * COLOR_LEVELS).long().clamp(0, COLOR_LEVELS - 1)
    place = COLOR_LEVELS ** torch.arange(pixels.shape[1] - 1, -1, -1, device=pixels.device)
    return (levels * place[:, None]).sum(1)


class KeelViTDecoder(KeelViTPreTrainedModel):
    """The light decoder of masked images (MAE: He 2021, 3): what the encoder saw, and mask tokens for the rest."""

    def __init__(self, config: KeelViTConfig):
        # Of a model of its own, so that `set_attn_implementation` reaches this configuration too.
        own: Any = copy(config)
        own.hidden_size = config.decoder_hidden_size
        own.num_attention_heads = config.decoder_num_attention_heads
        own.intermediate_size = config.decoder_intermediate_size
        super().__init__(own)
        self.embeddings = DecoderPatchEmbeddings(config)
        self.stack = Stack(own, EncoderBlock, config.decoder_num_hidden_layers)
        self.post_init()

    def forward(self, x: Tensor, ids_keep: Tensor | None, height: int, width: int) -> Tensor:
        """The encoder's states (B, V + 1, D) to those of H x W patches, (B, P, decoder_hidden_size)."""
        return self.stack(self.embeddings(x, ids_keep, height, width))[:, -height * width :]


class KeelViTForMaskedImageModeling(KeelViTPreTrainedModel):
    """Hidden patches, predicted by one linear layer; of four kinds or more.

    With no decoder mask tokens stand for them in the encoder (SimMIM: Xie 2021). With one the encoder sees the others
    alone, and the decoder adds the mask tokens (MAE: He 2021). `reconstruction_target` says what is predicted, and
    thereby the loss: L1 over pixels (Xie 2021, 3.4), squares over normalised pixels (He 2021, 3), cross-entropy over
    mean colors (Dosovitskiy 2020, B.1.2).
    """

    def __init__(self, config: KeelViTConfig):
        super().__init__(config)
        decodes = config.decoder_num_hidden_layers > 0
        width = config.decoder_hidden_size if decodes else config.hidden_size
        self.vit = KeelViTModel(config, use_mask_token=not decodes)
        self.decoder = KeelViTDecoder(config) if decodes else None
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
        """`reconstruction` is (B, C, height, width): pixels, normalised ones where they are the target (and
        `patch_statistics` brings them back); of mean colors it is their logits (B, P, 8 ** C).

        Args:
            bool_masked_pos: (B, P), True where a patch is hidden: with a decoder, equally many of each image.
            labels: (B, P), the `mean_colors` of hidden patches, -100 elsewhere; where they are the target.
            ids_keep: (B, V), the patches that are not hidden, for a decoder; without, read off `bool_masked_pos`.

        Raises:
            ValueError: images of which unequal numbers of patches are hidden, with a decoder and without `ids_keep`.
        """
        height, width = (side // self.config.patch_size for side in pixel_values.shape[2:])
        if self.decoder is None:
            outputs = self.vit(pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs)
            x = outputs.last_hidden_state[:, -height * width :]
        else:
            if ids_keep is None and bool_masked_pos is not None:
                ids_keep = visible_patches(bool_masked_pos)
            outputs = self.vit(pixel_values, None, interpolate_pos_encoding, ids_keep, **kwargs)
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
                loss = self.pixels_loss(reconstruction, pixel_values, bool_masked_pos, num_items_in_batch)
        return MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def pixels_loss(
        self, reconstruction: Tensor, pixels: Tensor, bool_masked_pos: Tensor, num_items_in_batch: Counts
    ) -> Tensor:
        """The mean over a hidden patch's values, (B, C, height, width), and over the hidden patches (B, P)."""
        size = self.config.patch_size
        if self.config.reconstruction_target == "pixels":
            error = l1_loss(reconstruction, pixels, reduction="none")
        else:
            mean, std = patch_statistics(pixels, size)
            error = mse_loss(reconstruction, (pixels - mean) / std, reduction="none")
        error = error.mean(1).unflatten(2, (-1, size)).unflatten(1, (-1, size)).mean((2, 4)).flatten(1)  # (B, P)
        hidden = bool_masked_pos.bool()
        targets = hidden.long().where(hidden, -100)
        return divided((error * hidden).sum(), targets, "bool_masked_pos", num_items_in_batch)
