"""Do the examples of a card run as they stand, each in an interpreter of its own?"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .check import Check

MINUTES = 10  # for one example
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A model's name on the Hub, where an example opens it.
NAMED = re.compile(
    r"""(?:from_pretrained\(|SentenceTransformer\(|pipeline\([^()]*?|^(?:repo|name|model)(?:_id)? = )"""
    r"""["']([\w.-]+/[\w.-]+)["']""",
    re.MULTILINE,
)
REVISION = re.compile(r""",\s*revision\s*=\s*(?:"[^"]*"|'[^']*'|\w+)""")


def localised(code: str, folder: Path) -> str:
    """The example with the folder in place of the model's name on the Hub, which has no such revision."""
    for name in set(NAMED.findall(code)):
        code = re.sub(rf"""(["']){re.escape(name)}\1""", lambda _: repr(str(folder)), code)
    return REVISION.sub("", code)


def run_example(code: str, folder: Path) -> str:
    """What is wrong with an example; "" if it runs."""
    with tempfile.TemporaryDirectory() as place:
        script = Path(place, "example.py")
        script.write_text(localised(code, folder), encoding="utf-8")
        stranger = Path(__file__).with_name("stranger.py")
        command = [sys.executable, "-I", str(stranger), str(script)]
        try:
            done = subprocess.run(
                command, cwd=place, env=os.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=60 * MINUTES,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"it had not ended after {MINUTES} minutes"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"it ended with {done.returncode}")


def check_examples(readme: Path, folder: Path) -> list[Check]:
    """Each Python block of a card."""
    checks = []
    for number, code in enumerate(BLOCK.findall(readme.read_text(encoding="utf-8")), 1):
        fault = run_example(code, folder)
        checks.append(Check(f"example {number}", "failed" if fault else "passed", fault or code.splitlines()[0]))
    return checks
