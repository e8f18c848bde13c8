"""Save, find, rotate and load checkpoints; a checkpoint is whole or it is not there."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import nn

from pretraining.errors import UserError, one_line


@dataclass
class State:
    """Where a run is: with weights and optimizer all that resuming needs."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    step_in_epoch: int = 0
    """Steps of this epoch done: the position in the data."""
    phase: int = 0
    """Which of the run's phases; a new one begins a new epoch."""
    passes: float = 0.0
    """Passes over the data before this epoch; an epoch that a phase ended counts by its share."""
    tokens: int = 0
    """Tokens (of images: images) seen, padding not counted."""
    seconds: float = 0.0
    """Seconds of training, without evaluation and saving."""
    best: dict[str, float] = field(default_factory=dict)
    """Step, value and measures of the best evaluation."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """Measures of the last evaluation."""
    stale: int = 0
    """Evaluations since the best one."""
    pending: list[dict[str, float]] = field(default_factory=list)
    """Measures of the steps since the last log line."""
    run_id: str = ""
    """The trackers' name for this run."""
    settled: dict[str, Any] = field(default_factory=dict)
    """What the probe found at the run's start: a resumed run computes in the same way."""
    contract: dict[str, Any] = field(default_factory=dict)
    """What decides the data and the mathematics of a step; a resumed run must have the same."""


HELD: dict[Path, FileLock] = {}


def claim(folder: Path) -> None:
    """The run's folder is this process's until it ends; UserError where it is another's."""
    path = folder.resolve() / "checkpoints" / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        HELD.setdefault(path, FileLock(path, timeout=0)).acquire()
    except Timeout as error:
        raise UserError(f"another process is training in {folder}: wait for it, or give another --name.") from error


def find(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    complete = [path.parent for path in folder.glob("checkpoints/step-*/state.json")]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("step-")))


def save(accelerator: Accelerator, folder: Path, state: State, keep: int) -> None:
    """Writes `checkpoints/step-N` and deletes what rotation no longer keeps; every process calls this.

    It is written under another name and renamed when it is complete, so a kill at any moment leaves the older ones.
    """
    final = folder / "checkpoints" / f"step-{state.step}"
    unfinished = final.with_name(f"unfinished-{state.step}")
    if accelerator.is_main_process:
        for left in final.parent.glob("unfinished-*"):  # by a kill
            shutil.rmtree(left)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_state(unfinished, state)
        os.replace(unfinished, final)
        best = state.best.get("step")
        for old in find(folder)[:-keep]:
            if old.name != f"step-{best}":
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def write_state(folder: Path, state: State) -> None:
    """Last into a checkpoint: it is the mark that everything else is there."""
    path = folder / "state.json"
    with path.open("w") as file:
        json.dump(asdict(state), file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def choose(folder: Path, resume: str) -> Path | None:
    """The checkpoint that `--resume` names; None: start anew.

    Raises:
        UserError: the path is no complete checkpoint, or a run that shall start anew would overwrite another.
    """
    found = find(folder)
    if resume == "auto":
        return found[-1] if found else None
    if resume == "none":
        if found or (folder / "model").exists():
            raise UserError(
                f"{folder} already holds a run: --resume auto continues it; to start anew give another --name or "
                "move that folder away."
            )
        return None
    path = Path(resume)
    if not (path / "state.json").is_file():
        known = f"this run has: {', '.join(map(str, found))}" if found else f"{folder} has none"
        raise UserError(f"--resume: {path} is no complete checkpoint; {known}.")
    if found and path.resolve() != found[-1].resolve():
        raise UserError(
            f"--resume: {path} is not the newest checkpoint of {folder}, and going on from it would mix two runs: give "
            "the new run another --name, or move that folder's checkpoints away."
        )
    return path


def read_state(path: Path) -> State:
    """The state in a checkpoint; UserError where it cannot be read."""
    try:
        return State(**json.loads((path / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"the checkpoint {path} cannot be read ({one_line(error)}): restore it, or move it away to go on from the one "
        "before."
    )


def load(accelerator: Accelerator, path: Path, state: State, contract: dict[str, Any]) -> None:
    """Weights and optimizer of the checkpoint that `state` was read from.

    Raises:
        UserError: it was made with other settings, or is damaged.
    """
    for name, value in contract.items():
        saved = state.contract.get(name, value)  # an older version's checkpoint knows fewer settings
        if saved != value:
            raise UserError(
                f"{path} was trained with {name}={saved}, now it is {value}: resume with the same settings, or start "
                "another run with --name."
            )
    try:
        accelerator.load_state(str(path))
    except (OSError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise unreadable(path, error) from error


@torch.no_grad()
def average(accelerator: Accelerator, model: nn.Module, paths: list[Path]) -> None:
    """Gives the model the mean of its weights in some checkpoints (Vaswani 2017, 6.1); every process calls this."""
    total = [torch.zeros_like(weight) for weight in model.parameters()]
    for path in paths:
        accelerator.load_state(str(path))
        torch._foreach_add_(total, list(model.parameters()))
    for weight, value in zip(model.parameters(), total, strict=True):
        weight.copy_(value / len(paths))
