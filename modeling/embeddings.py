"""From token ids or pixels to the residual stream.

B batch, T tokens, D hidden size, P patches, V visible patches, C channels, H and W height and width in patches.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .attention import Mask
from .dropout import Dropout
from .packing import packed_positions


class SinusoidalPositions(nn.Module):
    """Fixed positions: even columns sine, odd columns cosine (Vaswani 2017, 3.5)."""

    weight: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        # Not saved, so loading leaves it unset: KeelPreTrainedModel._init_weights fills it in again.
        self.register_buffer("weight", self.table(), persistent=False)

    def table(self) -> Tensor:
        """(positions, D), computed in float64."""
        position = torch.arange(self.num_embeddings, dtype=torch.float64)[:, None]
        column = torch.arange(self.embedding_dim)
        angle = position / 10000 ** ((column - column % 2).double() / self.embedding_dim)  # (positions, D)
        return torch.where(column % 2 == 0, angle.sin(), angle.cos()).to(torch.get_default_dtype())

    def forward(self, position_ids: Tensor) -> Tensor:
        return self.weight[position_ids]


def leading_padding(attention_mask: Mask) -> Tensor | int:
    """How much padding stands before each row's first token, (B, 1): of a mask (B, S), or (B, 1, T, S) for a kernel."""
    if not isinstance(attention_mask, Tensor):
        return 0
    seen = attention_mask != 0
    if attention_mask.ndim == 4:  # `generate` makes it for static caches; floats are added to the scores
        seen = (attention_mask == 0 if attention_mask.is_floating_point() else seen).any(2).any(1)
    return seen.int().argmax(1, keepdim=True)


