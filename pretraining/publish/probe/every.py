"""All checks of a checkpoint, in the order of the report."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from transformers.utils import logging

from . import files, inputs, uses, weights
from .check import Check, run_check
from .checkpoint import Checkpoint
from .examples import check_examples

CHECKS: dict[str, Callable[[Checkpoint], str]] = {
    "files": files.check_sums,
    "weights file": files.check_weights_file,
    "auto_map": files.check_auto_map,
    "opens": weights.check_opens,
    "logits": weights.check_logits,
    "classes agree": weights.check_classes_agree,
    "tied weights": weights.check_tied,
    "buffers": weights.check_buffers,
    "labels": weights.check_labels,
    "tokenizer": inputs.check_tokenizer,
    "images": inputs.check_images,
    "pipeline()": uses.check_pipelines,
    "generate()": uses.check_generation,
    "save and load": weights.check_saves,
    "ONNX": uses.check_onnx,
}
"""What is checked, by its name in the report."""


def check_all(folder: Path, reference: Path | None, names: Iterable[str] = CHECKS) -> list[Check]:
    """The checks of these names, and the examples of the folder's README.md if it has one."""
    torch.set_num_threads(1)  # as when the reference was written
    logging.disable_progress_bar()
    checkpoint = Checkpoint(folder, reference)
    checks = [run_check(name, partial(CHECKS[name], checkpoint)) for name in names]
    card = folder / "README.md"
    return checks + (check_examples(card, folder) if card.exists() else [])
