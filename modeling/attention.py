"""Multi-head attention (self, causal, cross) and the masks that decide who sees whom.

B batch, T query tokens, S key tokens, H heads, D hidden size.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, EncoderDecoderCache, PreTrainedConfig
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    create_bidirectional_mask,
    create_causal_mask,
    flash_attention_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .dropout import dropout as attention_dropout

Mask = Tensor | BlockMask | None  # as the kernel wants it: added to the scores, True where seen, blocks, or none


def scaled_dot_product_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(d)) V (Vaswani 2017, 3.2.1), written out: the `eager` kernel.

    Args:
        query, key, value: (B, H, T, D/H), (B, H, S, D/H), (B, H, S, D/H).
        attention_mask: added to the scores, broadcast to (B, H, T, S).

    Returns:
        The mixed values (B, T, H, D/H) and the attention weights (B, H, T, S).
    """
    scores = query @ key.transpose(-1, -2) * scaling  # (B, H, T, S)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    weights = attention_dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


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
    """The same over packed rows by torch's variable-length kernel, which computes no score across examples: `varlen`.

    Args:
        query, key, value: (B, H, T, D/H), (B, H, S, D/H), (B, H, S, D/H), on CUDA, in half precision.
        cu_seq_lens_q, cu_seq_lens_k: where segments begin in the flattened batch, and its end, int32; the first token
            of every row begins one. Without them every row is one segment.

    Raises:
        ValueError: a mask, or attention dropout, which the kernel has not.
    """
    if attention_mask is not None:
        raise ValueError("attn_implementation varlen takes no mask: pass packed rows, or choose sdpa for padded ones.")
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        cu_seq_lens_q, cu_seq_lens_k = (
            torch.arange(0, x.shape[0] * x.shape[2] + 1, x.shape[2], dtype=torch.int32, device=x.device)
            for x in (query, key)
        )
    if dropout:
        raise ValueError("attn_implementation varlen has no dropout: set attention_probs_dropout_prob to 0.")
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # (B, H, T, D/H) -> (B*T, H, D/H)
    lengths = query.shape[2], key.shape[2]
    window = (-1, 0) if module.is_causal else (-1, -1)
    mixed = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_k, *lengths, scale=scaling, window_size=window)
    assert isinstance(mixed, Tensor)  # a pair only where return_aux asks for it
    return mixed.unflatten(0, (len(query), -1)), None  # (B*T, H, D/H) -> (B, T, H, D/H)


AttentionInterface.register("varlen", varlen_attention)
AttentionMaskInterface.register("varlen", flash_attention_mask)  # none where the rows are packed


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani 2017, 3.2.2): over the input itself, or over a `memory`."""

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

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)  # (B, T, D) -> (B, H, T, D/H)

    def forward(
        self,
        x: Tensor,
        mask: Mask = None,
        memory: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        k, v = self.keys_and_values(x, memory, cache)
        kernel: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, scaled_dot_product_attention
        )
        mixed, weights = kernel(
            self,
            self.split(self.query(x)),
            k,
            v,
            mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.output(mixed.flatten(2)), weights  # (B, T, H, D/H) -> (B, T, D)

    def keys_and_values(
        self, x: Tensor, memory: Tensor | None, cache: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D/H), those that the cache holds not computed again."""
        if cache is None:
            source = x if memory is None else memory
            return self.split(self.key(source)), self.split(self.value(source))
        if memory is None:
            return cache.self_attention_cache.update(self.split(self.key(x)), self.split(self.value(x)), self.layer_idx)
        if cache.is_updated.get(self.layer_idx):
            layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        cache.is_updated[self.layer_idx] = True
        keys, values = self.split(self.key(memory)), self.split(self.value(memory))
        return cache.cross_attention_cache.update(keys, values, self.layer_idx)


# Masks. A packed batch says by `sequence_ids` (B, T) which example a token belongs to: 1, 2, 3 ... and 0 for
# padding. A query sees the keys of its own example; a padding query sees every key, so that no row is empty.


def same_sequence(queries: Tensor, keys: Tensor) -> Callable:
    """The packed rule as a mask function of transformers: ids of queries (B, T) and of keys (B, S)."""

    def mask(batch, head, q, k):
        own = queries[batch, q]
        return (own == keys[batch, k]) | (own == 0)

    return mask


