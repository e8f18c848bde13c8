"""One update in plain torch: of ours on packed rows, and of transformers' models on the same examples, padded."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from pretraining.data.packing import IGNORED, Example, pack_tokens
from pretraining.launch import DTYPES
from pretraining.objectives.base import Batch, Objective
from pretraining.step import seed_of

Inputs = dict[str, Tensor]
"""A model's arguments."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    return torch.autocast(device.type, DTYPES[precision]) if precision != "fp32" else nullcontext()


def update(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    precision: str,
    max_grad_norm: float,
    seed: int,
    step: int,
) -> Tensor:
    """What `pretraining.step.train_step` does in one process, with nothing around it: the step's loss.

    Args:
        micro_batches: their tensors are the model's inputs.
    """
    device = model.device
    counts = {name: sum(batch.targets[name] for batch in micro_batches) for name in micro_batches[0].targets}
    total = torch.zeros((), device=device)
    for i, batch in enumerate(micro_batches):
        torch.manual_seed(seed_of(seed, step, 0, i))
        with autocast(device, precision):
            loss = model(**send_to_device(batch.tensors, device), num_items_in_batch=counts).loss
        loss.backward()
        total += loss.detach()
    clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total


def update_peer(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Inputs, precision: str, smoothing: float = 0.0
) -> None:
    """Forward, backward, clipping to norm 1 and AdamW, as transformers' examples and its Trainer do them.

    Args:
        smoothing: of the labels, as Trainer does it: over the whole vocabulary, padding among it.
    """
    with autocast(next(model.parameters()).device, precision):
        loss = smoothed(model, batch, smoothing) if smoothing else model(**batch).loss
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def smoothed(model: Any, batch: Inputs, smoothing: float) -> Tensor:
    """The loss of a native seq2seq model, which has none with smoothing of its own."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    logits = model(**inputs, use_cache=False).logits.float()
    return cross_entropy(logits.flatten(0, -2), batch["labels"].flatten(), label_smoothing=smoothing)


def padded(objective: Objective, examples: list[Example], length: int | None = None) -> Inputs:
    """Examples as transformers' BERT takes them, one a row: (B, T).

    Args:
        length: T; None: the longest example's.
    """
    batch = objective.examples.collate([[example] for example in examples], 1).tensors
    length = length or max(len(example["input_ids"]) for example in examples)
    mask = (batch["sequence_ids"] != 0).long()
    tokens = {name: batch[name] for name in ("input_ids", "token_type_ids", "labels")}
    rows = {name: value[:, :length].contiguous() for name, value in {**tokens, "attention_mask": mask}.items()}
    pairs = {name: value.flatten() for name, value in batch.items() if name == "next_sentence_label"}
    return rows | pairs


def padded_pairs(objective: Objective, examples: list[Example]) -> Inputs:
    """Pairs as transformers' Marian takes them, one a row, both sides as long as their longest: (B, S), (B, T)."""
    pad, rows = objective.examples.tokenizer.pad_token_id, [[example] for example in examples]
    source, target = (max(len(example[side]) for example in examples) for side in ("input_ids", "labels"))
    ids = pack_tokens(rows, "input_ids", source, pad)
    labels = pack_tokens(rows, "labels", target, IGNORED)
    return {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels}
