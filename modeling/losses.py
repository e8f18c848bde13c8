"""The losses, each a sum over this batch's targets divided by the number of targets in the whole step.

B batch, V vocabulary, C classes, N targets.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import PreTrainedConfig

Counts = dict[str, Tensor | int | float] | Tensor | int | float | None


def mean_over_step(
    total: Tensor, targets: Tensor, name: str, num_items_in_batch: Counts, labels: Tensor | None = None
) -> Tensor:
    """A loss summed over this batch, divided by the number of its targets in the whole step.

    Args:
        targets: this batch's targets, -100 where there is none.
        name: forward's argument for these targets.
        num_items_in_batch: None: divide by this batch's targets. A dict {argument of forward: targets in the step}:
            divide by that count. One number (transformers' `Trainer`, which counts `labels` alone): divide `labels` by
            it; any other loss is its mean over this batch, times this batch's share of the step's `labels`.
        labels: this batch's `labels`, if `targets` are another argument or leave out some of them.
    """
    count = (targets != -100).sum().clamp(min=1)
    if num_items_in_batch is None:
        return total / count
    if isinstance(num_items_in_batch, dict):
        return total / num_items_in_batch[name]
    if labels is None:
        return total / num_items_in_batch
    return total * (labels != -100).sum() / (count * num_items_in_batch)


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    name: str,
    num_items_in_batch: Counts,
    labels: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits (..., C) and targets (...), -100 for none; other arguments as for `mean_over_step`."""
    total = cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum", label_smoothing=smoothing)
    return mean_over_step(total, targets, name, num_items_in_batch, labels)


def labels_loss(
    config: PreTrainedConfig,
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Counts,
    partner_labels: Tensor | None = None,
    partner_weight: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """The loss of `config.problem_type`: one class, several classes at once, or regression; -100 for no target.

    Logits (B, C), labels (B,) or, of several classes, (B, C). With no problem type, as in transformers: one output
    means regression, integer labels one class, float labels several. Label smoothing is for one class alone, and so
    are examples mixed out of two, whose loss is (1 - w) * loss(label) + w * loss(partner's label) (mixup: Zhang 2017,
    2; CutMix: Yun 2019, 3.1): `partner_labels` (B,), -100 for none, and their shares w, `partner_weight` (B,).

    Raises:
        ValueError: mixed examples of another problem type, or partner labels without weights.
    """
    problem = config.problem_type
    if problem is None and config.num_labels == 1:
        problem = "regression"
    elif problem is None:
        integers = labels.dtype in (torch.long, torch.int)
        problem = "single_label_classification" if integers else "multi_label_classification"
    if (partner_labels is None) != (partner_weight is None):
        raise ValueError("partner_labels and partner_weight go together: the class mixed in, and its share.")
    if problem == "single_label_classification":
        if partner_labels is None or partner_weight is None:
            return classification_loss(logits, labels, "labels", num_items_in_batch, smoothing=smoothing)
        first, second = (
            cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
            for targets in (labels, partner_labels)
        )
        total = (first.lerp(second, partner_weight.to(first.dtype)) * (labels != -100)).sum()
        return mean_over_step(total, labels, "labels", num_items_in_batch)
    if partner_labels is not None:
        raise ValueError(f"partner_labels are classes, but problem_type is {problem}: mix the labels themselves.")
    loss = mse_loss if problem == "regression" else binary_cross_entropy_with_logits
    losses = loss(logits.reshape(labels.shape), labels.to(logits.dtype), reduction="none")
    return mean_over_step((losses * (labels != -100)).sum(), labels, "labels", num_items_in_batch)


class SmoothedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy with label smoothing, whose own backward takes a third of the passes over the logits.

    Logits (N, V), targets (N,), -100 for none. The gradient of one row is softmax - smoothed target.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, pad_token_id: int | None, smoothing: float) -> Tensor:
        normaliser = logits.logsumexp(-1)  # (N,): log p(v) = logits[v] - normaliser
        total, words = logits.sum(-1), logits.shape[-1]
        if pad_token_id is not None:
            total, words = total - logits[:, pad_token_id], words - 1
        true = logits.gather(-1, targets.clamp(min=0)[:, None])[:, 0]  # (N,), the logits of the targets
        ctx.save_for_backward(logits, targets, normaliser)
        ctx.pad_token_id, ctx.smoothing, ctx.words = pad_token_id, smoothing, words
        losses = normaliser - (1 - smoothing) * true - smoothing * total / words
        return (losses * (targets != -100)).sum()

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        logits, targets, normaliser = ctx.saved_tensors
        grad = (logits - normaliser[:, None]).exp_().sub_(ctx.smoothing / ctx.words)  # in place: (N, V) is large
        if ctx.pad_token_id is not None:
            grad[:, ctx.pad_token_id] += ctx.smoothing / ctx.words
        true = targets.clamp(min=0)[:, None]
        grad.scatter_add_(-1, true, torch.full_like(true, ctx.smoothing - 1, dtype=logits.dtype))
        return grad.mul_(((targets != -100) * gradient).to(logits.dtype)[:, None]), None, None, None


def smoothed_loss(
    logits: Tensor, labels: Tensor, pad_token_id: int | None, smoothing: float, num_items_in_batch: Counts
) -> Tensor:
    """Cross-entropy with label smoothing over every token but padding (Vaswani 2017, 5.4).

    (1 - e) * -log p(label) + e * mean over v of -log p(v). Padding is never predicted, so its logit is far below all
    others and must not enter the mean; a label that is padding is no target.
    """
    targets = labels if pad_token_id is None else labels.masked_fill(labels == pad_token_id, -100)
    logits, targets = logits.flatten(0, -2), targets.flatten()
    if smoothing:
        # Sums over a vocabulary are too coarse in half precision; autocast makes torch's cross-entropy float32 too.
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        total = SmoothedCrossEntropy.apply(logits, targets, pad_token_id, smoothing)
    else:
        total = cross_entropy(logits, targets, reduction="sum")
    return mean_over_step(total, targets, "labels", num_items_in_batch, labels)
