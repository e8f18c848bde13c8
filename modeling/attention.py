"""Multi-head attention: over the input itself (self), over what came before (causal), or over a memory (cross).

B batch, T query tokens, S key tokens, H heads, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, EncoderDecoderCache, PreTrainedConfig
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .dropout import dropout as attention_dropout

# In the form that the kernel takes: eager adds a tensor to the scores, sdpa shows the keys where a tensor is True,
# flex_attention takes blocks. None: every query sees every key, or the kernel needs no mask (see packing.py).
Mask = Tensor | BlockMask | None


def scaled_dot_product_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, dropout: float, **kwargs
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(d)) V (Vaswani 2017, 3.2.1), written out: the `eager` kernel.

    Queries (B, H, T, D/H), keys and values (B, H, S, D/H), and a mask to be added to the scores (B, H, T, S), to
    (B, T, H, D/H) and the attention weights (B, H, T, S).
    """
    scores = q @ k.transpose(-1, -2) * scaling  # (B, H, T, D/H) @ (B, H, D/H, S) -> (B, H, T, S)
    if mask is not None:
        scores = scores + mask  # the lowest number of the dtype where a query must not see a key
    weights = scores.softmax(-1)
    weights = attention_dropout(weights, dropout, module.training)
    return (weights @ v).transpose(1, 2), weights  # (B, H, T, D/H) -> (B, T, H, D/H)


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The same by torch's variable-length kernel, which computes no score across packed examples: `varlen`.

    Args:
        query, key, value: (B, H, T, D/H), (B, H, S, D/H), (B, H, S, D/H), on CUDA, in half precision.
        cu_seq_lens_q, cu_seq_lens_k: the bounds of the segments in the flattened batch, int32: where each begins, and
            the end of the last. A query sees its own segment; every row begins one. None: every row is one segment.

    Raises:
        ValueError: a mask or attention dropout, which the kernel does not support.
    """
    if attention_mask is not None:
        raise ValueError("attn_implementation varlen takes no mask: pass packed rows, or choose sdpa for padded ones.")
    if cu_seq_lens_q is None or cu_seq_lens_k is None:  # 0, T, 2 T ... B T
        cu_seq_lens_q, cu_seq_lens_k = (
            torch.arange(0, x.shape[0] * x.shape[2] + 1, x.shape[2], dtype=torch.int32, device=x.device)
            for x in (query, key)
        )
    if dropout:
        raise ValueError("attn_implementation varlen has no dropout: set attention_probs_dropout_prob to 0.")
    # Imported where it is used: torch's compiler comes with it, which takes longer than all the rest of a start.
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # (B, H, T, D/H) -> (B*T, H, D/H)
    lengths = query.shape[2], key.shape[2]
    window = (-1, 0) if module.is_causal else (-1, -1)  # keys before and after the query; -1: all of the segment
    x = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_k, *lengths, scale=scaling, window_size=window)
    assert isinstance(x, Tensor)  # a pair only where return_aux asks for it
    return x.unflatten(0, (len(query), -1)), None  # (B*T, H, D/H) -> (B, T, H, D/H)


AttentionInterface.register("varlen", varlen_attention)
AttentionMaskInterface.register("varlen", flash_attention_mask)  # None unless rows are padded


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani 2017, 3.2.2)."""

    def __init__(self, config: PreTrainedConfig, causal: bool = False, layer_idx: int = 0):
        super().__init__()
        width = config.hidden_size
        self.config = config  # read at call time: the attention implementation may be switched
        self.is_causal = causal  # transformers' kernels read this where they are given no mask
        self.layer_idx = layer_idx
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(width, width, bias=config.qkv_bias)
        self.key = nn.Linear(width, width, bias=config.qkv_bias)
        self.value = nn.Linear(width, width, bias=config.qkv_bias)
        self.output = nn.Linear(width, width)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)  # (B, T, D) -> (B, H, T, D/H)

    def forward(
        self,
        x: Tensor,
        mask: Mask = None,
        memory: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Queries of x (B, T, D), keys and values of x or of a memory (B, S, D), to (B, T, D).

        The attention weights (B, H, T, S) are None unless the kernel is `eager`.
        """
        k, v = self.keys_and_values(x, memory, cache)
        q = self.split_heads(self.query(x))
        implementation = self.config._attn_implementation  # `eager`: our own function, any other: transformers' table
        kernel: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, scaled_dot_product_attention)
        rate = self.dropout if self.training else 0.0
        x, weights = kernel(self, q, k, v, mask, dropout=rate, scaling=self.scaling, **kwargs)
        return self.output(x.flatten(2)), weights  # (B, T, H, D/H) -> (B, T, D)

    def keys_and_values(
        self, x: Tensor, memory: Tensor | None, cache: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D/H) of every token: those of earlier steps are in the cache."""
        if cache is not None and memory is not None and cache.is_updated.get(self.layer_idx):
            layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values  # a memory never changes, so they are computed once
        source = x if memory is None else memory
        k, v = self.split_heads(self.key(source)), self.split_heads(self.value(source))
        if cache is None:
            return k, v
        if memory is None:
            return cache.self_attention_cache.update(k, v, self.layer_idx)  # (B, H, T, D/H) -> (B, H, past + T, D/H)
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(k, v, self.layer_idx)
