"""The process that uploads a snapshot while a run trains: it reads what to push as a line of JSON, prints the commit,
and ends when its standard input does, as the run has then ended."""

import json
import os
import sys
import threading
from pathlib import Path

from pretraining.errors import UserError
from pretraining.publish.push import upload


def end_with_the_run() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing more is written to it
    os._exit(1)


def main() -> None:
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_the_run, daemon=True).start()
    try:
        print(upload(Path(task.pop("folder")), **task))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
