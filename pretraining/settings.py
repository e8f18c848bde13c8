"""The run's settings as small frozen dataclasses: typed, documented, validated; nothing heavy is imported here."""

import dataclasses
import re
import unicodedata
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from transformers import PreTrainedConfig

from modeling.configuration import KeelConfig
from pretraining.data.settings import between
from pretraining.errors import UserError

CACHE = "~/.cache/keel"  # of all that is worked out once, unless the user names another folder


@dataclass(frozen=True)
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
    rows_at_start: int | None = None
    """Rows in the first step, growing evenly to rows_per_step over batch_warmup steps (Brown 2020, 2.3); null: none."""
    batch_warmup: int = 0
    """Steps until a step has rows_per_step rows."""
    phases: list[dict[str, Any]] = field(default_factory=list)
    """Earlier phases of the run: settings of `objective`, rows_per_step or micro_batch that hold `until` a share of the
    budget is spent, as in [{until: 0.9, objective.sequence_length: 128, train.rows_per_step: 256}]; then come the run's
    own (Devlin 2018, A.2)."""
    micro_batch: int | Literal["auto"] = "auto"
    """Rows that one process computes at a time; free, since it never changes what a step sees. auto: as many as make a
    row cheapest."""
    window: int = 8192
    """Examples among which rows are packed."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: not clipped."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16, fp16: matrix products in half precision, weights and optimizer in fp32; fp16 with a loss scaler, on CUDA.
    auto: what the processor is made for (bf16 where it has units for that, else fp32), unless a trial at the start
    finds the other one clearly faster."""
    kernel: Literal["auto", "eager", "sdpa", "flex_attention", "varlen"] = "auto"
    """The attention implementation: transformers' names, and varlen (CUDA, no attention dropout), which computes no
    score across packed examples. auto: the fastest of a trial."""
    linear: Literal["auto", "torch", "onednn"] = "auto"
    """fp32 linear layers on CPU by torch's usual library or by oneDNN, full precision both. auto: the faster one."""
    threads: int | Literal["auto"] = "auto"
    """CPU threads of each process. auto: cores divided by the processes on this machine, or half, if that is faster."""
    allocator: Literal["auto", "keep", "system"] = "auto"
    """Memory that a step frees on CPU. keep: the C library keeps it for the next step, which is faster; the process
    stays as large as it ever was, and its peak may grow by a tenth. system: the memory goes back to the system. auto:
    keep, where the run computes on CPU, the C library is glibc (on macOS and musl nothing is set) and the environment
    (MALLOC_*, GLIBC_TUNABLES, LD_PRELOAD) does not decide otherwise."""
    compile: bool = False
    """Run the model through torch.compile."""
    tf32: bool = True
    """On CUDA: fp32 products with TF32's 10 bits of mantissa."""
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
            raise UserError(
                f"Give the run exactly one budget, one of train.{', train.'.join(budgets)}; "
                f"given: {' and '.join(given) or 'none'}."
            )
        if not 0 < getattr(self, given[0]) < float("inf"):
            raise UserError(f"train.{given[0]} is {getattr(self, given[0])}: a budget is more than 0, and finite.")
        for name in ("rows_per_step", "micro_batch", "window", "threads"):
            if getattr(self, name) != "auto":
                between(f"train.{name}", getattr(self, name), 1)
        for name in ("max_grad_norm", "workers", "batch_warmup"):
            between(f"train.{name}", getattr(self, name), 0)
        if self.rows_at_start is not None:
            between("train.rows_at_start", self.rows_at_start, 1, self.rows_per_step)
        if (self.rows_at_start is None) != (self.batch_warmup == 0):
            raise UserError(
                f"train.rows_at_start is {self.rows_at_start} and train.batch_warmup {self.batch_warmup}: a step grows "
                "from the one over the other, so set both or neither."
            )
        self.check_phases()

    def check_phases(self) -> None:
        """Raises UserError where a phase has no end, or ends not after the one before."""
        before = 0.0
        for i, phase in enumerate(self.phases):
            until = phase.get("until")
            if not isinstance(until, float) or not before < until < 1:
                raise UserError(
                    f"train.phases[{i}] ends at until: {until}, which must be a share of the budget above {before:g} "
                    "and below 1: the run's own settings hold to the end."
                )
            before = until

    def rows(self, step: int) -> int:
        """Rows of the run's step 0, 1, ..."""
        if self.rows_at_start is None or step >= self.batch_warmup:
            return self.rows_per_step
        return self.rows_at_start + (self.rows_per_step - self.rows_at_start) * step // self.batch_warmup


