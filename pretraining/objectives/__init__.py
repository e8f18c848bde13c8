"""What a model learns from: one class a file. The loop knows of a task only what `Objective` lists."""

from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pretraining.data.rows import Example
from pretraining.objectives.denoising import Denoising
from pretraining.objectives.sentence_pairs import SentencePairs
from pretraining.objectives.translation import Translation
from pretraining.settings import Settings


class Objective(Protocol):
    """From a source to losses and measures. Whatever is random is drawn from (seed, epoch, index)."""

    targets: tuple[str, ...]
    """The model's arguments that bear targets: each has its own loss, divided by its own count over the step."""
    row_lengths: tuple[int, ...]
    """Tokens in a packed row, on each side that a row has."""
    metric: str
    """The measure that decides which checkpoint is best."""
    lower_is_better: bool
    fingerprint: str
    """A hash of the prepared data, of both splits; there after `prepare`."""
    tokenizer: PreTrainedTokenizerBase
    """Saved beside the model."""
    target_tokenizer: PreTrainedTokenizerBase | None
    """Of targets with a vocabulary of their own; saved in a folder there."""

    def prepare(self, writer: bool) -> list[str]: ...

    def during(self, phase: Settings) -> Any: ...

    def build_model(self, config: Any) -> PreTrainedModel: ...

    def begin(self, model: Any, before: Any) -> None: ...

    def index(self, split: str, epoch: int) -> np.ndarray: ...

    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray: ...

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]: ...

    def collate(self, rows: list[list[Example]], sequences: int) -> dict[str, Tensor]: ...

    def tokens(self, batch: dict[str, Tensor]) -> int: ...

    def judge(
        self, model: nn.Module, index: np.ndarray, accelerator: Accelerator, thorough: bool = False
    ) -> dict[str, float]: ...

    def evaluate(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]: ...

    def samples(self, model: nn.Module, count: int) -> list[str]: ...


OBJECTIVES: dict[str, Any] = {"sentence_pairs": SentencePairs, "translation": Translation, "denoising": Denoising}
