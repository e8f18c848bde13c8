"""What stands on top of a stack: pooling and prediction heads.

B batch, T tokens, D hidden size, V vocabulary, C classes, E the most sequences in a packed row.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .dropout import Dropout
from .packing import first_tokens, members, states_at


def mean_of_members(x: Tensor, member: Tensor) -> Tensor:
    """The mean of each group's vectors, 0 of a group without any: x (B, N, D), members (B, G, N) -> (B, G, D)."""
    weight = member.to(x.dtype)
    return weight @ x / weight.sum(-1, keepdim=True).clamp(min=1)


def pool(
    x: Tensor,
    pooling: str,
    attention_mask: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    sequence_starts: Tensor | None = None,
) -> Tensor:
    """One vector for each sequence: (B, T, D) -> (B, D), or packed -> (B, E, D).

    Args:
        pooling: `cls`: the first token of the sequence; `mean`: the mean of its tokens (both: Dosovitskiy 2020, D.3).
        sequence_starts: (B, E), what `packed_starts` computes, where it is known already.
    """
    if sequence_ids is None:
        if pooling == "cls":
            return x[:, 0]
        if attention_mask is None or attention_mask.ndim != 2:
            return x.mean(1)
        weight = attention_mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1)
    starts = first_tokens(x, sequence_ids, sequence_starts)  # (B, E)
    if pooling == "cls":
        return states_at(x, starts)
    return mean_of_members(x, members(sequence_ids, starts.shape[1]))


def pool_windows(logits: Tensor, example_ids: Tensor, pooling: str) -> Tensor:
    """The logits of each text out of those of its windows, (B, E, C) -> (B * E, C): text g in row g - 1.

    Args:
        example_ids: (B, E), the number 1, 2, ... of the text that a sequence is a window of, 0 for none.
        pooling: `mean`: the mean of the windows' logits; `max`: the largest of each class.
    """
    logits = logits.flatten(0, 1)  # (B * E, C): the windows of a text may lie in several rows
    member = members(example_ids.flatten()[None], len(logits))[0]  # (B * E, B * E): text, window
    if pooling == "mean":
        return mean_of_members(logits[None], member[None])[0]
    largest = logits.masked_fill(~member[..., None], -torch.inf).amax(1)
    return largest.masked_fill(~member.any(-1)[..., None], 0)  # a row without a text: 0, as its mean is


class Pooler(nn.Module):
    """tanh of a linear layer on the pooled states (Devlin 2018, released code)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.dense(pooled).tanh()


class MaskedLanguageModelHead(nn.Module):
    """Dense, activation, norm, and a decoder whose matrix is the token table (Press 2016): (..., D) -> (..., V)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.activation(self.dense(x))))


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, so that every class starts equal (Dosovitskiy 2020, 3.2)."""


class ClassificationHead(nn.Module):
    """Dropout and a linear layer: (..., D) -> (..., C)."""

    def __init__(self, config: PreTrainedConfig, num_labels: int | None = None):
        super().__init__()
        num_labels = config.num_labels if num_labels is None else num_labels
        assert num_labels is not None  # transformers fills it in
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = Dropout(rate)
        self.dense = nn.Linear(config.hidden_size, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.dropout(x))