@dataclass(frozen=True)
class OptimSettings:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw (Loshchilov 2017); muon (Jordan 2024) for the matrices of the blocks, adamw for all else, at one learning
    rate (Liu 2025, 2.2)."""
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
    momentum: float = 0.95
    """Decay of Muon's momentum."""
    layer_decay: float = 1.0
    """Each layer learns at this times the rate of the one above it (Clark 2020, appendix); 1: all alike."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what is evaluated and exported; 0: none."""
    schedule: Literal["linear", "cosine", "noam", "wsd", "constant"] = "linear"
    """After warm-up: linear or cosine to zero, inverse square root (noam), warmup-stable-decay (wsd) or constant."""
    warmup: float = 0.1
    """Warm-up from zero: a share of the budget below 1, steps from 1 on."""
    decay: float = 0.2
    """Share of the budget in which wsd falls to zero."""

    def __post_init__(self) -> None:
        if self.learning_rate is None and self.schedule != "noam":
            raise UserError("optim.learning_rate may be null with optim.schedule: noam only.")
        if self.schedule == "noam" and self.warmup < 1:
            raise UserError(
                f"optim.schedule: noam counts its warm-up in steps, so optim.warmup={self.warmup} must be >= 1."
            )
        for name in ("weight_decay", "warmup", "epsilon"):
            between(f"optim.{name}", getattr(self, name), 0)
        between("optim.learning_rate", self.learning_rate or 0, 0)
        between("optim.decay", self.decay, 0, 1)
        between("optim.layer_decay", self.layer_decay, 0, 1)
        for name in ("beta1", "beta2", "momentum", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name} is {getattr(self, name)}: it must be at least 0 and below 1.")


