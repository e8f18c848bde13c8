"""The settings of finetune.py: those of pretrain.py, and a checkpoint to start from, seeds and a comparison."""

import sys
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from finetuning.settings import FinetuneSettings
from finetuning.tasks import TASKS
from modeling import CONFIGS
from modeling.convert import FAMILIES
from pretraining.cli import Option, Parser, Verb, parse, peek

PROGRAM = "finetune.py"
# The recipe of Devlin 2018, A.3, where it differs from pretraining's.
DEFAULTS: dict[str, Any] = {
    "optim.learning_rate": 5e-5,
    "train.rows_per_step": 8,
    "evaluation.every": 250,
    "evaluation.examples": 0,
    "checkpoint.every": 1000,
    "checkpoint.export": "best",
    "checkpoint.keep": 1,
}
BUDGETS = ("steps", "epochs", "tokens", "minutes")
FREE = frozenset({"pooling"})  # a head is fresh, and may read another vector than the one that pretraining used
VERB = Verb(
    PROGRAM,
    "Fine-tune a checkpoint on your own labelled data, over seeds, and compare it with fresh weights. --model "
    "DIR_OR_NAME names the checkpoint (init_from in YAML); --model scratch starts from fresh weights, with the "
    "tokenizer and the architecture at --tokenizer.path.",
    TASKS,
    DEFAULTS,
    {
        "start": Option(
            Literal["pretrained", "scratch", "both"],
            "pretrained",
            "From the checkpoint's weights, from fresh ones with its architecture and tokenizer, or from both, which "
            "are then compared.",
        ),
        "seeds": Option(int, 1, "Runs of each kind, with the seeds seed, seed + 1, ..."),
    },
    FinetuneSettings,
    "--model",
    FREE,
)


def family_of(checkpoint: str) -> str:
    """The family of a checkpoint, ours or native; where it cannot be read, `parse` says so."""
    try:
        kind = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).model_type
    except Exception:  # there are dozens
        return "bert"
    names = {config.model_type: family for family, config in CONFIGS.items()}
    names |= {family.native_config.model_type: names[family.config.model_type] for family in FAMILIES}
    return names.get(kind, "bert")


def translate(arguments: list[str]) -> list[str]:
    """The arguments with what `--model` says as the settings `init_from` and `start`."""
    found, rest = [], list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option != "--model":
            found.append(option + equals + value)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                Parser(prog=PROGRAM).error("--model: name a folder or a Hub name, or scratch.")
            value = rest.pop(0)
        if value != "scratch":
            found += ["--init_from", value]
            continue
        path = peek(arguments, "tokenizer.path", "null", PROGRAM)
        if path == "null":
            Parser(prog=PROGRAM).error("--model scratch: name the tokenizer's folder too, by --tokenizer.path.")
        found += ["--start", "scratch"]
        if Path(path, "config.json").exists():  # its architecture, too
            found += ["--init_from", path]
    return found


def parse_finetune(arguments: list[str] | None = None) -> FinetuneSettings:
    """The settings of one command; whatever is wrong ends the program with one sentence."""
    arguments = translate(sys.argv[1:] if arguments is None else arguments)
    if not any(peek(arguments, f"train.{name}", "null", PROGRAM) != "null" for name in BUDGETS):
        arguments = ["--train.epochs=3", *arguments]
    checkpoint = peek(arguments, "init_from", "null", PROGRAM)
    family = "bert" if checkpoint == "null" else family_of(checkpoint)
    settings = parse(arguments, VERB, family)
    if settings.start != "scratch" and settings.init_from is None:
        Parser(prog=PROGRAM).error("--model: name the checkpoint that is fine-tuned, or scratch for fresh weights.")
    return settings
