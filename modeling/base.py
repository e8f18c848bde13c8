"""What every model of ours inherits: the features it supports and how its weights start."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .embeddings import PatchEmbeddings, SinusoidalPositions


class KeelPreTrainedModel(PreTrainedModel):
    """Flags of transformers, and initialisation as in the papers."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["EncoderBlock", "DecoderBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Only through `transformers.initialization`: models load on the meta device and are filled in here."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            if self.config.initializer == "xavier_uniform":
                init.xavier_uniform_(module.weight)
            else:
                init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            # A loaded weight carries a flag that its slices lose: without the check its row would be zeroed.
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SinusoidalPositions):
            init.copy_(module.weight, module.table())
        elif isinstance(module, PatchEmbeddings):
            fan_in = module.projection.weight[0].numel()
            init.trunc_normal_(module.projection.weight, std=fan_in**-0.5)
            init.zeros_(module.projection.bias)
            init.trunc_normal_(module.positions, std=std)
            for token in (module.cls_token, module.mask_token):
                if token is not None:
                    init.zeros_(token)
