"""The run's settings as small dataclasses: typed, documented, validated."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from accelerate.utils import LoggerType
from transformers import PreTrainedConfig

from modeling.configuration import KeelConfig


def between(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raises ValueError where a setting is out of its range."""
    if not low <= value <= high:
        bound = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
        raise ValueError(f"{name} is {value}: it must be {bound}.")


@dataclass
class TextSource:
    """Where documents come from."""

    source: str = "pydocs"
    """`pydocs` (the documentation that Python itself carries), `files`, or the name of a Hub data set."""
    files: list[str] = field(default_factory=list)
    """Files or globs for `files`: .txt, .jsonl, .csv, .parquet, each also as .gz (not parquet)."""
    validation_files: list[str] = field(default_factory=list)
    """Held-out files or globs; empty: `validation_fraction` of the documents is held out."""
    column: str = "text"
    """The column that holds the text, for .jsonl, .csv, .parquet and Hub data sets."""
    document: Literal["file", "blank_line", "line"] = "file"
    """What one document is in a .txt file: the whole file, the text between blank lines, or a line."""
    subset: str | None = None
    """The Hub data set's configuration, as in `load_dataset(name, subset)`."""
    split: str = "train"
    """The Hub data set's training split."""
    validation_split: str | None = None
    """The Hub data set's held-out split; none: `validation_fraction` of the documents."""
    language: str = "en"
    """ISO 639-1 code of the text's language, as in `ko`: it decides where sentences end."""
    weight: float = 1.0
    """Passes over this source in an epoch: 2 is every example twice, 0.5 another half each time, 0 none of it."""

    def __post_init__(self) -> None:
        between(f"The weight of the source {self.source!r}", self.weight, 0)


@dataclass
class TextSettings(TextSource):
    """Where the documents come from, and which of them are kept."""

    mixture: list[TextSource] = field(default_factory=list)
    """More sources beside this one, each with the settings of a source, its `weight` among them."""
    validation_fraction: float = 0.05
    """Share of documents held out, chosen by a hash of their text, where no held-out split is named; 0: none."""
    min_characters: int = 0
    """Documents with fewer characters are left out."""
    near_duplicates: float = 0.8
    """Of two documents that share this much (Jaccard similarity of their runs of five words, estimated), the later
    one is left out, or the one that is not held out; 1: only equal ones; 0: all are kept."""
    processes: int = 0
    """Processes that prepare text; 0: cores divided by the training processes on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        between("data.min_characters", self.min_characters, 0)
        between("data.near_duplicates", self.near_duplicates, 0, 1)
        between("data.processes", self.processes, 0)
        if not self.sources:
            raise ValueError("data.weight is 0, and so is that of every source in data.mixture: give one a weight.")

    @property
    def sources(self) -> list[TextSource]:
        """All sources that have a weight."""
        return [source for source in (self, *self.mixture) if source.weight]


@dataclass
class TokenizerSettings:
    """An existing tokenizer, or how to train one on the run's own text."""

    path: str | None = None
    """A folder or Hub name of an existing tokenizer; none: train one."""
    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """The subword model to train."""
    vocab_size: int = 8192
    """Number of entries, special tokens included."""
    cased: bool = False
    """Keep upper and lower case apart. Accents and Hangul are kept whole either way."""
    sample_characters: int = 200_000_000
    """Train on at most this many characters, sampled evenly over the documents."""


@dataclass
class SentencePairsSettings:
    """MLM and NSP on pairs of sentences (Devlin 2018, 3.1)."""

    name: Literal["sentence_pairs"] = "sentence_pairs"
    """The objective."""
    next_sentence: Literal["nsp", "sop", "none"] = "nsp"
    """Second loss: `nsp` (B follows A, or comes from another document), `sop` (A and B in order, or swapped:
    Lan 2019, 3.1) or `none` (one segment, masked tokens alone)."""
    sequence_length: int = 128
    """Longest example in tokens, special tokens included."""
    row_length: int | None = None
    """Tokens in a packed row; null: sequence_length."""
    short_sequence_rate: float = 0.1
    """Share of the chunks cut to a random shorter length (Devlin 2018, released code)."""
    mask_rate: float = 0.15
    """Share of the tokens to predict."""
    mask_rate_end: float | None = None
    """Masking rate that the run ends with, on a line from `mask_rate` (Yang 2022); null: `mask_rate` throughout."""
    mask_token_rate: float = 0.8
    """Of the tokens to predict, the share that is replaced by [MASK]."""
    random_token_rate: float = 0.1
    """Of the tokens to predict, the share that is replaced by a random token; the rest is kept."""
    whole_words: bool = False
    """Mask whole words instead of single tokens."""

    def __post_init__(self) -> None:
        for name in ("short_sequence_rate", "mask_rate", "mask_token_rate", "random_token_rate"):
            between(f"objective.{name}", getattr(self, name), 0, 1)
        between("objective.mask_rate_end", self.mask_rate_end or 0, 0, 1)
        between(
            "objective.mask_token_rate + objective.random_token_rate",
            self.mask_token_rate + self.random_token_rate,
            0,
            1,
        )
        between("objective.sequence_length", self.sequence_length, 8)
        self.row_length = self.row_length or self.sequence_length
        between("objective.row_length", self.row_length, self.sequence_length)


