"""Packed rows, in which several examples share a row of tokens, and the masks of attention, packed or not.

`sequence_ids` (B, T) says which example of its row a token belongs to: 1, 2, 3 ..., and 0 for padding.

    sequence_ids      1 1 1 2 2 0 0
    packed_positions  0 1 2 0 1 0 0
    packed_starts     0 3

A query sees the keys of its own example; a query of padding sees every key, since a softmax over no key is nan.
Outputs at padding are unspecified. `sequence_ids` None: the rows are not packed. (Packing: Krell 2021.)

B batch, T query tokens, S key tokens, D hidden size, E the most examples in a row, N members of G groups.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedConfig
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    create_bidirectional_mask,
    create_causal_mask,
)

from .attention import Mask


def packed_positions(sequence_ids: Tensor) -> Tensor:
    """Position of each token in its own example, 0 for padding: (B, T) -> (B, T)."""
    index = torch.arange(sequence_ids.shape[1], device=sequence_ids.device).expand_as(sequence_ids)
    starts = torch.ones_like(sequence_ids, dtype=torch.bool)  # true where an example begins
    starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    start_of_token = (index * starts).cummax(-1).values  # the last start so far: (B, T)
    return (index - start_of_token) * (sequence_ids != 0)


def members(ids: Tensor, groups: int) -> Tensor:
    """Which of N belong to group 1, 2, ...: their groups' numbers (B, N) -> True and False (B, G, N)."""
    numbers = torch.arange(1, groups + 1, device=ids.device)  # (G,)
    return ids[:, None] == numbers[None, :, None]


def packed_starts(sequence_ids: Tensor) -> Tensor:
    """Where example 1, 2, ... of each row starts: (B, T) -> (B, E); 0 where a row has fewer examples."""
    examples = int(sequence_ids.max())  # E; this waits for an accelerator
    return members(sequence_ids, examples).int().argmax(-1)  # the first True: (B, E, T) -> (B, E)


def first_tokens(x: Tensor, sequence_ids: Tensor | None = None, sequence_starts: Tensor | None = None) -> Tensor:
    """Where in its row of x (B, T, D) each sequence begins: zeros (B, 1), or packed (B, E).

    Args:
        sequence_starts: (B, E), what `packed_starts` computes, where it is known already.
    """
    if sequence_ids is None:
        return torch.zeros_like(x[:, :1, 0], dtype=torch.long)
    return packed_starts(sequence_ids) if sequence_starts is None else sequence_starts


def states_at(x: Tensor, places: Tensor) -> Tensor:
    """The states of x (B, T, D) at some places in each row (B, E): (B, E, D)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def flat_indices(places: Tensor, length: int) -> Tensor:
    """Places in rows of `length` tokens as indices into the flattened batch: (B, E) -> (B, E)."""
    return places + torch.arange(places.shape[0], device=places.device)[:, None] * length


def same_sequence(query_ids: Tensor, key_ids: Tensor) -> Callable:
    """The rule of packed rows as a mask function of transformers, for `sequence_ids` (B, T) and (B, S)."""

    def mask(batch, head, query, key):  # indices that broadcast to (B, H, T, S)
        query_id = query_ids[batch, query]
        return (query_id == key_ids[batch, key]) | (query_id == 0)

    return mask


def packed_mask(
    config: PreTrainedConfig,
    x: Tensor,
    attention_mask: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    kwargs: Mapping,
    causal: bool = False,
) -> Mask:
    """The mask of packed rows, in the form that the kernel takes.

    `create_causal_mask` takes such a rule too (`and_mask_function`), but applies it by vmap, many times slower.

    Args:
        x: (B, T, D), the queries' states.
        attention_mask: (B, S), 0 for keys that nobody sees.
        query_ids: (B, T) or, with a cache, (B, past + T).

    Raises:
        ValueError: the kernel would not see the mask, or only one side is packed.
    """
    if query_ids is None or key_ids is None:
        raise ValueError(
            "sequence_ids and decoder_sequence_ids go together: a packed source needs a packed target, "
            "one pair bearing one id on both sides."
        )
    # Kernels for packed rows take the bounds of the examples instead of a mask.
    takes_bounds = "flash" in config._attn_implementation or config._attn_implementation == "varlen"
    if takes_bounds and "cu_seq_lens_q" not in kwargs:
        raise ValueError(
            f"{config._attn_implementation} takes no mask, so sequence_ids alone would let examples see one "
            "another: pass cu_seq_lens_q and cu_seq_lens_k too, or choose eager, sdpa or flex_attention."
        )
    rule = same_sequence(query_ids, key_ids)
    return ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation](
        batch_size=x.shape[0],
        q_length=x.shape[1],
        kv_length=key_ids.shape[1],
        q_offset=query_ids.shape[1] - x.shape[1],  # the first query stands behind the cached tokens
        mask_function=and_masks(causal_mask_function, rule) if causal else rule,
        attention_mask=None if attention_mask is None else attention_mask.bool(),
        allow_is_causal_skip=False,  # sdpa's own causal mask knows no examples
        dtype=x.dtype,
        config=config,
        device=x.device,
    )


def takes_queries(mask: Mask, kwargs: Mapping) -> bool:
    """Whether some queries alone may be computed: blocks of flex_attention and bounds are of all tokens."""
    return "cu_seq_lens_q" not in kwargs and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 4))


def self_attention_mask(
    config: PreTrainedConfig,
    x: Tensor,
    attention_mask: Tensor | None,
    sequence_ids: Tensor | None,
    kwargs: Mapping,
    causal: bool = False,
    cache: EncoderDecoderCache | None = None,
) -> Mask:
    """A token of x (B, T, D) sees every token of its example but padding.

    `causal` (Vaswani 2017, 3.2.3): only itself and those before it, also in the cache; `sequence_ids` are then
    (B, past + T).
    """
    if sequence_ids is not None:
        return packed_mask(config, x, attention_mask, sequence_ids, sequence_ids, kwargs, causal)
    if causal:
        past = None if cache is None else cache.self_attention_cache
        return create_causal_mask(config, x, attention_mask, past)  # by position: transformers 5.24 renamed it
    return create_bidirectional_mask(config, x, attention_mask)


def cross_attention_mask(
    config: PreTrainedConfig,
    x: Tensor,
    memory: Tensor,
    attention_mask: Tensor | None,
    sequence_ids: Tensor | None,
    decoder_sequence_ids: Tensor | None,
    kwargs: Mapping,
) -> Mask:
    """A target token of x (B, T, D) sees the source tokens of its pair in memory (B, S, D) (Vaswani 2017, 3.2.3)."""
    if decoder_sequence_ids is not None or sequence_ids is not None:
        return packed_mask(config, x, attention_mask, decoder_sequence_ids, sequence_ids, kwargs)
    return create_bidirectional_mask(config, x, attention_mask, encoder_hidden_states=memory)


def self_attention_kwargs(kwargs: Mapping, side: Literal["q", "k"]) -> dict[str, Any]:
    """The kernel's keyword arguments for self-attention of a packed pair's target (`q`) or source (`k`).

    `cu_seq_lens_q` and `cu_seq_lens_k` are the bounds of queries and of keys: in cross-attention the target's and the
    source's, in self-attention the same ones twice. So it is with `max_length_q` and `max_length_k`.
    """
    kwargs = dict(kwargs)
    for name in ("cu_seq_lens", "max_length"):
        if f"{name}_{side}" in kwargs:
            kwargs[f"{name}_q"] = kwargs[f"{name}_k"] = kwargs[f"{name}_{side}"]
    return kwargs
