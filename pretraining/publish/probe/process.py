"""What the stranger's process does, and where its answer goes."""

import json
import platform
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from .check import Check, Fault, run_check
from .examples import check_examples
from .stranger import OURS


def check_stranger() -> str:
    for name in OURS:
        with suppress(ModuleNotFoundError):
            import_module(name)
            raise Fault(f"the process could import {name}")
    return "nothing of Keel could be imported"


def find(work: str, folder: Path, more: list[Path]) -> list[Check]:
    if work == "examples":
        return check_examples(more[0], folder)
    from .every import check_all  # heavy

    return [*check_all(folder, more[0] if more else None), run_check("no Keel", check_stranger)]


def main() -> None:
    """`python -I -c BOOT all OUT FOLDER [REFERENCE]`, or `... examples OUT FOLDER README`.

    What was found goes to the file OUT: libraries print as they like.
    """
    work, out, folder, *more = sys.argv[1], *map(Path, sys.argv[2:])
    checks = [asdict(check) for check in find(work, folder, more)]
    versions = {name: version(name) for name in ("transformers", "torch")} | {"python": platform.python_version()}
    out.write_text(json.dumps({"versions": versions, "checks": checks}), encoding="utf-8")