class TokenEmbeddings(nn.Module):
    """Tokens + positions (+ segments: Devlin 2018, 3) (-> norm) -> dropout.

    Tokens may be scaled by sqrt(D) (Vaswani 2017, 3.4).
    """

    positions: nn.Embedding | SinusoidalPositions

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        width = config.hidden_size
        learned = config.position_embedding_type == "learned"
        self.max_position_embeddings = config.max_position_embeddings
        self.scale = width**0.5 if config.scale_embedding else 1.0
        self.tokens = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.positions = (nn.Embedding if learned else SinusoidalPositions)(config.max_position_embeddings, width)
        self.segments = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        past_length: int | Tensor = 0,
        attention_mask: Mask = None,
    ) -> Tensor:
        """Ids (B, T), or `inputs_embeds` (B, T, D), to (B, T, D).

        Args:
            sequence_ids: (B, past + T), the examples of packed rows.
            past_length: how many tokens a cache holds.
            attention_mask: where positions count from each row's first token: padding may stand on either side.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, or more tokens than positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        x = self.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length = x.shape[1]
        if position_ids is None and sequence_ids is not None:
            position_ids = packed_positions(sequence_ids)[:, -length:]
        elif position_ids is None:
            if isinstance(past_length, int):  # a static cache counts in a tensor, on which nothing may branch
                self.check_length(past_length + length)
            position_ids = past_length + torch.arange(length, device=x.device)[None]
            position_ids = (position_ids - leading_padding(attention_mask)).clamp(min=0)  # (1, T) or (B, T)
        x = x * self.scale + self.positions(position_ids)
        if self.segments is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(position_ids)
            x = x + self.segments(token_type_ids)
        return self.dropout(self.norm(x))

    def check_length(self, length: int) -> None:
        """Refuses more tokens than the table has positions."""
        if length > self.max_position_embeddings:
            raise ValueError(
                f"{length} tokens, but the model knows max_position_embeddings={self.max_position_embeddings} "
                "positions: shorten the input or enlarge the table."
            )


class SincosPositions(nn.Module):
    """Fixed positions of a grid of patches: sines and cosines of x, then of y; zero for a class token.

    MoCo v3 (Chen 2021, 4.1), in the order of MAE's released weights (He 2021). A grid of another size spans the same
    square more finely or more coarsely, so its positions are exact where an interpolated table's are approximate.
    """

    weight: Tensor

    def __init__(self, config: PreTrainedConfig, embedding_dim: int):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.side = config.image_size // config.patch_size
        self.span = self.side if config.position_grid_size is None else config.position_grid_size
        self.num_cls = int(config.pooling == "cls")
        # Not saved, so loading leaves it unset: KeelPreTrainedModel._init_weights fills it in again.
        self.register_buffer("weight", self.table(), persistent=False)

    def table(self, height: int | None = None, width: int | None = None) -> Tensor:
        """(1, P + 1, D), or (1, P, D) with no class token, for a grid of height x width; computed in float64."""
        height, width = height or self.side, width or self.side
        frequency = 10000 ** -(torch.arange(self.embedding_dim // 4, dtype=torch.float64) / (self.embedding_dim // 4))
        # The middle of each patch, in units of the patches of a grid of `span`.
        y, x = (((torch.arange(n).double() + 0.5) * self.span / n - 0.5)[:, None] * frequency for n in (height, width))
        x, y = x.expand(height, -1, -1), y[:, None].expand(-1, width, -1)  # (W, D/4), (H, D/4) -> (H, W, D/4)
        patches = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], -1).flatten(0, 1)  # (P, D)
        return nn.functional.pad(patches, (0, 0, self.num_cls, 0))[None].to(torch.get_default_dtype())

    def forward(self, height: int, width: int) -> Tensor:
        if (height, width) == (self.side, self.side):
            return self.weight
        return self.table(height, width).to(self.weight)

    def resized(self, config: PreTrainedConfig) -> "SincosPositions":
        """The positions for another `config.image_size`, on the same device and in the same dtype."""
        return SincosPositions(config, self.embedding_dim).to(self.weight)


class PatchEmbeddings(nn.Module):
    """Patches (+ class token) + positions -> dropout (Dosovitskiy 2020, 3.1)."""

    positions: nn.Parameter | SincosPositions

    def __init__(self, config: PreTrainedConfig, use_mask_token: bool = False):
        super().__init__()
        width = config.hidden_size
        self.image_size, self.patch_size = config.image_size, config.patch_size
        patches = (config.image_size // config.patch_size) ** 2
        self.projection = nn.Conv2d(config.num_channels, width, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.pooling == "cls" else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if use_mask_token else None
        if config.position_embedding_type == "sincos2d":
            self.positions = SincosPositions(config, width)
        else:
            self.positions = nn.Parameter(torch.zeros(1, patches + (self.cls_token is not None), width))
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        ids_keep: Tensor | None = None,
    ) -> Tensor:
        """Pixels (B, C, height, width) to (B, P + 1, D), or (B, P, D) with no class token.

        Args:
            bool_masked_pos: (B, P), True where the mask token replaces the patch.
            interpolate_pos_encoding: take images of another size, with positions interpolated to it.
            ids_keep: (B, V), the visible patches; the others are left out, (B, V + 1, D) (MAE: He 2021, 3).

        Raises:
            ValueError: pixels of another number of channels or of another size; a mask, but no mask token.
        """
        channels, height, width = pixel_values.shape[1:]
        if channels != self.projection.in_channels:
            raise ValueError(
                f"pixel_values have {channels} channels, the model num_channels={self.projection.in_channels}."
            )
        if not interpolate_pos_encoding and (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values are {height} x {width}, the model's image_size is {self.image_size}: resize them, "
                "or pass interpolate_pos_encoding=True."
            )
        x = self.projection(pixel_values.to(self.projection.weight.dtype))  # (B, C, height, width) -> (B, D, H, W)
        cls_position, positions = self.split_cls(self.interpolated(*x.shape[2:]))
        x = x.flatten(2).transpose(1, 2).contiguous()  # (B, P, D); or every later sum has the transposed layout
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos needs a mask token: use KeelViTForMaskedImageModeling.")
            x = torch.where(bool_masked_pos[..., None].bool(), self.mask_token.to(x.dtype), x)
        x = x + positions
        if ids_keep is not None:
            x = x.gather(1, ids_keep[..., None].expand(-1, -1, x.shape[2]))  # (B, V, D)
        if self.cls_token is not None:
            x = torch.cat([(self.cls_token + cls_position).expand(x.shape[0], -1, -1), x], 1)
        return self.dropout(x)

    def split_cls(self, positions: Tensor) -> tuple[Tensor, ...]:
        """(1, P + 1, D) to the class token's position (1, 1, D), or none (1, 0, D), and the patches' (1, P, D)."""
        return positions.tensor_split([int(self.cls_token is not None)], dim=1)

    def interpolated(self, height: int, width: int) -> Tensor:
        """The positions for a grid of height x width patches, learned ones bicubic (Dosovitskiy 2020, 3.2)."""
        if isinstance(self.positions, SincosPositions):
            return self.positions(height, width)
        side = self.image_size // self.patch_size
        if (height, width) == (side, side):
            return self.positions
        cls, patches = self.split_cls(self.positions)
        square = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, P, D) -> (1, D, side, side)
        square = nn.functional.interpolate(square, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([cls, square.flatten(2).transpose(1, 2)], 1)

    @torch.no_grad()
    def resize(self, config: PreTrainedConfig) -> None:
        """Take images of `config.image_size` from now on, the positions interpolated to it."""
        side = config.image_size // config.patch_size
        if isinstance(self.positions, SincosPositions):
            self.positions = self.positions.resized(config)
        else:
            self.positions = nn.Parameter(self.interpolated(side, side), self.positions.requires_grad)
        self.image_size = config.image_size


class DecoderPatchEmbeddings(nn.Module):
    """The encoder's states of visible patches, mask tokens for the others, + positions (MAE: He 2021, 3)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.projection = nn.Linear(config.hidden_size, config.decoder_hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_hidden_size))
        self.positions = SincosPositions(config, config.decoder_hidden_size)

    def forward(self, x: Tensor, ids_keep: Tensor | None, height: int, width: int) -> Tensor:
        """(B, V + 1, D) to (B, P + 1, decoder_hidden_size) for H x W patches; or both without the class token."""
        x = self.projection(x)
        cls, patches = x.tensor_split([self.positions.num_cls], dim=1)
        if ids_keep is not None:
            masked = self.mask_token.to(x.dtype).expand(x.shape[0], height * width, -1)
            patches = masked.scatter(1, ids_keep[..., None].expand_as(patches), patches)  # (B, V, D) -> (B, P, D)
        return torch.cat([cls, patches], 1) + self.positions(height, width)

    def resize(self, config: PreTrainedConfig) -> None:
        self.positions = self.positions.resized(config)
