"""Save, find, rotate and load checkpoints; a checkpoint is whole or it is not there."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import SCALER_NAME
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pretraining.errors import UserError, one_line
from pretraining.files import hashes, publish, sync, to_json

MARK = "state.json"  # the last file of a checkpoint: where it is, the others are
AVERAGE = "average.safetensors"


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
    """Step, value and metrics of the best evaluation."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    stale: int = 0
    """Evaluations since the best one."""
    pending: list[dict[str, float]] = field(default_factory=list)
    """Metrics of the steps since the last log line."""
    run_id: str = ""
    """The trackers' name for this run."""
    begun_from: str = ""
    """The checkpoint that `--resume PATH` named, in full; empty: none."""
    next_rate: float | None = None
    """The learning rate that the next step would have had; None: an older version's checkpoint."""
    autotuned: dict[str, Any] = field(default_factory=dict)
    """What autotune chose at the run's start: a resumed run computes in the same way."""
    contract: dict[str, Any] = field(default_factory=dict)
    """What decides the data and the mathematics of a step; a resumed run must have the same."""


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """The run's folder is this process's while the `with` lasts.

    What a failed start leaves is deleted: the lock, and the folders that were made for it.

    Raises:
        UserError: the folder is another process's, or cannot be made.
    """
    checkpoints = folder.resolve() / "checkpoints"
    lock = FileLock(checkpoints / ".lock", timeout=0)
    made: list[Path] = []
    try:
        try:
            made = [path for path in (checkpoints, *checkpoints.parents) if not path.exists()]  # the deepest first
            checkpoints.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise UserError(f"another process is training in {folder}: wait for it, or give another --name.") from error
        except OSError as error:
            raise UserError(
                f"the run's folder {folder} cannot be made ({one_line(error)}): give another --name or --runs."
            ) from error
        yield
    finally:
        if made and lock.is_locked and [path.name for path in checkpoints.iterdir()] == [".lock"]:
            (checkpoints / ".lock").unlink()
        for path in made:
            with suppress(OSError):  # it was not made, or has something in it
                path.rmdir()
        lock.release()


