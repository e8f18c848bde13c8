"""What the loop knows of a task, whatever is learnt: its examples, the head that learns it, and how it is scored.

N examples, R rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from pretraining.data.packing import Example
from pretraining.settings import Settings

# Of every other metric that can decide which evaluation is best, the higher is the better.
LOWER_IS_BETTER = frozenset({"loss", "mlm_loss", "mean_squared_error", "calibration_error"})


class Batch(NamedTuple):
    """Rows as tensors, and what was counted in them on the host, before any forward."""

    tensors: dict[str, Tensor]
    targets: dict[str, int]
    """How many targets each of the model's arguments bears; each has a loss of its own, divided by its own count."""
    units: int
    """Tokens (of images: images), padding not counted."""
    source: Any = None
    """What the rows were made from, where the scoring asks for it."""


class Examples(ABC):
    """From a source to a batch. Whatever is random is drawn from (seed, epoch, index)."""

    fingerprint: str
    """A hash of the prepared data of both splits, known after `prepare`."""
    row_lengths: tuple[int, ...]
    """Units that a row has room for, on each of its sides."""
    results: dict[str, Any] = {}
    """What results.json says of the data, known after `prepare`."""
    libraries: tuple[str, ...] = ()
    """Libraries whose version decides what is prepared, beside settings and data."""

    def __init__(self, settings: Settings):
        self.run, self.settings = settings, settings.objective

    @abstractmethod
    def prepare(self, is_builder: bool) -> list[str]:
        """Makes or loads all that the examples are made from.

        Args:
            is_builder: whether this process makes what is not in the cache yet; the others wait for it.

        Returns:
            Lines that describe the data.

        Raises:
            UserError: whatever is wrong with the data.
        """

    @abstractmethod
    def index_examples(self) -> None:
        """Chooses the examples, and the rows that suit them, as the settings want them; the data is prepared."""

    def for_phase(self, phase: Settings) -> Self:
        """The same data under the settings of one of the run's phases."""
        if phase.objective == self.settings:
            return self
        other = copy(self)
        other.run, other.settings = phase, phase.objective
        other.index_examples()
        return other

    def seed(self, split: str) -> int:
        """The run's for training; held-out data has one seed in all runs, so that models of other seeds compare."""
        return self.run.seed if split == "train" else 0

    @abstractmethod
    def index(self, split: str, epoch: int) -> np.ndarray:
        """The examples that the split has in this epoch: (N,)."""

    @abstractmethod
    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        """Units of examples `index` (N,) in this epoch, special tokens included: (N,), or on each side (N, S)."""

    @abstractmethod
    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Examples `index` (N,) as this epoch sees them; `progress` is the share of the budget that is spent."""

    @abstractmethod
    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        """R rows of examples as tensors, with `sequences` places for examples in each row."""


AnyExamples = TypeVar("AnyExamples", bound=Examples)


class Head(ABC, Generic[AnyExamples]):
    """The model that learns from the examples, and what turns a user's data into its inputs."""

    inputs: dict[str, tuple[str, str]]
    """What is saved beside the model, by name: its Auto class, and its folder in the model's."""

    def __init__(self, examples: AnyExamples):
        self.examples = examples

    @abstractmethod
    def build_model(self, config: Any) -> PreTrainedModel:
        """The model with fresh weights; its configuration is `config`, a copy, completed by what the data says."""

    @abstractmethod
    def load_weights(self, model: PreTrainedModel, checkpoint: str) -> str:
        """Gives a fresh model the weights of a checkpoint, and returns a line that tells which."""

    def adapt(self, model: PreTrainedModel) -> None:
        """Decides what of the model learns, once its weights are there: adapters, or parts that stay as they are."""

    def merge(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a plain model from those of an adapted one."""
        return weights

    @abstractmethod
    def enter_phase(self, model: Any, before: Sequence[Examples]) -> None:
        """Makes the model ready for the phase of these examples, after phases of the examples `before`."""

    def to_model_inputs(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's arguments, from a collated batch on the model's device."""
        return tensors

    @abstractmethod
    def save_inputs(self, folder: Path) -> None:
        """Writes the `inputs` beside the model."""


class Scoring(ABC, Generic[AnyExamples]):
    """How good a model is on held-out examples."""

    signatures: dict[str, str] = {}
    """How a metric is computed, where its name alone does not say it."""

    def __init__(self, examples: AnyExamples):
        self.examples = examples

    @property
    def metric(self) -> str:
        """The metric that decides which evaluation is best."""
        return str(self.examples.settings.metric)

    def rank(self, metrics: dict[str, float]) -> float:
        """What decides which evaluation is best: the lower the better. NaN is below nothing, and so never best."""
        value = metrics[self.metric]
        return value if self.metric in LOWER_IS_BETTER else -value

    @abstractmethod
    def sums(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Each metric's sum and count over a batch."""

    def observe(
        self, model: nn.Module, inputs: dict[str, Tensor], batch: Batch
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Any]]:
        """The `sums` of a batch, and a small record of each of its examples, for metrics that are no sums."""
        return self.sums(model, inputs), []

    def score_records(self, records: list[Any], final: bool) -> dict[str, float]:
        """Metrics of the records of all held-out examples, of all processes.

        Args:
            final: at the run's end, of the weights that are handed over.
        """
        return {}

    def score_outputs(self, model: Any, index: np.ndarray, accelerator: Accelerator, final: bool) -> dict[str, float]:
        """Metrics of held-out examples `index` (N,) that are no sum over targets, all processes together.

        Args:
            final: at the run's end, as well as can be; else what an evaluation has time for.
        """
        return {}

    def calibrate(
        self, model: Any, batches: Iterator[tuple[Batch, dict[str, Tensor]]], accelerator: Accelerator
    ) -> str:
        """Mends how sure the final model is, by this process's held-out batches; a line that tells how, or ""."""
        return ""

    @abstractmethod
    def samples(self, model: Any, count: int) -> list[str]:
        """What the model makes of some held-out examples, in words."""

    def draw_pictures(self, folder: Path) -> list[Path]:
        """Draws what the final `score_outputs` saw into the run's folder; returns the paths."""
        return []


@dataclass(frozen=True)
class Objective:
    """A task. The same examples with another head, or scored otherwise, are another task."""

    examples: Any
    head: Any
    scoring: Any

    @classmethod
    def of(cls, examples: Examples, head: type[Head], scoring: type[Scoring]) -> "Objective":
        """The task of these examples: its head and its scoring read them."""
        return cls(examples, head(examples), scoring(examples))

    def for_phase(self, phase: Settings) -> "Objective":
        """The same task under the settings of one of the run's phases."""
        examples = self.examples.for_phase(phase)
        return self if examples is self.examples else Objective.of(examples, type(self.head), type(self.scoring))


def by_all_processes(index: np.ndarray, accelerator: Accelerator, work: Callable[[np.ndarray], list]) -> list:
    """What `work` makes of each of the examples `index` (N,), in their order: each process does a part and gets all.

    The parts are equally large, examples repeated for it: no process calls the model more often than another, for where
    the weights are cut (FSDP2, DeepSpeed) it would wait for parts of them that nobody sends.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    part = -(-len(index) // ranks)
    padded = np.resize(index, part * ranks)
    return gather_object(work(padded[rank * part : (rank + 1) * part]))[: len(index)]
