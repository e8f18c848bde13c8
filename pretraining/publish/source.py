"""What is published: a run's model, and what the run left beside it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

import modeling
from pretraining.errors import UserError, one_line
from pretraining.export import open_exported

SECTIONS = ("data", "objective", "train")  # of every run's settings
FAMILIES = {"keel-bert": "bert", "keel-seq2seq": "seq2seq", "keel-vit": "vit"}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a record of the run becomes a UserError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}): put back what training wrote, or move it away, and nothing is "
            "told of it."
        ) from error


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
        settings = self.record_of_run("config.yaml")
        if settings and not all(isinstance(settings.get(name), dict) for name in SECTIONS):
            raise UserError(
                f"{self.folder.parent / 'config.yaml'} has not the settings of a run: put back what training wrote, or "
                "move the model to a folder of its own."
            )
        return settings

    def record_of_run(self, name: str) -> dict[str, Any]:
        """What the run wrote down in a file, JSON or YAML; empty where it did not.

        Raises:
            UserError: the file cannot be read, or holds something else.
        """
        path = self.file_of_run(name)
        if path is None:
            return {}
        with reading(path):
            text = path.read_text(encoding="utf-8")
            found = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
            if not isinstance(found, dict):
                raise ValueError("it names no values")
        return found

    def file_of_run(self, name: str) -> Path | None:
        """A file that the run left; None where it did not."""
        return self.run / name if self.run and (self.run / name).is_file() else None

    def open(self) -> PreTrainedModel:
        """The model on CPU, in float32, under the eager kernel.

        Raises:
            UserError: its weights cannot be read, or do not fit its configuration.
        """
        try:
            with torch.random.fork_rng():
                return open_exported(self.folder, self.model_class)
        except Exception as error:  # a checkpoint can be wrong in any way
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
    model = folder.resolve()  # '..' is no name, and behind a link to a model lies its run
    run = any((model / name).exists() for name in ("config.yaml", "checkpoints", "model/config.json"))
    if run and not (model / "config.json").exists():
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
    file, mend = model / "config.json", "run the command of its training again, which writes it anew"
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # whatever a field that was changed by hand leads to
        raise UserError(f"{file} is no model's configuration ({one_line(error)}): {mend}.") from error
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{folder} is a {config.model_type} of {config.architectures}, which is none of ours: publish what "
            "pretrain.py or finetune.py has handed over."
        )
    names = config.architectures
    if not (isinstance(names, list) and len(names) == 1):
        raise UserError(f"{file} names as architectures {names!r}, and not the one class that wrote the model: {mend}.")
    model_class: Any = getattr(modeling, str(names[0]), None)
    if getattr(model_class, "config_class", None) is not type(config):
        raise UserError(
            f"{file} says that {names[0]} wrote the model, which is no class of {config.model_type}: {mend}."
        )
    return Source(model, config, model_class)
