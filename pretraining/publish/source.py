"""What is published: a run's model, and what the run left beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

import modeling
from pretraining.errors import UserError, one_line
from pretraining.export import open_exported

FAMILIES = {"keel-bert": "bert", "keel-seq2seq": "seq2seq", "keel-vit": "vit"}


@dataclass(frozen=True)
class Source:
    """A model that training has handed over."""

    folder: Path
    """The model's own: configuration, weights, code, tokenizer or image processor."""
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    """The class that wrote it, one of `modeling`'s."""

    @property
    def family(self) -> str:
        return FAMILIES[self.config.model_type]

    @property
    def run(self) -> Path | None:
        """The folder of the run that it is of; None where it lies in none."""
        return self.folder.parent if (self.folder.parent / "config.yaml").exists() else None

    @property
    def name(self) -> str:
        """The run's name, or the folder's."""
        return (self.run or self.folder).name

    def settings(self) -> dict[str, Any]:
        """The run's settings, as its config.yaml has them; empty where there is no run."""
        return yaml.safe_load((self.run / "config.yaml").read_text(encoding="utf-8")) if self.run else {}

    def file_of_run(self, name: str) -> Path | None:
        """A file that the run left; None where it did not."""
        return self.run / name if self.run and (self.run / name).exists() else None

    def open(self) -> PreTrainedModel:
        """The model on CPU, in float32, under the eager kernel.

        Raises:
            UserError: its weights cannot be read, or do not fit its configuration.
        """
        try:
            with torch.random.fork_rng():
                return open_exported(self.folder, self.model_class)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the model in {self.folder} cannot be opened ({one_line(error)}): run the command of its training "
                "again, which writes it anew from the newest checkpoint."
            ) from error


def find_source(folder: Path) -> Source:
    """The model in a folder that somebody named: a run's `model/`, or the run itself.

    Raises:
        UserError: there is no such folder, no model in it, a half-written one, or one that is none of ours.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give a run's folder, runs/NAME, or its model, runs/NAME/model.")
    model = folder.absolute()
    if not (model / "config.json").exists() and ((model / "config.yaml").exists() or (model / "checkpoints").exists()):
        model = model / "model"
        if not model.is_dir():
            raise UserError(
                f"{folder} is a run that has no model/ yet: let the command of its training finish, which writes it."
            )
    if model.name.endswith((".unfinished", ".replaced")):
        raise UserError(
            f"{folder} is half written: run the command of its training again, which finishes it, and give "
            f"{model.with_name(model.name.partition('.')[0])}."
        )
    if not (model / "config.json").exists():
        raise UserError(f"{folder} has no config.json, so it holds no model: give a run's folder or its model/.")
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{model / 'config.json'} is no model's configuration: {one_line(error)}.") from error
    names = config.architectures or []
    if config.model_type not in FAMILIES or len(names) != 1 or not hasattr(modeling, names[0]):
        raise UserError(
            f"{folder} is a model of {', '.join(names) or config.model_type}, which is none of ours: publish what "
            "pretrain.py or finetune.py has handed over."
        )
    return Source(model, config, getattr(modeling, names[0]))
