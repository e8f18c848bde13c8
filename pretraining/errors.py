"""How a user's mistake is told: in one sentence."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

HOUSE = tuple(Path(__file__).parents[1] / part for part in ("modeling", "pretraining", "finetuning"))


def one_line(error: Exception) -> str:
    """What a library's error says, for a sentence of ours."""
    return " ".join(str(error).split())


@contextmanager
def one_sentence_errors(program: str) -> Iterator[None]:
    """A user's error, raised by our own code, ends the program with its sentence; anything else with its traceback."""
    try:
        yield
    except ValueError as error:
        origin = Path(extract_tb(error.__traceback__)[-1].filename)
        if not any(origin.is_relative_to(part) for part in HOUSE):
            raise
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # once on each machine: their files may differ
            print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(1)
