"""A run that is told to end, by Ctrl-C or by a scheduler, ends its step and saves first."""

import os
import signal
import time
from types import FrameType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C reaches torchrun and its processes, and torchrun then signals these once more: that is not a second wish.
ECHO = 2.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0  # seconds


class Signals:
    """While the `with` lasts, a first SIGINT or SIGTERM is remembered, and a second one ends the process at once."""

    def __enter__(self) -> "Signals":
        self.process, self.number, self.since = os.getpid(), 0, 0.0
        self.before = {number: signal.signal(number, self.remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def remember(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.process:  # a process that prepares batches: it ends when this one does
            return
        if not self.number:
            self.number, self.since = number, time.monotonic()
        elif time.monotonic() - self.since >= ECHO:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def exit_code(self, accelerator: Accelerator) -> int:
        """128 + the signal, as shells count, where any process of the run has one; else 0. Every process calls this."""
        told = bool(self.number)
        if accelerator.num_processes > 1:  # or one would save while the others wait for it in the next step
            told = bool(accelerator.reduce(torch.tensor(float(told), device=accelerator.device), "sum"))
        return 128 + (self.number or signal.SIGTERM) if told else 0
