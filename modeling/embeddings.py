"""From ids or pixels to the residual stream.

B batch, T tokens, D hidden size, P patches, V of them visible, C channels, H and W height and width in patches.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .attention import packed_positions
from .dropout import Dropout


class SinusoidalPositions(nn.Module):
    """Fixed positions: even columns sine, odd columns cosine (Vaswani 2017, 3.5)."""

    weight: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        # Not saved, so loading leaves it unset: KeelPreTrainedModel._init_weights fills it in again.
        self.register_buffer("weight", self.table(), persistent=False)

    def table(self) -> Tensor:
        """(positions, D), worked out in float64."""
        position = torch.arange(self.num_embeddings, dtype=torch.float64)[:, None]
        column = torch.arange(self.embedding_dim)
        angle = position / 10000 ** ((column - column % 2).double() / self.embedding_dim)
        return torch.where(column % 2 == 0, angle.sin(), angle.cos()).to(torch.get_default_dtype())

    def forward(self, position_ids: Tensor) -> Tensor:
        return self.weight[position_ids]


class TokenEmbeddings(nn.Module):
    """Tokens + positions (+ segments) (-> norm) -> dropout."""

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
    ) -> Tensor:
        """Ids (B, T), or `inputs_embeds` (B, T, D), to (B, T, D).

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
            if isinstance(past_length, int):  # a static cache counts on the device, where nothing may branch on it
                self.check_length(past_length + length)
            position_ids = past_length + torch.arange(length, device=x.device)[None]
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
    """Fixed positions of a grid of patches: the sines and the cosines of x, then of y; zero for a class token.

    MoCo v3 (Chen 2021, 4.1), in the order of MAE's released weights (He 2021). A grid of another size spans the same
    square, its patches in between: what interpolation of the table comes near to, exactly.
    """

    weight: Tensor

    def __init__(self, config: PreTrainedConfig, embedding_dim: int):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.side = config.image_size // config.patch_size
        self.span = self.side if config.position_grid_size is None else config.position_grid_size
        self.prefix = int(config.pooling == "cls")
        # Not saved, so loading leaves it unset: KeelPreTrainedModel._init_weights fills it in again.
        self.register_buffer("weight", self.table(), persistent=False)

    def table(self, height: int | None = None, width: int | None = None) -> Tensor:
        """(1, P + 1, D), or (1, P, D) with no class token, of a grid height x width, worked out in float64."""
        height, width = height or self.side, width or self.side
        frequency = 10000 ** -(torch.arange(self.embedding_dim // 4, dtype=torch.float64) / (self.embedding_dim // 4))
        y, x = (((torch.arange(n).double() + 0.5) * self.span / n - 0.5)[:, None] * frequency for n in (height, width))
        x, y = x.expand(height, -1, -1), y[:, None].expand(-1, width, -1)  # (H, W, D/4)
        patches = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], -1).flatten(0, 1)
        return nn.functional.pad(patches, (0, 0, self.prefix, 0))[None].to(torch.get_default_dtype())

    def forward(self, height: int, width: int) -> Tensor:
        if (height, width) == (self.side, self.side):
            return self.weight
        return self.table(height, width).to(self.weight)

    def resized(self, config: PreTrainedConfig) -> "SincosPositions":
        """Those of another `config.image_size`, where and as wide as these are."""
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
            bool_masked_pos: (B, P), True where the mask token stands for the patch.
            interpolate_pos_encoding: take images of another size, with positions interpolated to it.
            ids_keep: (B, V), the patches that are seen (He 2021, 3): (B, V + 1, D), these alone.

        Raises:
            ValueError: pixels of another number of channels or of another size; masks for a model without mask token.
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
        of_cls, of_patches = self.interpolated(*x.shape[2:]).tensor_split([int(self.cls_token is not None)], dim=1)
        x = x.flatten(2).transpose(1, 2).contiguous()  # (B, P, D); else every sum keeps the odd layout
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos needs a mask token: use KeelViTForMaskedImageModeling.")
            x = torch.where(bool_masked_pos[..., None].bool(), self.mask_token.to(x.dtype), x)
        x = x + of_patches
        if ids_keep is not None:
            x = x.gather(1, ids_keep[..., None].expand(-1, -1, x.shape[2]))  # (B, V, D)
        if self.cls_token is not None:
            x = torch.cat([(self.cls_token + of_cls).expand(len(x), -1, -1), x], 1)
        return self.dropout(x)

    def interpolated(self, height: int, width: int) -> Tensor:
        """The positions, the learned ones bicubic, for a grid of height x width patches (Dosovitskiy 2020, 3.2)."""
        if isinstance(self.positions, SincosPositions):
            return self.positions(height, width)
        cls, patches = self.positions.tensor_split([int(self.cls_token is not None)], dim=1)
        side = self.image_size // self.patch_size
        if (height, width) == (side, side):
            return self.positions
        square = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, P, D) -> (1, D, side, side)
        square = nn.functional.interpolate(square, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([cls, square.flatten(2).transpose(1, 2)], 1)

    @torch.no_grad()
    def resize(self, config: PreTrainedConfig) -> None:
        """Another `config.image_size`, the positions interpolated to it for good."""
        side = config.image_size // config.patch_size
        if isinstance(self.positions, SincosPositions):
            self.positions = self.positions.resized(config)
        else:
            self.positions = nn.Parameter(self.interpolated(side, side), self.positions.requires_grad)
        self.image_size = config.image_size


class DecoderPatchEmbeddings(nn.Module):
    """The encoder's states of the patches it saw, a mask token for each other, + positions (MAE: He 2021, 3)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.projection = nn.Linear(config.hidden_size, config.decoder_hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_hidden_size))
        self.positions = SincosPositions(config, config.decoder_hidden_size)

    def forward(self, x: Tensor, ids_keep: Tensor | None, height: int, width: int) -> Tensor:
        """(B, V + 1, D) to (B, P + 1, D) for H x W patches; or both with no class token."""
        x = self.projection(x)
        cls, patches = x.tensor_split([self.positions.prefix], dim=1)
        if ids_keep is not None:
            hidden = self.mask_token.to(x.dtype).expand(len(x), height * width, -1)
            patches = hidden.scatter(1, ids_keep[..., None].expand_as(patches), patches)
        return torch.cat([cls, patches], 1) + self.positions(height, width)

    def resize(self, config: PreTrainedConfig) -> None:
        self.positions = self.positions.resized(config)
