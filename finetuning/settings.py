"""The settings of every fine-tuning task; nothing heavy is imported here, so that `--help` is quick."""

import math
from dataclasses import dataclass, field
from typing import Literal

from pretraining.data.settings import between
from pretraining.errors import UserError
from pretraining.objectives.settings import ClassificationSettings, TokenObjectiveSettings
from pretraining.settings import Settings


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Settings):
    """What one command fine-tunes: a run for each seed, from the checkpoint, from fresh weights, or from both."""

    start: Literal["pretrained", "scratch", "both"] = "pretrained"
    seeds: int = 1

    def __post_init__(self) -> None:
        between("seeds", self.seeds, 1)
        self.hub.check_runs(self.seeds * (2 if self.start == "both" else 1))
        super().__post_init__()


@dataclass(frozen=True)
class RecipeSettings:
    """Which weights learn, and how."""

    freeze: int = 0
    """What does not learn: 1 the embeddings, 2 also the first layer, 3 also the second, and so on; -1 all but the
    head."""
    adapter: Literal["none", "lora"] = "none"
    """`lora` (Hu 2021) learns small matrices beside those of `lora_targets` and the head alone; they are merged into
    the weights at the end. It needs the package peft."""
    lora_rank: int = 8
    """The rank r of LoRA's matrices."""
    lora_alpha: float = 16.0
    """LoRA's product is scaled by lora_alpha / lora_rank."""
    lora_targets: list[str] = field(default_factory=lambda: ["query", "value"])
    """The linear layers that LoRA stands beside, by the ends of their names."""
    worst: int = 20
    """Number of held-out examples with the largest loss that the run writes to worst.jsonl."""

    def __post_init__(self) -> None:
        between("objective.freeze", self.freeze, -1)
        between("objective.lora_rank", self.lora_rank, 1)
        if not 0 < self.lora_alpha < math.inf:
            raise UserError(f"objective.lora_alpha is {self.lora_alpha}: it must be a finite number above 0.")
        between("objective.worst", self.worst, 0)
        if self.adapter == "lora" and self.freeze:
            raise UserError(
                f"objective.adapter is lora, which learns no weight of the body, and objective.freeze {self.freeze}: "
                "leave one of them out."
            )

    def check_freeze(self, run: Settings) -> None:
        """Raises UserError where the model has not so many layers."""
        layers: int = run.model.num_hidden_layers  # type: ignore[attr-defined]
        if self.freeze > layers + 1:
            raise UserError(
                f"objective.freeze is {self.freeze}, and the model has its embeddings and {layers} layers: set it to "
                f"at most {layers + 1}, or to -1 for all but the head."
            )


@dataclass(frozen=True)
class WindowSettings(RecipeSettings, TokenObjectiveSettings):
    """Texts of any length: what is longer than a window is read in several."""

    sequence_length: int = 128
    """Longest window in tokens, special tokens included. A longer text is read in several windows."""
    row_length: int | None = None
    """Tokens in a packed row; null: as the data's lengths ask for."""
    stride: int | None = None
    """Tokens that a window has in common with the one before it; null: a quarter of sequence_length."""
    windows: int = 8
    """The most windows of one text; what is behind them is not read, and told."""

    def __post_init__(self) -> None:
        super().__post_init__()
        between("objective.sequence_length", self.sequence_length, 8)
        between("objective.row_length", self.row_size, self.sequence_length)
        if self.stride is None:  # what null stands for, in the contract too
            most = (self.sequence_length - 3) // 2 - 1  # beside another text that takes half of the window
            object.__setattr__(self, "stride", min(self.sequence_length // 4, most))
        assert self.stride is not None
        between("objective.stride", self.stride, 0, (self.sequence_length - 3) // 2 - 1)
        between("objective.windows", self.windows, 1)

    def check(self, run: Settings) -> None:
        super().check(run)
        if run.tokenizer.path is None:
            raise UserError(
                "a model that is fine-tuned reads with the tokenizer that it was pretrained with: name its checkpoint "
                "by --model, or for --model scratch its tokenizer by --tokenizer.path."
            )
        self.check_freeze(run)


@dataclass(frozen=True)
class SequenceClassificationSettings(WindowSettings):
    """A class, several classes or a number for a text or a pair of texts (Devlin 2018, 4.1)."""

    name: Literal["sequence_classification"] = "sequence_classification"
    """The objective."""
    problem: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = "auto"
    """What a label is: one class, a list of classes, or a number. auto: lists are several classes, numbers with a
    fraction are numbers, all else is one class."""
    class_weights: list[float] | Literal["none", "balanced"] = "none"
    """How much an example of each class weighs in the loss, in the classes' order. balanced: inversely to the number
    of its training examples."""
    metric: str | None = None
    """The metric that decides which checkpoint is best; null: accuracy, of several classes micro_f1, of numbers
    pearson."""
    calibration: bool = False
    """Fit a temperature on half of the held-out examples (Guo 2017, 4.2), divide the logits by it, and report on the
    other half."""


@dataclass(frozen=True)
class TokenClassificationSettings(WindowSettings):
    """A tag for each word: named entities (BIO) or parts of speech."""

    name: Literal["token_classification"] = "token_classification"
    """The objective."""
    metric: str | None = None
    """The metric that decides which checkpoint is best; null: entity_f1 where tags are B-, I- and O, else accuracy."""


@dataclass(frozen=True)
class QuestionAnsweringSettings(WindowSettings):
    """Where in a text the answer to a question stands (Devlin 2018, 4.2 and 4.3)."""

    name: Literal["question_answering"] = "question_answering"
    """The objective."""
    answer_length: int = 30
    """Longest answer in tokens."""
    metric: str | None = None
    """The metric that decides which checkpoint is best; null: f1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        between("objective.answer_length", self.answer_length, 1)


@dataclass(frozen=True)
class MultipleChoiceSettings(WindowSettings):
    """The best of several continuations (Devlin 2018, 4.4)."""

    name: Literal["multiple_choice"] = "multiple_choice"
    """The objective."""
    metric: str | None = None
    """The metric that decides which checkpoint is best; null: accuracy."""


@dataclass(frozen=True)
class ImageClassificationSettings(RecipeSettings, ClassificationSettings):
    """Images and their classes, with a recipe for few of them."""

    def __post_init__(self) -> None:
        RecipeSettings.__post_init__(self)
        ClassificationSettings.__post_init__(self)

    def check(self, run: Settings) -> None:
        super().check(run)
        self.check_freeze(run)