def packed_mask(
    config: PreTrainedConfig,
    x: Tensor,
    attention_mask: Tensor | None,
    queries: Tensor | None,
    keys: Tensor | None,
    kwargs: Mapping,
    causal: bool = False,
) -> Mask:
    """The packed rule as the kernel's mask.

    Transformers' functions of the whole would take a rule of ours too, but work it out by vmap, many times slower.

    Args:
        x: the queries' states (B, T, D); their `queries` (B, T) or, with a cache, (B, past + T).
        attention_mask: (B, S), 0 for keys that nobody sees.

    Raises:
        ValueError: the kernel would not see the mask, or only one side is packed.
    """
    if queries is None or keys is None:
        raise ValueError(
            "sequence_ids and decoder_sequence_ids go together: a packed source needs a packed target, "
            "one pair bearing one id on both sides."
        )
    maskless = "flash" in config._attn_implementation or config._attn_implementation == "varlen"
    if maskless and "cu_seq_lens_q" not in kwargs:
        raise ValueError(
            f"{config._attn_implementation} takes no mask, so sequence_ids alone would let examples see one "
            "another: pass cu_seq_lens_q and cu_seq_lens_k too, or choose eager, sdpa or flex_attention."
        )
    rule = same_sequence(queries, keys)
    return ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation](
        batch_size=x.shape[0],
        q_length=x.shape[1],
        kv_length=keys.shape[1],
        q_offset=queries.shape[1] - x.shape[1],
        mask_function=and_masks(causal_mask_function, rule) if causal else rule,
        attention_mask=None if attention_mask is None else attention_mask.bool(),
        allow_is_causal_skip=False,
        dtype=x.dtype,
        config=config,
        device=x.device,
    )


def self_attention_mask(
    config: PreTrainedConfig, x: Tensor, attention_mask: Tensor | None, sequence_ids: Tensor | None, kwargs: Mapping
) -> Mask:
    """Every token sees every token that is no padding, of its own example: x (B, T, D)."""
    if sequence_ids is not None:
        return packed_mask(config, x, attention_mask, sequence_ids, sequence_ids, kwargs)
    return create_bidirectional_mask(config, x, attention_mask)


def causal_attention_mask(
    config: PreTrainedConfig,
    x: Tensor,
    attention_mask: Tensor | None,
    sequence_ids: Tensor | None,
    cache: EncoderDecoderCache | None,
    kwargs: Mapping,
) -> Mask:
    """A token sees itself and what is before it; `sequence_ids` (B, past + T) counts the cached tokens too."""
    if sequence_ids is not None:
        return packed_mask(config, x, attention_mask, sequence_ids, sequence_ids, kwargs, causal=True)
    # By position: transformers 5.24 renamed the argument.
    return create_causal_mask(config, x, attention_mask, None if cache is None else cache.self_attention_cache)


def cross_attention_mask(
    config: PreTrainedConfig,
    x: Tensor,
    memory: Tensor,
    attention_mask: Tensor | None,
    sequence_ids: Tensor | None,
    decoder_sequence_ids: Tensor | None,
    kwargs: Mapping,
) -> Mask:
    """A target token sees the source of its own pair: x (B, T, D), memory (B, S, D)."""
    if decoder_sequence_ids is not None or sequence_ids is not None:
        return packed_mask(config, x, attention_mask, decoder_sequence_ids, sequence_ids, kwargs)
    return create_bidirectional_mask(config, x, attention_mask, encoder_hidden_states=memory)


def bounds_of(side: str, kwargs: Mapping) -> dict[str, Any]:
    """The arguments of attention within one side of a packed batch, whose queries (`q`) and keys (`k`) are two.

    Kernels that take no mask are told where the segments of both lie; where a sequence looks at itself they are one's.
    """
    bounds = ("cu_seq_lens", "max_length")
    own = {f"{name}_{end}": kwargs[f"{name}_{side}"] for name in bounds for end in "qk" if f"{name}_{side}" in kwargs}
    return {**kwargs, **own}


def packed_positions(sequence_ids: Tensor) -> Tensor:
    """Position of each token in its own example, 0 for padding: (B, T) -> (B, T)."""
    index = torch.arange(sequence_ids.shape[1], device=sequence_ids.device).expand_as(sequence_ids)
    starts = torch.ones_like(sequence_ids, dtype=torch.bool)
    starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return (index - (index * starts).cummax(-1).values) * (sequence_ids != 0)


def packed_starts(sequence_ids: Tensor) -> Tensor:
    """Where example 1, 2, ... of each row starts: (B, T) -> (B, the most examples in a row); 0 where absent."""
    wanted = torch.arange(1, int(sequence_ids.max()) + 1, device=sequence_ids.device)
    return (sequence_ids[:, None] == wanted[None, :, None]).int().argmax(-1)
