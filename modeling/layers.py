"""The blocks that all three families are made of.

B batch, T tokens, D hidden size, M states that are read.
"""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import EncoderDecoderCache, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Mask, MultiHeadAttention
from .dropout import Dropout, drop_path
from .packing import self_attention_kwargs, states_at


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
    """norm(x + dropout(f(x))) with post-norm (Vaswani 2017, 3.1), x + dropout(f(norm(x))) with pre-norm.

    Pre-norm (Xiong 2020, 3) leaves a path from the embeddings to the loss on which no norm stands but the last. While
    training, a share `drop_path_rate` of the rows skips f. A row is whatever x's first dimension counts.
    """

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.pre = config.norm_position == "pre"
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def pre_norm(self, x: Tensor) -> Tensor:
        """The input of f."""
        return self.norm(x) if self.pre else x

    def forward(self, x: Tensor, f: Callable[[Tensor], Tensor], rowwise: bool = False) -> Tensor:
        """`rowwise`: f computes each row from that row alone, so rows that skip f need not be computed."""

        def branch(x: Tensor) -> Tensor:
            return self.dropout(f(self.pre_norm(x)))

        if self.training and self.drop_path_rate:
            x = drop_path(x, branch, self.drop_path_rate, rowwise)
        else:
            x = x + branch(x)
        return x if self.pre else self.norm(x)


class EncoderBlock(GradientCheckpointingLayer):
    """Self-attention, then feed-forward (Vaswani 2017, 3.1)."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int = 0, drop_path_rate: float = 0.0):
        super().__init__()
        self.attention = MultiHeadAttention(config, layer_idx=layer_idx)
        self.attention_residual = Residual(config, drop_path_rate)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config, drop_path_rate)

    def forward(
        self,
        x: Tensor,
        mask: Mask = None,
        logits_to_keep: Tensor | None = None,
        queries: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """(B, T, D) to (B, T, D); with `logits_to_keep` or `queries` as `Stack.forward` says."""
        memory = None
        if queries is not None:  # keys and values of every token, but few queries: x becomes (B, E, D)
            memory = self.attention_residual.pre_norm(x)
            x = states_at(x, queries)
            if mask is not None:
                assert isinstance(mask, Tensor)
                rows = queries[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
                mask = mask.gather(2, rows)  # (B, H, T, T) -> (B, H, E, T)
        # Masks, memories and packed bounds have an entry for every row, so no row may be left out.
        rowwise = mask is None and memory is None and not kwargs
        x = self.attention_residual(x, lambda y: self.attention(y, mask, memory, **kwargs)[0], rowwise)
        if logits_to_keep is not None:
            x = x.flatten(0, 1)[logits_to_keep]  # (B, T, D) -> (M, D)
        return self.feed_forward_residual(x, self.feed_forward, rowwise=True)


class DecoderBlock(GradientCheckpointingLayer):
    """Causal self-attention, cross-attention over the encoder's output, then feed-forward (Vaswani 2017, 3.1)."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int = 0, drop_path_rate: float = 0.0):
        super().__init__()
        self.attention = MultiHeadAttention(config, causal=True, layer_idx=layer_idx)
        self.attention_residual = Residual(config, drop_path_rate)
        self.cross_attention = MultiHeadAttention(config, layer_idx=layer_idx)
        self.cross_attention_residual = Residual(config, drop_path_rate)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config, drop_path_rate)

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        memory: Tensor,
        memory_mask: Mask = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> Tensor:
        """Target states x (B, T, D) and the encoder's output `memory` (B, S, D) to (B, T, D)."""
        kwargs["cache"] = cache
        x = self.attention_residual(x, lambda y: self.attention(y, mask, **self_attention_kwargs(kwargs, "q"))[0])
        x = self.cross_attention_residual(x, lambda y: self.cross_attention(y, memory_mask, memory, **kwargs)[0])
        return self.feed_forward_residual(x, self.feed_forward, rowwise=True)


class Stack(nn.Module):
    """Blocks one after another; with pre-norm a last norm, since no block normalises its own output.

    The rate of stochastic depth grows linearly from 0 to `drop_path_rate` (Huang 2016, 3; DeiT: Touvron 2020).
    """

    def __init__(self, config: PreTrainedConfig, block: type[nn.Module], depth: int):
        super().__init__()
        rates = [config.drop_path_rate * layer_idx / max(depth - 1, 1) for layer_idx in range(depth)]
        self.blocks = nn.ModuleList(block(config, layer_idx, rate) for layer_idx, rate in enumerate(rates))
        pre = config.norm_position == "pre"
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if pre else nn.Identity()

    def forward(
        self, x: Tensor, *args, logits_to_keep: Tensor | None = None, queries: Tensor | None = None, **kwargs
    ) -> Tensor:
        """(B, T, D) to (B, T, D), or to those states that a head reads.

        Args:
            logits_to_keep: (M,), indices into the flattened batch: return the states there, (M, D). The last block's
                feed-forward runs on these alone.
            queries: (B, E), places in each row: return the states there, (B, E, D). The last block's queries and
                feed-forward are computed for these alone; the kernel must take them (`packing.takes_queries`).
        """
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, *args, **kwargs)
        if logits_to_keep is not None:  # passed only where it is set: DecoderBlock has neither
            kwargs["logits_to_keep"] = logits_to_keep
        if queries is not None:
            kwargs["queries"] = queries
        return self.norm(last(x, *args, **kwargs))