def find(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; a folder of any other name than step-N is somebody's own."""
    complete = [path.parent for path in folder.glob(f"checkpoints/step-*/{MARK}")]
    named = [path for path in complete if re.fullmatch(r"step-\d+", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))


def save(accelerator: Accelerator, folder: Path, state: State, keep: int, average: AveragedModel | None) -> None:
    """Writes `checkpoints/step-N` and deletes what rotation no longer keeps; every process calls this.

    It is written under another name and renamed when it is complete and on the disk, so a kill or a power cut at any
    moment leaves the older ones.

    Args:
        average: of the weights, if there is one.
    """
    final = folder / "checkpoints" / f"step-{state.step}"
    unfinished = final.with_name(f"unfinished-{state.step}")
    if accelerator.is_main_process:
        for left in [*final.parent.glob("unfinished-*"), *final.parent.glob(final.name)]:  # by a kill
            shutil.rmtree(left)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if average is not None:
            save_model(average, str(unfinished / AVERAGE))
        write_state(unfinished, state)
        publish(unfinished, final)
        best = state.best.get("step")
        for old in find(folder)[:-keep]:
            if old.name != f"step-{best}":
                delete(old)
    accelerator.wait_for_everyone()


def delete(path: Path) -> None:
    """Deletes a checkpoint, which at no moment of that looks whole without being so."""
    (path / MARK).unlink()
    sync(path)
    doomed = path.with_name(path.name.replace("step", "unfinished"))  # the next save clears away what a kill leaves
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def seal(content: dict[str, Any]) -> str:
    """A hash of what the mark says, but for this hash itself."""
    return hashlib.blake2b(to_json(content).encode(), digest_size=16).hexdigest()


def write_state(folder: Path, state: State) -> None:
    """Last into a checkpoint: it is the mark that everything else is there, and says what that is."""
    content = {**asdict(state), "files": hashes(folder)}  # there is no mark yet
    (folder / MARK).write_text(to_json({**content, "seal": seal(content)}, indent=1))


def choose(folder: Path, resume: str) -> Path | None:
    """The checkpoint that `--resume` names; None: start anew.

    A scheduler gives the same command again: one that began in `folder` from another run's checkpoint goes on from the
    newest one that has come of it.

    Raises:
        UserError: the path is no complete checkpoint, or the run would overwrite another.
    """
    found = find(folder)
    path = None if resume in ("auto", "none") else Path(resume)
    if found and (resume == "auto" or (path and read_state(found[-1]).begun_from == str(path.resolve()))):
        return found[-1]
    if path and not (path / MARK).is_file():
        known = f"this run has: {', '.join(map(str, found))}" if found else f"{folder} has none"
        raise UserError(f"--resume: {path} is no complete checkpoint; {known}.")
    if path and found:
        if path.resolve() == found[-1].resolve():
            return path
        raise UserError(
            f"--resume: {path} is not the newest checkpoint of {folder}, and going on from it would mix two runs: give "
            "the new run another --name, or move that folder's checkpoints away."
        )
    if found or (folder / "model").exists():
        what = "--resume auto continues it" if found else "it has a model/, and no checkpoint to go on from"
        raise UserError(
            f"{folder} already holds a run: {what}; to start anew give another --name or move that folder away."
        )
    return path


def read_mark(path: Path) -> tuple[State, dict[str, str]]:
    """The state in a checkpoint, and the hashes of its files; UserError where it cannot be read."""
    try:
        content = json.loads((path / MARK).read_text())
        written = content.pop("seal", None)  # an older version's checkpoint has none, and no hashes
        if written not in (None, seal(content)):
            raise ValueError(f"{MARK} is not as it was written")
        files = content.pop("files", {})
        if "settled" in content:  # an older version's name
            content["autotuned"] = content.pop("settled")
        state = State(**content)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise unreadable(path, error) from error
    # What was not a number is null on the disk, and what was never one is no best value (of an older version).
    state.best, state.evaluation = with_nan(state.best), with_nan(state.evaluation)
    state.pending = [with_nan(metrics) for metrics in state.pending]
    if math.isnan(state.best.get("value", 0.0)):
        state.best = {}
    return state, files


def with_nan(metrics: dict[str, float]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def read_state(path: Path) -> State:
    """The state in a checkpoint; UserError where it cannot be read."""
    return read_mark(path)[0]


def verify(path: Path) -> None:
    """Raises UserError where a checkpoint's files are not those that were written."""
    _, files = read_mark(path)
    now = hashes(path) if files else {}
    for name, digest in files.items():
        if now.get(name) != digest:
            raise unreadable(path, ValueError(f"{name} is {'not as it was written' if name in now else 'missing'}"))


def unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"the checkpoint {path} cannot be read ({one_line(error)}): restore it, or move it away to go on from the one "
        "before."
    )


def check_contract(path: Path, state: State, contract: dict[str, Any]) -> None:
    """Raises UserError where the checkpoint that `state` was read from was made with other settings or data.

    Args:
        contract: the run's, or a part of it that is known so far.
    """
    for name, value in contract.items():
        saved = state.contract.get(name, value)  # an older version's checkpoint knows fewer settings
        if saved != value:
            raise UserError(
                f"{path} was trained with {name}={saved}, now it is {value}: resume with the same settings, data and "
                "versions of the libraries, or start another run with --name."
            )


def load(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    path: Path,
    state: State,
    contract: dict[str, Any],
    average: AveragedModel | None,
) -> None:
    """Weights, optimizer and average of the checkpoint that `state` was read from.

    The optimizer's options are the run's own, not the checkpoint's: they may have changed.

    Raises:
        UserError: it was made with other settings, or is damaged.
    """
    check_contract(path, state, contract)
    state.contract = contract
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    restore(accelerator, path, average)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)


def restore(accelerator: Accelerator, path: Path, average: AveragedModel | None) -> None:
    """All that a checkpoint has, as it is there; every process calls this.

    Raises:
        UserError: it is damaged, or an older version wrote into it what cannot be read safely.
    """
    if accelerator.is_main_process:
        verify(path)
    if accelerator.scaler is not None and not (path / SCALER_NAME).exists():
        raise UserError(
            f"{path} was trained without the loss scaler of train.precision: fp16: resume with the precision that it "
            "was trained with."
        )
    if any(path.glob("custom_checkpoint_*.pkl")):
        raise UserError(
            f"{path} has its average (optim.ema) in a pickle, by an older version: reading one can run code, so go on "
            "from it with that version, or start another run with --name."
        )
    try:
        accelerator.load_state(str(path))
        if average is not None:
            load_model(average, path / AVERAGE)
    except ValueError as error:  # of an optimizer, about its groups of parameters
        raise UserError(
            f"{path} is of an older version, and does not fit this one ({one_line(error)}): go on from it with that "
            "version, or start another run with --name."
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise unreadable(path, error) from error


@torch.no_grad()
def mean_weights(accelerator: Accelerator, model: nn.Module, average: AveragedModel | None, paths: list[Path]) -> None:
    """Gives the model the mean of its weights in some checkpoints (Vaswani 2017, 6.1); every process calls this.

    Args:
        model: the run's, or that of its average.
    """
    total = [torch.zeros_like(weight) for weight in model.parameters()]
    for path in paths:
        restore(accelerator, path, average)
        torch._foreach_add_(total, list(model.parameters()))
    for weight, value in zip(model.parameters(), total, strict=True):
        weight.copy_(value / len(paths))
