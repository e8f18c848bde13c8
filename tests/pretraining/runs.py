"""Starting runs, and reading what they leave.

Importing torch and transformers takes longer than a tiny run, so runs are begun in this process, or in a fork of it
where the test is about processes. `pretrain` and `torchrun` start anew, as users do.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from pretrain import main

ROOT = Path(__file__).parents[2]
TIMES = {"seconds", "tokens_per_second", "images_per_second", "mfu"}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

# Of every tiny run: what is not the machine's to choose, and widths.
FIXED = ["--train.precision=fp32", "--train.kernel=sdpa", "--train.linear=torch", "--log.trackers=[]", "--log.every=1"]
WIDTHS = ["--model.hidden_size=32", "--model.num_attention_heads=2", "--model.intermediate_size=64"]


# ---- runs ----


def run_here(arguments: list[str], folder: Path, name: str, *more: str) -> Path:
    """A run in this process, on one thread; its folder."""
    AcceleratorState._reset_state(True)  # another precision is another state
    main([*arguments, "--train.threads=1", f"--runs={folder}", f"--name={name}", *more])
    return folder / name


def environment(**more: str) -> dict[str, str]:
    """Ours, with no trace of a launcher, on one thread: the processes of a test must not depend on the machine."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**inherited, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", **more}


def begin(*command: str | Path, **variables: str) -> subprocess.Popen:
    """A Python process that starts anew."""
    pipe, whole = subprocess.PIPE, [sys.executable, *map(str, command)]
    return subprocess.Popen(whole, stdout=pipe, stderr=pipe, text=True, env=environment(**variables))


def ended(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """How it has ended, and what it said."""
    output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def pretrain(arguments: list[str], **variables: str) -> subprocess.CompletedProcess:
    """A run as users start it, on one thread."""
    return ended(begin(ROOT / "pretrain.py", "--train.threads=1", *arguments, **variables))


def torchrun(program: Path, *arguments: str | Path) -> subprocess.Popen:
    """A program on two processes, which meet wherever there is a free port."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    return begin(*launcher, "--rdzv-endpoint=localhost:0", program, *arguments, PYTHONPATH=str(ROOT))


def fork(function: Callable[[], object], output: Path, **variables: str) -> int:
    """Begin `function` in a fork of this process that writes to the file `output`; the fork's process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with output.open("w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            os.environ.clear()
            os.environ.update(environment(**variables))
            AcceleratorState._reset_state(True)
            try:
                function()
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)  # pytest is the parent's


def fork_ranks(function: Callable[[], object], output: Path, processes: int = 2) -> list[int]:
    """Begin `function` in as many forks as a launcher would start processes; rank r writes to the file `output`-r."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [
        fork(function, Path(f"{output}-{rank}"), **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]


def wait(*processes: int, seconds: float = 900) -> list[int]:
    """How forks have ended: their exit codes, the negative signal where one was killed.

    Where one fails, the others wait for it in vain: they are killed, as they are when the time is over.
    """
    codes: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(codes) < len(processes):
        for process in processes:
            if process not in codes:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    codes[process] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or time.monotonic() > end:
            for process in set(processes) - set(codes):
                os.kill(process, signal.SIGKILL)
                codes[process] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        time.sleep(0.01)
    return [codes[process] for process in processes]


def is_running(process: int) -> bool:
    """Whether a fork has not ended; it is still to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


# ---- what they leave ----


def lines(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl but for what the clock decides."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read]


def newest(folder: Path) -> Path:
    """The newest checkpoint."""
    return max(folder.glob("checkpoints/step-*"), key=lambda path: int(path.name[5:]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the exported model."""
    return load_file(folder / "model" / "model.safetensors")


# ---- what they learn from ----


def write_numbers(path: Path) -> str:
    """900 numbers of up to eight digits in words and in digits, a pair a line: a task that is learnt in seconds.

    Returns:
        The setting that names the file.
    """
    random = np.random.default_rng(0)
    numbers = [random.integers(10, size=random.integers(1, 9)) for _ in range(900)]
    pairs = ("\t".join((" ".join(NUMBERS[d] for d in n), "".join(map(str, n)))) for n in numbers)
    if not path.exists():
        path.write_text("\n".join(pairs) + "\n")
    return f'--data.files=["{path}"]'


def learn_numbers(arguments: list[str], runs: Path) -> Path:
    """A run that learns to read numbers: held-out ones come out digit by digit, far above what guessing gives."""
    more = ["--train.steps=250", "--optim.optimizer=muon", "--optim.learning_rate=1e-2", "--objective.beams=2"]
    folder = run_here([*arguments, *more, "--model.hidden_dropout_prob=0"], runs, "numbers", "--log.every=50")
    results = json.loads((folder / "results.json").read_text())
    assert results["eval_exact_match"] > 0.5, results
    return folder
