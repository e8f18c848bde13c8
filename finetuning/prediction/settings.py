"""What `finetuning.predict` is told beside the model and the files; nothing heavy is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pretraining.errors import UserError

Column = str | int | None
# Settings that change no byte of what is written.
NO_MATTER = ("skip_bad",)
# What a run's config.yaml says of windows, and what holds where there is none.
WINDOWS = {"sequence_length": 512, "stride": 32}


@dataclass(frozen=True)
class PredictSettings:
    """Columns, windows and how it is computed."""

    skip_bad: bool = False
    """Write a line with its error in the column `error` for each bad line of the file, instead of ending there."""
    text_column: Column = None
    """The column of the text, or of a pair's first text. If it is null, it is found where its name is usual. In a .csv
    or .tsv without a header, a column's name is its number."""
    pair_column: Column = None
    """The column of a pair's second text."""
    tokens_column: Column = None
    """The column with a list of words, for tags. If it is null and no name is usual, texts are tagged."""
    question_column: Column = None
    """The column of the question. If it is null, it is found where its name is usual."""
    context_column: Column = None
    """The column of the text that the answer stands in, or that choices continue."""
    choice_columns: list[str | int] = field(default_factory=list)
    """The columns of the choices in their order, or one column with a list."""
    image_column: Column = None
    """The column with images or their paths, seen from the file's folder. If it is null, it is `image`, `path` or
    `file`."""
    keep_columns: list[str] = field(default_factory=list)
    """Columns of the file that are written again beside the predictions."""
    top: int | None = None
    """Number of classes whose probabilities are written, the likeliest first. If it is null, all of up to 20 classes,
    else 5."""
    sequence_length: int | None = None
    """Longest window in tokens, special tokens included; a longer text is read in several windows. If it is null, that
    of the model's fine-tuning, or 512 where no config.yaml lies above its folder; never more than the model reads."""
    stride: int | None = None
    """Tokens that a window has in common with the one before it. If it is null, as the model was fine-tuned, or 32."""
    window_pooling: Literal["mean", "max"] | None = None
    """How the logits of a text's windows are brought together. If it is null, as the model was fine-tuned."""
    answer_length: int = 30
    """Longest answer in tokens."""
    beams: int | None = None
    """Beams of the search for a translation; 1 is greedy. If it is null, as generation_config.json says."""
    max_length: int | None = None
    """Longest translation in tokens. If it is null, as generation_config.json says."""
    rows: int | None = None
    """Packed rows, images or sentences computed at a time. If it is null, 2,048 tokens, 64 images or 32 sentences."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the processor has units for it, else fp32."""
    kernel: Literal["auto", "sdpa", "eager"] = "auto"
    """The kernel of attention; auto: eager for bf16 on CPU, else sdpa."""
    linear: Literal["auto", "torch", "onednn"] = "auto"
    """Linear layers in fp32 on CPU by torch or by oneDNN; auto: oneDNN where torch's own library
    is that of another maker's processors."""
    threads: int | Literal["auto"] = "auto"
    """Threads on CPU, each of which computes a batch; auto: as many as there are cores."""

    def __post_init__(self) -> None:
        least = {"sequence_length": 8, "stride": 0, "top": 1, "beams": 1, "max_length": 2, "rows": 1}
        for name, smallest in (least | {"answer_length": 1, "threads": 1}).items():
            value = getattr(self, name)
            if isinstance(value, int) and value < smallest:
                raise UserError(f"--{name} is {value}, and must be at least {smallest}.")
        if self.pair_column is not None and self.text_column is None:
            raise UserError(f"--pair_column is {self.pair_column!r}, but --text_column is not named: name both.")

    @property
    def asked(self) -> list[str]:
        """The columns that are named."""
        names = ("text", "pair", "tokens", "question", "context", "image")
        single = [getattr(self, f"{name}_column") for name in names]
        named = [column for column in single if column is not None]
        return [*map(str, named), *map(str, self.choice_columns), *self.keep_columns]


def fine_tuned_with(model: Path) -> dict[str, Any]:
    """The settings of windows in the config.yaml of the run whose model/ this is; empty where there is none."""
    try:
        content = yaml.safe_load((model.resolve().parent / "config.yaml").read_text(encoding="utf-8"))
        objective = content["objective"]
        return {name: int(objective[name]) for name in WINDOWS}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):  # of something else, or there is none
        return {}
