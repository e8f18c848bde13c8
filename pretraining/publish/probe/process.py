"""All checks of a checkpoint, one after the other, and what each found."""

import json
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from . import examples, files, inputs, uses, weights
from .checkpoint import Checkpoint, Fault, Skip
from .stranger import OURS

CHECKS: dict[str, Callable[[Checkpoint], str]] = {
    "files": files.check_sums,
    "weights file": files.check_weights_file,
    "auto_map": files.check_auto_map,
    "opens": weights.check_opens,
    "logits": weights.check_logits,
    "classes agree": weights.check_classes_agree,
    "tied weights": weights.check_tied,
    "buffers": weights.check_buffers,
    "labels": weights.check_labels,
    "tokenizer": inputs.check_tokenizer,
    "images": inputs.check_images,
    "pipeline()": uses.check_pipelines,
    "generate()": uses.check_generation,
    "save and load": weights.check_saves,
    "ONNX": uses.check_onnx,
}
"""What is checked, by its name in the report."""


@dataclass
class Check:
    """What one check found."""

    name: str
    result: str
    """passed, failed or skipped."""
    detail: str


def run_check(name: str, work: Callable[[], str]) -> Check:
    try:
        return Check(name, "passed", work())
    except Skip as reason:
        return Check(name, "skipped", str(reason))
    except Fault as fault:
        return Check(name, "failed", str(fault))
    except Exception as error:  # a checkpoint can be wrong in any way
        return Check(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")


def check_examples(readme: Path, folder: Path) -> list[Check]:
    """Each Python block of a card."""
    checks = []
    for number, code in enumerate(examples.python_blocks(readme), 1):
        fault = examples.run_example(code, folder)
        checks.append(Check(f"example {number}", "failed" if fault else "passed", fault or code.splitlines()[0]))
    return checks


def check_stranger() -> str:
    known = [name for name in sys.modules if name.partition(".")[0] in OURS]
    if known:
        raise Fault(f"the process knew {', '.join(known)}")
    return "nothing of Keel could be imported"


def check_all(folder: Path, reference: Path | None, names: Iterable[str]) -> list[Check]:
    """The checks of these names, and the examples of the folder's README.md if it has one."""
    checkpoint = Checkpoint(folder, reference)
    checks = [run_check(name, partial(CHECKS[name], checkpoint)) for name in names]
    if (folder / "README.md").exists():
        checks += check_examples(folder / "README.md", folder)
    return checks


def main() -> None:
    """`python -I -c BOOT all OUT FOLDER [REFERENCE]`, or `... examples OUT FOLDER README`.

    What was found goes to the file OUT: libraries print as they like.
    """
    work, out, folder, *more = sys.argv[1], *map(Path, sys.argv[2:])
    torch.set_num_threads(1)  # as when the reference was written
    logging.disable_progress_bar()
    if work == "examples":
        checks = check_examples(more[0], folder)
    else:
        checks = [run_check("no Keel", check_stranger)]
        checks += check_all(folder, more[0] if more else None, CHECKS)
    versions: dict[str, Any] = {"transformers": transformers.__version__, "torch": torch.__version__}
    versions["python"] = platform.python_version()
    out.write_text(json.dumps({"versions": versions, "checks": [asdict(check) for check in checks]}), encoding="utf-8")
