"""Pushes in the course of a run (`hub.every`): a snapshot of its model, uploaded by a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError

from pretraining.errors import one_line
from pretraining.publish.endpoint import prepare_hub_client
from pretraining.publish.hub_errors import Unreachable, without_token
from pretraining.publish.push import check_repo
from pretraining.settings import HubSettings

ROOT = Path(__file__).parents[2]
CARD = """---
library_name: transformers
---
# {name}, step {step:,}

{state}
{metrics}"""


class Pushes:
    """One at a time, by the main process. A push that fails is told, and the run goes on.

    The uploading process is another one, since a fork of this one (for `train.workers`) must not meet the client's
    threads, and since it can be ended at once. It ends by itself when this process does, however that ends: it reads
    from a pipe, whose other end is here.
    """

    def __init__(self, settings: HubSettings, folder: Path, say: Callable[[str], None], main: bool):
        """`folder` is the run's; only the `main` process does anything."""
        self.settings, self.name, self.say, self.main = settings, folder.name, say, main
        self.snapshot = folder / "pushed"  # while a push is on its way
        self.process: subprocess.Popen | None = None
        self.sender: threading.Thread | None = None
        self.step = 0
        """Of the last push."""
        self.told = ""
        """How the last failure was told: the same one is not told again."""

    def check(self) -> None:
        """Raises UserError where no push could succeed; that the Hub cannot be reached just now is told."""
        if self.settings.repo is None or not self.main:
            return
        prepare_hub_client()  # for the processes that upload
        try:
            check_repo(self.settings.repo, private=self.settings.private, setting="hub.repo")
        except Unreachable as error:
            self.say(f"hub.repo: {error} Training goes on meanwhile.")

    def __enter__(self) -> "Pushes":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """A run that stops early does not wait for a push; what has arrived of it is not sent again."""
        if error is not None and self.process is not None:
            self.process.kill()

    def begin(self, write: Callable[[Path], object], step: int, metrics: dict[str, float], ended: bool = False) -> None:
        """Begins to push what `write` puts into a folder, and comes back; or tells that the push before is not done.

        Args:
            metrics: of the last evaluation.
            ended: whether it is the model that the run hands over.
        """
        if self.settings.repo is None or not self.main:
            return
        if self.sender is not None and self.sender.is_alive():
            self.say(f"step {step}: not pushed, since the push of step {self.step} is still on its way")
            return
        state = "The model that the run handed over." if ended else "A snapshot of a run that goes on."
        table = "".join(f"| {name} | {value:.4g} |\n" for name, value in metrics.items())
        table = table and f"\n| held out | |\n|---|---|\n{table}"
        try:
            shutil.rmtree(self.snapshot, ignore_errors=True)
            write(self.snapshot)
            card = CARD.format(name=self.name, step=step, state=state, metrics=table)
            (self.snapshot / "README.md").write_text(card, encoding="utf-8")
        except (OSError, SafetensorError) as error:
            self.tell_failure(step, one_line(error))
            return
        self.step = step
        self.sender = threading.Thread(target=self.send, args=(step,), daemon=True)
        self.sender.start()

    def end(self, write: Callable[[Path], object], step: int, metrics: dict[str, float]) -> None:
        """Pushes the model that the run hands over, after what is still on its way, and waits for it."""
        self.wait()
        self.told = ""  # how the last one ends is told in any case
        self.begin(write, step, metrics, ended=True)
        self.wait()

    def wait(self) -> None:
        if self.sender is not None:
            self.sender.join()

    def send(self, step: int) -> None:
        """Uploads the snapshot, and tells how that ended."""
        options = self.settings
        task = {"folder": str(self.snapshot.absolute()), "repo": options.repo, "private": options.private}
        task |= {"branch": options.branch, "message": f"{self.name}, step {step}"}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pretraining.publish.send"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run, which then saves
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()  # and not closed: that would end it
        errors = self.process.stderr.read()
        commit = self.process.stdout.read().strip().rpartition("\n")[2]
        if self.process.wait() == 0:
            self.told = ""
            self.say(f"step {step}: pushed to {options.repo}, commit {commit}")
        else:
            self.tell_failure(step, without_token(errors.strip().rpartition("\n")[2] or "its process was ended"))
        shutil.rmtree(self.snapshot, ignore_errors=True)

    def tell_failure(self, step: int, sentence: str) -> None:
        if sentence != self.told:
            self.say(f"step {step}: not pushed, and the run goes on: {sentence}.")
        self.told = sentence