@dataclass(frozen=True)
class EvaluationSettings:
    """Held-out evaluation, with masks frozen by index."""

    every: int = 500
    """Steps between evaluations; 0: only at the end."""
    examples: int = 4096
    """At most this many held-out examples, always the same ones; 0: all of them."""
    samples: int = 4
    """Samples printed at each evaluation."""
    patience: int = 0
    """Stop after so many evaluations without a better one; 0: never."""

    def __post_init__(self) -> None:
        for name in ("every", "examples", "samples", "patience"):
            between(f"evaluation.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class CheckpointSettings:
    """What is saved while training."""

    every: int = 500
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints kept, besides the best one."""
    export: Literal["last", "best", "average"] = "last"
    """Which weights become the run's model; average: the mean of the newest `keep` checkpoints (Vaswani 2017, 6.1)."""

    def __post_init__(self) -> None:
        between("checkpoint.every", self.every, 0)
        between("checkpoint.keep", self.keep, 1)


@dataclass(frozen=True)
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
    energy: str | None = None
    """The country where the machine stands, in three letters as in `KOR`: codecarbon (an extra) measures the energy of
    training, and the country's power stations say what CO2 that is. null: nothing is measured."""

    def __post_init__(self) -> None:
        between("log.every", self.every, 1)
        if self.energy is not None and find_spec("codecarbon") is None:
            raise UserError("log.energy needs codecarbon: pip install -e '.[energy]', or set log.energy to null.")
        if self.energy is not None and not re.fullmatch("[A-Z]{3}", self.energy):
            raise UserError(f"log.energy is {self.energy!r}: it must be a country's three letters, as in KOR.")
        if set(self.trackers) <= {"wandb"}:
            return
        from accelerate.utils import LoggerType  # heavy, and of no use for the default

        known = [tracker.value for tracker in LoggerType]
        if unknown := [tracker for tracker in self.trackers if tracker not in known]:
            raise UserError(f"log.trackers: {unknown[0]!r} is no tracker of Accelerate; there are: {', '.join(known)}.")


@dataclass(frozen=True)
class HubSettings:
    """Pushes to the Hub in the course of the run, in the background; at its end, of the model that it hands over."""

    repo: str | None = None
    """The repository, as me/name; it is made where there is none. null: nothing is pushed."""
    every: int = 0
    """Steps between pushes; 0: only at the end."""
    private: bool = False
    """Only you, or your organisation, can see the repository."""
    branch: str | None = None
    """The branch that is pushed to, made where there is none; null: main."""

    def __post_init__(self) -> None:
        between("hub.every", self.every, 0)
        if self.repo is None:
            if given := [name for name in ("every", "private", "branch") if getattr(self, name)]:
                raise UserError(f"hub.{given[0]} is {getattr(self, given[0])}, and nothing is pushed: set hub.repo.")
            return
        from pretraining.publish.push import check_name, check_ref  # of no use for the default

        check_name(self.repo, "hub.repo")
        check_ref(self.branch, "hub.branch")

    def check_runs(self, runs: int | None) -> None:
        """Raises UserError where one command trains several runs (None: as many as come) and would push each."""
        if self.repo and runs != 1:
            raise UserError(
                f"hub.repo is {self.repo}, and this command trains {runs or 'several'} runs, which would overwrite one "
                "another there: leave hub.repo out, and push the best one with publish.py."
            )


@dataclass(frozen=True)
class Settings:
    """Everything a run is made from; `config.yaml` in the run's folder is this, resolved."""

    name: str
    runs: str
    cache: str
    seed: int
    resume: str
    init_from: str | None
    family: str
    model: KeelConfig
    data: Any
    """The settings class of the objective's data."""
    tokenizer: Any
    """`TokenizerSettings`, or None where the model reads no tokens."""
    objective: Any
    """An `ObjectiveSettings`."""
    train: TrainSettings
    optim: OptimSettings
    evaluation: EvaluationSettings
    checkpoint: CheckpointSettings
    log: LogSettings
    hub: HubSettings
    resolved: str
    """The settings as YAML."""
    trained_positions: int = 0
    """Positions of the model's table that come, trained, from the checkpoint `init_from`."""

    def __post_init__(self) -> None:
        letters = all(c in "._-" or unicodedata.category(c)[0] in "LMN" for c in self.name)
        if not letters or not self.name.strip(".") or len(self.name.encode()) > 200:  # runs/.. is no folder of ours
            raise UserError(
                f"name is {self.name!r}: a run's name is letters, digits, '.', '_' and '-', not of dots alone, and at "
                "most 200 bytes, since it is a folder's."
            )
        between("seed", self.seed, 0, 2**32 - 1)
        self.objective.check(self)
        self.phases()

    @property
    def folder(self) -> Path:
        """Where the run leaves everything."""
        return Path(self.runs) / self.name

    def changed(self, changes: dict[str, Any]) -> Self:
        """These settings with others at `section.key`, or at a `key` of no section, validated anew.

        Raises:
            UserError: there is no such key, or the settings are at odds.
        """
        resolved = yaml.safe_load(self.resolved)
        parts: dict[str, Any] = {}
        sections: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            section, dot, name = key.partition(".")
            if not dot and key in resolved:
                parts[key] = resolved[key] = value
            elif hasattr(getattr(self, section, None), name):
                sections.setdefault(section, {})[name] = value
            else:
                raise UserError(f"there is no setting {key}.")
        for section, new in sections.items():
            parts[section] = dataclasses.replace(getattr(self, section), **new)
            resolved[section] |= new
        return dataclasses.replace(self, **parts, resolved=yaml.safe_dump(resolved, sort_keys=False))

    def phases(self) -> list[tuple[float, "Settings"]]:
        """The settings of each phase, and the share of the budget at which it ends.

        Raises:
            UserError: a phase changes what must not change in the course of a run.
        """
        found: list[tuple[float, Settings]] = []
        own = dataclasses.replace(self.train, phases=[])
        for i, phase in enumerate(self.train.phases):
            changes = {key: value for key, value in phase.items() if key != "until"}
            for key in changes:
                if key not in ("train.rows_per_step", "train.micro_batch") and not key.startswith("objective."):
                    raise UserError(
                        f"train.phases[{i}] sets {key}, and a phase changes objective.*, train.rows_per_step and "
                        "train.micro_batch alone."
                    )
            if changes.get("objective.sequence_length"):
                changes.setdefault("objective.row_length", None)  # as long as the sequence
            settings = dataclasses.replace(self, train=own).changed(changes)
            if isinstance(self.train.micro_batch, int) and "train.micro_batch" not in changes:
                # Rows that are a quarter as long: four times as many.
                size = self.train.micro_batch * self.objective.row_size // settings.objective.row_size
                settings = settings.changed({"train.micro_batch": max(1, size)})
            found.append((phase["until"], settings))
        return [*found, (1.0, self)]


# What a model's configuration takes from the tokenizer or inherits from transformers is no setting of a run.
NOT_SET_BY_HAND = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {
    "auto_map",
    "class_weights",
    "vocab_size",
    "share_encoder_decoder_embeddings",
    "pad_token_id",
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
}
