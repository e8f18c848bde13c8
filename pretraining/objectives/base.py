"""What the loop knows of a task, whatever is learnt."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pretraining.data.packing import IGNORED, Example
from pretraining.data.tokenizer import TARGET
from pretraining.errors import UserError
from pretraining.init_from import load_weights
from pretraining.settings import Settings


def by_all_processes(index: np.ndarray, accelerator: Accelerator, work: Callable[[np.ndarray], list]) -> list:
    """What `work` makes of each of the examples `index` (N,), in their order: each process does a part and gets all.

    The parts are equally large, examples repeated for it: no process calls the model more often than another, for where
    the weights are cut (FSDP2, DeepSpeed) it would wait for parts of them that nobody sends.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    part = -(-len(index) // ranks)
    padded = np.resize(index, part * ranks)
    return gather_object(work(padded[rank * part : (rank + 1) * part]))[: len(index)]


class Objective(ABC):
    """From a source to losses and measures. Whatever is random is drawn from (seed, epoch, index)."""

    targets: tuple[str, ...]
    """The model's arguments that bear targets: each has its own loss, divided by its own count over the step."""
    unit: str = "tokens"
    """What is counted: of an example's length, a row's and the run's speed."""
    row_lengths: tuple[int, ...]
    """Room of a row in these units, on each side that a row has."""
    metric: str
    """The measure that decides which checkpoint is best."""
    lower_is_better: bool
    fingerprint: str
    """A hash of the prepared data, of both splits; there after `prepare`."""
    signatures: dict[str, str] = {}
    """How a measure is computed, where its name alone does not say it."""

    resume_exempt: tuple[str, ...] = ()
    """Settings that change no step, only what is told or handed over at the end: a resumed run may change them."""

    @property
    def writes_by(self) -> str:
        """The setting by which texts are written during a run, by a search that needs whole weights; empty: none."""
        return ""

    libraries: tuple[str, ...] = ()
    """Those whose version decides what is prepared, beside settings and data."""

    inputs: dict[str, tuple[str, str]]
    """What turns a user's data into the model's input: its name, its Auto class, its folder in the model's."""

    def __init__(self, settings: Settings):
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        self.run, self.settings = settings, settings.objective

    @abstractmethod
    def prepare(self, is_builder: bool) -> list[str]:
        """Makes or loads all that the examples are made from, and opens it.

        Args:
            is_builder: whether this process makes what is not in the cache yet; the others wait for it.

        Returns:
            Lines that tell what was found.

        Raises:
            UserError: whatever is wrong with the data.
        """

    @abstractmethod
    def open(self) -> None:
        """Chooses the examples, and the rows that suit them, as the settings want them; the data is there."""

    def during(self, phase: Settings) -> Self:
        """The same data under the settings of one of the run's phases."""
        if phase.objective == self.settings:
            return self
        other = copy(self)
        other.configure(phase)
        other.open()
        return other

    def seed(self, split: str) -> int:
        """The run's, but one for all runs on held-out data: models that differ in their seed are asked the same."""
        return self.run.seed if split == "train" else 0

    @abstractmethod
    def build_model(self, config: Any) -> PreTrainedModel:
        """The model with fresh weights, its configuration completed by what the data says."""

    @abstractmethod
    def load_weights(self, model: PreTrainedModel, checkpoint: str) -> str:
        """Gives a fresh model the weights of a checkpoint, and returns a line that tells which."""

    @abstractmethod
    def begin(self, model: Any, before: Sequence[Self]) -> None:
        """Makes the model ready for a phase whose objective this is, after phases of the objectives `before`."""

    @abstractmethod
    def index(self, split: str, epoch: int) -> np.ndarray:
        """The examples that the split has in this epoch: (N,)."""

    @abstractmethod
    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        """Units of examples `index` (N,) in this epoch, special tokens included: (N,), or on each side (N, S)."""

    @abstractmethod
    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Examples `index` (N,) as this epoch sees them.

        Args:
            progress: share of the run's budget that is spent, 0 to 1.
        """

    def describe_rows(self, fill: float) -> str:
        """What a step's rows are, of whose room a share `fill` is no padding."""
        return f"rows of {' + '.join(map(str, self.row_lengths))} {self.unit}, {fill:.1%} full"

    @abstractmethod
    def collate(self, rows: list[list[Example]], sequences: int) -> dict[str, Tensor]:
        """Rows of examples to tensors, `sequences` places for examples in each row."""

    @abstractmethod
    def count(self, batch: dict[str, Tensor]) -> int:
        """Units of a batch, padding not counted."""

    def count_targets(self, batch: dict[str, Tensor]) -> dict[str, int]:
        """How many targets each of `targets` has in a batch."""
        return {name: int((batch[name] != IGNORED).sum()) for name in self.targets}

    def finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is left to do with a collated batch on the model's device: the model's arguments."""
        return batch

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Each measure's sum and count over the batch."""

    def judge(
        self, model: Any, index: np.ndarray, accelerator: Accelerator, thorough: bool = False
    ) -> dict[str, float]:
        """Measures of held-out examples that are no sum over targets, all processes together.

        Args:
            thorough: as well as can be, for the run's end; else what an evaluation has time for.
        """
        return {}

    @abstractmethod
    def samples(self, model: Any, count: int) -> list[str]:
        """What the model makes of some held-out examples."""

    def draw_pictures(self, folder: Path) -> list[Path]:
        """Leaves pictures of what a thorough `judge` found in the run's folder: their paths."""
        return []

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the `inputs` beside the model."""


class TokenObjectiveSettings:
    """What the settings of such objectives have in common; the fields are each one's own."""

    name: str
    sequence_length: int
    row_length: int | None

    @property
    def row_size(self) -> int:
        """Tokens in a row, on the side that has more of them."""
        return self.row_length or self.sequence_length

    def check(self, run: Settings) -> None:
        """Raises UserError where these settings and the run's others do not go together."""
        if self.sequence_length > run.model.max_position_embeddings:  # type: ignore[attr-defined]
            raise UserError(
                f"objective.sequence_length={self.sequence_length} is beyond the model's position table: "
                f"set model.max_position_embeddings to at least {self.sequence_length}."
            )
        if run.tokenizer.separate and self.name != "translation":
            raise UserError(
                f"tokenizer.separate is for pairs, and objective.name is {self.name}, which reads and writes one kind "
                "of text: leave it out, and start from no checkpoint that has it."
            )


class TokenObjective(Objective):
    """An objective whose model reads tokens."""

    tokenizer: PreTrainedTokenizerBase
    target_tokenizer: PreTrainedTokenizerBase | None = None
    """Of targets with a vocabulary of their own."""

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:  # type: ignore[override]
        if self.target_tokenizer is None:
            return {"tokenizer": ("AutoTokenizer", "")}
        return {"tokenizer": ("AutoTokenizer", ""), "target_tokenizer": ("AutoTokenizer", TARGET)}

    def load_weights(self, model: PreTrainedModel, checkpoint: str) -> str:
        return load_weights(model, checkpoint, self.tokenizer)

    @torch.no_grad()
    def begin(self, model: Any, before: Sequence[Self]) -> None:
        """Positions that were never trained start as copies of those that were (Beltagy 2020, 4.1).

        They are as they were drawn until now, and a model that has learnt to look at its neighbours would not find
        them there: the loss of what it knows would jump. Trained are those that an example of an earlier phase could
        have, and all of a checkpoint that the run started from.
        """
        known = max(self.run.trained_positions, *(objective.settings.sequence_length for objective in before))
        tables = model.get_position_embeddings()
        for table in tables if isinstance(tables, tuple) else (tables,):
            if isinstance(table, nn.Embedding):  # sinusoids need no training
                fresh = torch.arange(known, table.num_embeddings, device=table.weight.device)
                table.weight[fresh] = table.weight[fresh % known]

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        if self.target_tokenizer is not None:
            self.target_tokenizer.save_pretrained(folder / TARGET)