@dataclass
class TrainSettings:
    """The loop. Exactly one of steps, epochs, tokens and minutes is the budget."""

    steps: int | None = None
    """Budget in optimizer steps."""
    epochs: float | None = None
    """Budget in passes over the data."""
    tokens: int | None = None
    """Budget in tokens, padding not counted."""
    minutes: float | None = None
    """Budget in minutes of training by the main process's clock: for experiments, since no two runs are equal."""
    rows_per_step: int = 64
    """Packed rows in a step, over all processes and micro-batches."""
    micro_batch: int = 16
    """Rows that one process computes at a time; free, since it never changes what a step sees."""
    window: int = 8192
    """Examples among which rows are packed."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: not clipped."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16, weights and optimizer in fp32."""
    kernel: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    """The attention implementation, as transformers names it."""
    threads: int = 0
    """CPU threads of each process; 0: cores divided by the processes on this machine."""
    workers: int = 0
    """Processes that prepare batches ahead; 0: the training process does."""
    deterministic: bool = False
    """On CUDA: deterministic kernels, so that a resumed run is bit-equal there too."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""

    def __post_init__(self) -> None:
        budgets = ("steps", "epochs", "tokens", "minutes")
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"Give the run exactly one budget, one of train.{', train.'.join(budgets)}; "
                f"given: {' and '.join(given) or 'none'}."
            )
        if getattr(self, given[0]) <= 0:
            raise ValueError(f"train.{given[0]} is {getattr(self, given[0])}: a budget is more than 0.")
        for name in ("rows_per_step", "micro_batch", "window"):
            between(f"train.{name}", getattr(self, name), 1)
        for name in ("max_grad_norm", "threads", "workers"):
            between(f"train.{name}", getattr(self, name), 0)


@dataclass
class OptimSettings:
    """AdamW and its schedule."""

    learning_rate: float | None = 1e-4
    """Peak learning rate; null, with noam only: (hidden_size * warmup) ** -0.5 (Vaswani 2017, 5.3)."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; biases, norms and other vectors have none."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-6
    """Added to the root of the second moment."""
    schedule: Literal["linear", "cosine", "noam", "wsd", "constant"] = "linear"
    """After warm-up: linear or cosine to zero, inverse square root (noam), warmup-stable-decay (wsd) or constant."""
    warmup: float = 0.1
    """Warm-up from zero: a share of the budget below 1, steps from 1 on."""
    decay: float = 0.2
    """Share of the budget in which wsd falls to zero."""

    def __post_init__(self) -> None:
        if self.learning_rate is None and self.schedule != "noam":
            raise ValueError("optim.learning_rate may be null with optim.schedule: noam only.")
        if self.schedule == "noam" and self.warmup < 1:
            raise ValueError(
                f"optim.schedule: noam counts its warm-up in steps, so optim.warmup={self.warmup} must be >= 1."
            )
        for name in ("weight_decay", "warmup", "epsilon"):
            between(f"optim.{name}", getattr(self, name), 0)
        between("optim.learning_rate", self.learning_rate or 0, 0)
        between("optim.decay", self.decay, 0, 1)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} is {getattr(self, name)}: it must be at least 0 and below 1.")


@dataclass
class EvaluationSettings:
    """Held-out evaluation, with masks frozen by index."""

    every: int = 500
    """Steps between evaluations; 0: only at the end."""
    examples: int = 4096
    """At most this many held-out examples, always the same ones; 0: all of them."""
    samples: int = 4
    """Samples printed at the end."""

    def __post_init__(self) -> None:
        for name in ("every", "examples", "samples"):
            between(f"evaluation.{name}", getattr(self, name), 0)


@dataclass
class CheckpointSettings:
    """What is saved while training."""

    every: int = 500
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints kept, besides the best one."""
    export: Literal["last", "best"] = "last"
    """Which weights become the run's model."""

    def __post_init__(self) -> None:
        between("checkpoint.every", self.every, 0)
        between("checkpoint.keep", self.keep, 1)


@dataclass
class LogSettings:
    """Progress, metrics.jsonl and trackers."""

    every: int = 10
    """Steps between log lines."""
    trackers: list[str] = field(default_factory=lambda: ["wandb"])
    """Trackers of Accelerate; []: none."""
    wandb: Literal["auto", "online", "offline"] = "auto"
    """auto: online where wandb is logged in, else offline."""
    project: str = "keel"
    """The tracker's project."""

    def __post_init__(self) -> None:
        between("log.every", self.every, 1)
        known = [tracker.value for tracker in LoggerType]
        if unknown := [tracker for tracker in self.trackers if tracker not in known]:
            raise ValueError(
                f"log.trackers: {unknown[0]!r} is no tracker of Accelerate; there are: {', '.join(known)}."
            )


@dataclass
class Settings:
    """Everything a run is made from; `config.yaml` in the run's folder is this, resolved."""

    name: str
    runs: str
    cache: str
    seed: int
    resume: str
    family: str
    model: KeelConfig
    data: TextSettings
    tokenizer: TokenizerSettings
    objective: SentencePairsSettings
    train: TrainSettings
    optim: OptimSettings
    evaluation: EvaluationSettings
    checkpoint: CheckpointSettings
    log: LogSettings
    resolved: str
    """The settings as YAML."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name is {self.name!r}: a run's name is letters, digits, '.', '_' and '-'.")
        between("seed", self.seed, 0, 2**32 - 1)
        longest = self.objective.sequence_length
        if longest > self.model.max_position_embeddings:
            raise ValueError(
                f"objective.sequence_length={longest} is beyond the model's position table: "
                f"set model.max_position_embeddings to at least {longest}."
            )

    @property
    def folder(self) -> Path:
        """Where the run leaves everything."""
        return Path(self.runs) / self.name


# What a model's configuration takes from the tokenizer or inherits from transformers is no setting of a run.
NOT_SET_BY_HAND = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {
    "auto_map",
    "vocab_size",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
}
