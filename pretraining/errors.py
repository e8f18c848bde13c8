"""What is told: a user's mistake, in one sentence by every process that finds it, and what else is to be known."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


class UserError(ValueError):
    """A mistake of the user's in settings, data or checkpoint; its message names the thing, the place and the mend.

    Every other error, a ValueError of a library's or of our own arithmetic too, is a bug and shows its traceback.
    """


def one_line(error: Exception) -> str:
    """What a library's error says, for a sentence of ours."""
    return " ".join(str(error).split())


def tell(line: str) -> None:
    """Prints what is no mistake but may surprise; of all processes the first one speaks."""
    if int(os.environ.get("RANK", 0)) == 0:
        tqdm.write(line)


@contextmanager
def one_sentence_errors(program: str, checkpoint: str = "init_from") -> Iterator[None]:
    """A `UserError` ends the program with its sentence; anything else with its traceback.

    `checkpoint` is what names the checkpoint on the program's command line.

    Every process speaks, prefixed by its rank where there are several: a rank may be alone with a mistake (a file that
    its machine lacks, rows that it alone got), and the others then wait for it in vain.
    """
    try:
        yield
    except UserError as error:
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        rank = f"[rank {os.environ.get('RANK', 0)}] " if several else ""
        message = re.sub("^init_from:", f"{checkpoint}:", str(error))
        print(f"{rank}{program}: error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)
