"""What stands on top of a stack: pooling, prediction heads, and their losses.

B batch, T tokens, D hidden size, V vocabulary, C classes, E the most examples in a packed row.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .attention import packed_starts
from .dropout import Dropout

Count = Tensor | int | float
Counts = dict[str, Count] | Count | None


def divided(
    total: Tensor, targets: Tensor, name: str, num_items_in_batch: Counts, labels: Tensor | None = None
) -> Tensor:
    """A summed loss over the number of targets of the whole step.

    Args:
        total: the sum over this batch's targets.
        targets: this batch's targets, -100 where there is none.
        name: the argument of forward that bore them.
        num_items_in_batch: None: the mean of the batch. A dict {argument: count over the step}: exact. One number
            (transformers' `Trainer`, which counts `labels` alone): exact for `labels`; any other loss weighs its
            mean by this batch's share of `labels`, so that accumulation inflates nothing.
        labels: the batch's `labels`, where `targets` are others.
    """
    own = (targets != -100).sum().clamp(min=1)
    if num_items_in_batch is None:
        return total / own
    if isinstance(num_items_in_batch, dict):
        return total / num_items_in_batch[name]
    if labels is None:
        return total / num_items_in_batch
    return total / own * ((labels != -100).sum() / num_items_in_batch)


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    name: str,
    num_items_in_batch: Counts,
    labels: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy (..., C) against (...), -100 for no target; the arguments are those of `divided`, and of torch."""
    total = cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum", label_smoothing=smoothing)
    return divided(total, targets, name, num_items_in_batch, labels)


def mixed_loss(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor,
    partner_weight: Tensor,
    num_items_in_batch: Counts,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of examples mixed out of two (mixup: Zhang 2017, 2; CutMix: Yun 2019, 3.1).

    (1 - w) * loss(label) + w * loss(partner's label).

    Args:
        logits: (B, C).
        labels: (B,), -100 for no target.
        partner_labels: (B,), the class of what was mixed in, -100 where there is none.
        partner_weight: (B,), its share w of the example.
    """
    own, partner = (
        cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        for targets in (labels, partner_labels)
    )
    total = (own.lerp(partner, partner_weight.to(own.dtype)) * (labels != -100)).sum()
    return divided(total, labels, "labels", num_items_in_batch)


def labels_loss(
    config: PreTrainedConfig,
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Counts,
    partner_labels: Tensor | None = None,
    partner_weight: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """The loss that `config.problem_type` names: classes, several classes at once, or a regression; -100 for no target.

    With no problem type given: one label means regression, whole-number labels classes, others several at once.
    Classes alone know mixed examples (as `mixed_loss` says) and label smoothing.

    Raises:
        ValueError: mixed examples of another problem, or with no weights.
    """
    problem = config.problem_type
    if problem is None:
        whole = labels.dtype in (torch.long, torch.int)
        problem = "single_label_classification" if whole else "multi_label_classification"
        problem = "regression" if config.num_labels == 1 else problem
    if (partner_labels is None) != (partner_weight is None):
        raise ValueError("partner_labels and partner_weight go together: the class mixed in, and its share.")
    if problem == "single_label_classification":
        if partner_labels is None or partner_weight is None:
            return classification_loss(logits, labels, "labels", num_items_in_batch, smoothing=smoothing)
        return mixed_loss(logits, labels, partner_labels, partner_weight, num_items_in_batch, smoothing)
    if partner_labels is not None:
        raise ValueError(f"partner_labels are classes, but problem_type is {problem}: mix the labels themselves.")
    loss = mse_loss if problem == "regression" else binary_cross_entropy_with_logits
    losses = loss(logits.reshape(labels.shape), labels.to(logits.dtype), reduction="none")
    return divided((losses * (labels != -100)).sum(), labels, "labels", num_items_in_batch)


class SmoothedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy with label smoothing, in a third of the passes over (N, V) logits that its parts take."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, pad_token_id: int | None, smoothing: float) -> Tensor:
        kept = targets != -100
        normaliser = logits.logsumexp(-1)
        total, words = logits.sum(-1), logits.shape[-1]
        if pad_token_id is not None:
            total, words = total - logits[:, pad_token_id], words - 1
        right = logits.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
        ctx.save_for_backward(logits, targets, normaliser)
        ctx.pad_token_id, ctx.smoothing, ctx.words = pad_token_id, smoothing, words
        losses = normaliser - (1 - smoothing) * right - smoothing * total / words
        return (losses * kept).sum()

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        logits, targets, normaliser = ctx.saved_tensors
        of_logits = (logits - normaliser[:, None]).exp_().sub_(ctx.smoothing / ctx.words)  # softmax - smoothed target
        if ctx.pad_token_id is not None:
            of_logits[:, ctx.pad_token_id] += ctx.smoothing / ctx.words
        right = targets.clamp(min=0)[:, None]
        of_logits.scatter_add_(-1, right, torch.full_like(right, ctx.smoothing - 1, dtype=logits.dtype))
        return of_logits.mul_(((targets != -100) * gradient).to(logits.dtype)[:, None]), None, None, None


def smoothed_loss(
    logits: Tensor, labels: Tensor, pad_token_id: int | None, smoothing: float, num_items_in_batch: Counts
) -> Tensor:
    """Cross-entropy with label smoothing over every token but padding (Vaswani 2017, 5.4).

    (1 - e) * -log p(label) + e * mean over v of -log p(v); padding is never predicted, so its logit, far below all
    others, must not enter the mean.
    """
    logits, targets = logits.flatten(0, -2), labels.flatten()
    if smoothing:
        # In half precision sums over a vocabulary are too coarse: as in torch's cross-entropy under autocast.
        total = SmoothedCrossEntropy.apply(
            logits.float() if logits.dtype.itemsize < 4 else logits, targets, pad_token_id, smoothing
        )
    else:
        total = cross_entropy(logits, targets, reduction="sum")
    return divided(total, labels, "labels", num_items_in_batch)


def first_places(x: Tensor, sequence_ids: Tensor | None = None, sequence_starts: Tensor | None = None) -> Tensor:
    """Where the first token of each sequence of x (B, T, D) lies in the flattened batch: (B,), or packed (B, E)."""
    rows = torch.arange(len(x), device=x.device) * x.shape[1]
    if sequence_ids is None:
        return rows
    starts = packed_starts(sequence_ids) if sequence_starts is None else sequence_starts
    return rows[:, None] + starts


def pool(
    x: Tensor,
    pooling: str,
    attention_mask: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    sequence_starts: Tensor | None = None,
) -> Tensor:
    """One vector for each sequence: (B, T, D) -> (B, D), or packed -> (B, E, D).

    Args:
        pooling: `cls`: the first token of the sequence; `mean`: the mean of its tokens.
        sequence_starts: (B, E) start of example 1, 2, ... of each row; read off `sequence_ids` where not given.
    """
    if sequence_ids is None:
        if pooling == "cls":
            return x[:, 0]
        if attention_mask is None or attention_mask.ndim != 2:
            return x.mean(1)
        weight = attention_mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1)
    if pooling == "cls":
        return x.flatten(0, 1)[first_places(x, sequence_ids, sequence_starts)]
    starts = packed_starts(sequence_ids) if sequence_starts is None else sequence_starts
    wanted = torch.arange(1, starts.shape[1] + 1, device=x.device)
    member = (sequence_ids[:, None] == wanted[None, :, None]).to(x.dtype)  # (B, E, T)
    return member @ x / member.sum(-1, keepdim=True).clamp(min=1)


class Pooler(nn.Module):
    """tanh of a linear layer on the pooled states, as in Devlin's released model."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.dense(pooled).tanh()


class MaskedLanguageModelHead(nn.Module):
    """Dense, activation, norm, and a decoder whose matrix is the token table: (..., D) -> (..., V)."""

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

    def __init__(self, config: PreTrainedConfig, num_labels: int):
        super().__init__()
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = Dropout(rate)
        self.dense = nn.Linear(config.hidden_size, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.dropout(x))
