"""The losses, each a sum over this batch's targets divided by the number of targets in the whole step.

B batch, V vocabulary, C classes, N targets or scores, G groups of scores.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import PreTrainedConfig

from .packing import members

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


def training_targets(config: Any, training: bool) -> dict[str, Any]:
    """What `classification_loss` and `labels_loss` do beside the plain loss, which is that of evaluation."""
    return {"smoothing": config.label_smoothing, "class_weights": config.class_weights} if training else {}


def widened(x: Tensor) -> Tensor:
    """Half precision as float32: sums of many terms need it."""
    return x.float() if x.dtype.itemsize < 4 else x


def weighted(logits: Tensor, class_weights: list[float] | None) -> tuple[Tensor, Tensor | None]:
    """Logits (..., C) and weights (C,) as torch's losses take them; half precision would round the weights."""
    if class_weights is None:
        return logits, None
    logits = widened(logits)
    return logits, logits.new_tensor(class_weights)


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    name: str,
    num_items_in_batch: Counts,
    labels: Tensor | None = None,
    smoothing: float = 0.0,
    class_weights: list[float] | None = None,
) -> Tensor:
    """Cross-entropy of logits (..., C) and targets (...), -100 for none; other arguments as for `mean_over_step`.

    Args:
        smoothing: share e of the target that is spread over all classes (Szegedy 2015, 7).
        class_weights: C numbers w. The loss of a target y is (1 - e) * w[y] * -log p(y) + e * mean over c of
            w[c] * -log p(c), as in torch; but it is divided by the number of targets, not by the sum of their weights.
    """
    logits, weight = weighted(logits, class_weights)
    x, y = logits.flatten(0, -2), targets.flatten()
    total = cross_entropy(x, y, weight=weight, reduction="sum", label_smoothing=smoothing)
    return mean_over_step(total, targets, name, num_items_in_batch, labels)


def grouped_loss(scores: Tensor, group_ids: Tensor, targets: Tensor, name: str, num_items_in_batch: Counts) -> Tensor:
    """Cross-entropy of softmaxes that run over groups of scores: one member of each group is the right one.

    Args:
        scores: (B, N), of any number of groups side by side.
        group_ids: (B, N), the number 1, 2, ... of the group that a score belongs to, 0 for none.
        targets: (B, G), for group g in column g - 1 the place 0, 1, ... N - 1 of its right member; -100 for none. A
            place outside the group has probability 0: the loss is infinite.
        name, num_items_in_batch: as for `mean_over_step`.
    """
    member = members(group_ids, targets.shape[1])  # (B, G, N)
    member = member | ~member.any(-1, keepdim=True)  # a group of none takes all scores: a softmax over none is nan
    x = widened(scores)[:, None].masked_fill(~member, -torch.inf)  # (B, N) -> (B, G, N)
    total = cross_entropy(x.flatten(0, 1), targets.flatten(), reduction="sum")
    return mean_over_step(total, targets, name, num_items_in_batch)


def labels_loss(
    config: PreTrainedConfig,
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Counts,
    partner_labels: Tensor | None = None,
    partner_weight: Tensor | None = None,
    smoothing: float = 0.0,
    class_weights: list[float] | None = None,
) -> Tensor:
    """The loss of `config.problem_type`: one class, several classes at once, or regression; -100 for no target.

    Logits (..., C), labels (...) or, of several classes, (..., C). With no problem type, as in transformers: one output
    means regression, integer labels one class, float labels several. Label smoothing is for one class alone, and so
    are examples mixed out of two, whose loss is (1 - w) * loss(label) + w * loss(partner's label) (mixup: Zhang 2017,
    2; CutMix: Yun 2019, 3.1): `partner_labels` (B,), -100 for none, and their shares w, `partner_weight` (B,).

    Args:
        class_weights: C numbers: of one class as for `classification_loss`; of several classes each is the weight of
            its class where that is present, beside 1 where it is absent (`pos_weight` of torch).

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
            return classification_loss(logits, labels, "labels", num_items_in_batch, None, smoothing, class_weights)
        logits, weight = weighted(logits, class_weights)
        first, second = (
            cross_entropy(logits, targets, weight=weight, reduction="none", label_smoothing=smoothing)
            for targets in (labels, partner_labels)
        )
        total = (first.lerp(second, partner_weight.to(first.dtype)) * (labels != -100)).sum()
        return mean_over_step(total, labels, "labels", num_items_in_batch)
    if partner_labels is not None:
        raise ValueError(f"partner_labels are classes, but problem_type is {problem}: mix the labels themselves.")
    logits, weight = weighted(logits, class_weights)
    x, y = logits.reshape(labels.shape), labels.to(logits.dtype)
    if problem == "regression":
        losses = mse_loss(x, y, reduction="none")
    else:
        losses = binary_cross_entropy_with_logits(x, y, reduction="none", pos_weight=weight)
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
        total = SmoothedCrossEntropy.apply(widened(logits), targets, pad_token_id, smoothing)
    else:
        total = cross_entropy(logits, targets, reduction="sum")
    return mean_over_step(total, targets, "labels", num_items_in_batch, labels)
