"""The blocks that all three families are made of.  B batch, T tokens, D hidden size."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Mask, MultiHeadAttention, bounds_of
from .dropout import Dropout


class FeedForward(nn.Module):
    """act(x W1 + b1) W2 + b2 (Vaswani 2017, 3.3)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Residual(nn.Module):
    """norm(x + dropout(f(x))) where the norm is post (Vaswani 2017, 3.1), x + dropout(f(norm(x))) where it is pre."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.pre = config.norm_position == "pre"
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class EncoderBlock(GradientCheckpointingLayer):
    """Self-attention, then feed-forward."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int = 0):
        super().__init__()
        self.attention = MultiHeadAttention(config, layer_idx=layer_idx)
        self.attention_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(self, x: Tensor, mask: Mask = None, read_at: Tensor | None = None, **kwargs) -> Tensor:
        x = self.attention_residual(x, lambda y: self.attention(y, mask, **kwargs)[0])
        if read_at is not None:
            x = x.flatten(0, 1)[read_at]  # (B, T, D) -> (N, D)
        return self.feed_forward_residual(x, self.feed_forward)


class DecoderBlock(GradientCheckpointingLayer):
    """Causal self-attention, attention over the encoder's output, then feed-forward."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int = 0):
        super().__init__()
        self.attention = MultiHeadAttention(config, causal=True, layer_idx=layer_idx)
        self.attention_residual = Residual(config)
        self.cross_attention = MultiHeadAttention(config, layer_idx=layer_idx)
        self.cross_attention_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        memory: Tensor,
        memory_mask: Mask = None,
        past_key_values=None,
        **kwargs,
    ) -> Tensor:
        kwargs["past_key_values"] = past_key_values
        x = self.attention_residual(x, lambda y: self.attention(y, mask, **bounds_of("q", kwargs))[0])
        x = self.cross_attention_residual(x, lambda y: self.cross_attention(y, memory_mask, memory, **kwargs)[0])
        return self.feed_forward_residual(x, self.feed_forward)


class Stack(nn.Module):
    """Blocks one after another; with pre-norm a last norm, since no block normalises its own output."""

    def __init__(self, config: PreTrainedConfig, block: type[nn.Module], depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(block(config, layer_idx) for layer_idx in range(depth))
        pre = config.norm_position == "pre"
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if pre else nn.Identity()

    def forward(self, x: Tensor, *args, read_at: Tensor | None = None, **kwargs) -> Tensor:
        """(B, T, D) to (B, T, D); or to (N, D), the states `read_at` (N,), counted through the flattened batch.

        What nobody reads is not computed: the last block's feed-forward then runs on these states alone.
        """
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, *args, **kwargs)
        if read_at is not None:
            kwargs["read_at"] = read_at
        return self.norm(last(x, *args, **kwargs))
