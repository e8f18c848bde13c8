"""What a run is made with: command, code, libraries, machine and energy. A model card tells it."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pretraining import files
from pretraining.publish.probe.samples import processor

FILE = "environment.json"
ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors", "huggingface_hub")


def git(*arguments: str) -> str | None:
    """What git says of our own clone; None where there is no git, or where this is no clone."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> dict[str, Any]:
    """The commit of our code, and whether files differ from it; empty where this is no clone of ours."""
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT.resolve():  # an installed package may lie in somebody's repository
        return {}
    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def record_start(folder: Path, step: int, accelerator: Accelerator, facts: dict[str, Any]) -> None:
    """Writes environment.json: the facts of the whole run, and this start beside the earlier ones.

    Args:
        step: the step that the run goes on from; at 0 what an earlier run left is forgotten.
    """
    path = folder / FILE
    before = json.loads(path.read_text(encoding="utf-8"))["starts"] if step and path.exists() else []
    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),  # which has -m, where there was one
        "processes": accelerator.num_processes,
        "device": f"{accelerator.device.type}: {device_name(accelerator.device)}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        **commit(),
    }
    files.write_text(path, files.to_json({**facts, "starts": [*before, start]}, indent=1))


def record_end(folder: Path, spent: dict[str, float]) -> None:
    """Adds to environment.json what training took: steps, units and seconds."""
    path = folder / FILE
    recorded = json.loads(path.read_text(encoding="utf-8"))
    files.write_text(path, files.to_json(recorded | {"trained": spent}, indent=1))


@contextmanager
def measure_energy(folder: Path, country: str | None, is_main: bool) -> Iterator[None]:
    """Adds a line to emissions.csv with the energy that the machine takes meanwhile.

    Args:
        country: three letters (ISO 3166), whose power stations' CO2 is reckoned with; None: nothing is measured.
    """
    if country is None or not is_main:
        yield
        return
    from codecarbon import OfflineEmissionsTracker  # an extra

    options = {"output_dir": str(folder), "log_level": "error", "allow_multiple_runs": True}
    with OfflineEmissionsTracker(country_iso_code=country, **options):
        yield
