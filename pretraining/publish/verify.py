"""Is a checkpoint what training wrote, and does it work for a stranger? Asked of fresh processes without Keel."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from pretraining.errors import tell
from pretraining.files import REFERENCE, write_text
from pretraining.publish import probe
from pretraining.publish.environments import environment
from pretraining.publish.fresh import run_fresh
from pretraining.publish.probe.check import Check
from pretraining.publish.report import Report, read_opened
from pretraining.publish.source import Source
from pretraining.settings import CACHE

# Only the probe's own folder is on the path, and only until it is imported; Keel may be installed beside transformers.
BOOT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import probe.stranger
del sys.path[0]
probe.stranger.forget_keel()
from probe.process import main
main()
"""


def ask(python: Path, work: str, *paths: Path) -> dict[str, Any]:
    """What the probe finds under this Python, far from our folder and with no code of an earlier opening.

    Args:
        work: `all`, or `examples` of a card.
    """
    package = Path(probe.__path__[0])
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "found.json")
        places = [path.absolute() for path in paths]
        done = run_fresh("-c", BOOT, package.parent, work, out, *places, python=python)
        if out.exists():
            return json.loads(out.read_text(encoding="utf-8"))
    said = " ".join((done.stderr.strip().splitlines() or ["it said nothing"])[-1:])
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    check = {"name": "process", "result": "failed", "detail": f"it ended with {done.returncode}: {said}"}
    return {"versions": versions, "checks": [check]}


def verify(source: Source, folder: Path, versions: list[str], out: Path, cache: Path = Path(CACHE)) -> Report:
    """Opens the model in a folder under each transformers, and writes `verify.md` and `verify.json`.

    Args:
        folder: the model's own, or a copy of it.
        versions: numbers; none: the installed one.
        cache: where environments are kept.

    Raises:
        UserError: an environment cannot be made.
    """
    reference = [source.run / REFERENCE] if source.run else []
    pythons = [environment(number, cache) for number in versions] or [Path(sys.executable)]
    opened = []
    for number, python in zip(versions or [transformers.__version__], pythons, strict=True):
        tell(f"verifying under transformers {number}, in a process that knows no Keel")
        opened.append(read_opened(ask(python, "all", folder, *reference), folder))
    report = Report(source.name, opened)
    write_report(report, out)
    return report


def write_report(report: Report, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "verify.md", report.to_markdown())
    write_text(out / "verify.json", report.to_json() + "\n")


def run_examples(readme: Path, folder: Path, python: Path = Path(sys.executable)) -> list[Check]:
    """Runs each Python block of a card, each in an interpreter of its own, with the folder for the model's name."""
    return read_opened(ask(python, "examples", folder, readme), folder).checks
