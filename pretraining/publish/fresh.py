"""A Python process that knows nothing of ours, as a stranger's does."""

import os
import subprocess
import sys
import tempfile


def run_fresh(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs Python in an empty folder, offline, with a cache of its own for the code of models.

    Args:
        arguments: as on Python's command line. -I leaves out PYTHONPATH and the working folder, where a clone may lie.
        given: what the program reads from its standard input.
    """
    with tempfile.TemporaryDirectory() as folder:
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": folder}
        command = [sys.executable, "-I", *arguments]
        return subprocess.run(command, input=given, cwd=folder, env=variables, capture_output=True, text=True)
