"""A Python process that knows nothing of ours, as a stranger's does."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def run_fresh(
    *arguments: str | Path, python: Path | str = sys.executable, given: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python in an empty folder, with a cache of its own for the code of models; offline unless told otherwise.

    Args:
        arguments: as on Python's command line. -I leaves out PYTHONPATH and the working folder, where a clone may lie.
        given: what the program reads from its standard input.
        variables: of its environment, beside ours.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": folder, **variables}
        command = [str(python), "-I", *map(str, arguments)]
        return subprocess.run(command, input=given, cwd=folder, env=environment, capture_output=True, text=True)
