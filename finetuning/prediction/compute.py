"""The model of a folder, ours or native, and how it computes: precision, kernel, linear layers and threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, PreTrainedModel

from finetuning.prediction.settings import PredictSettings
from modeling.convert import FROM_NATIVE, TO_NATIVE
from pretraining.autotune import Candidate, has_bf16_units
from pretraining.data.shards import count_processes
from pretraining.errors import UserError, one_line
from pretraining.init_from import open_checkpoint, quietly
from pretraining.launch import DTYPES, avoid_cudnn_attention
from pretraining.onednn import choose_linear, has_onednn_linear

Batch = TypeVar("Batch")
Outputs = TypeVar("Outputs")


def class_of(folder: Path) -> type[PreTrainedModel]:
    """Our class of the model in a folder.

    Raises:
        UserError: there is no model, or it is of a class that is neither ours nor has one of ours.
    """
    if not (folder / "config.json").is_file():
        if (folder / "model" / "config.json").is_file():
            raise UserError(f"{folder} is a run's folder: give {folder / 'model'}.")
        raise UserError(f"there is no model in {str(folder)!r}: give the folder model/ of a run, or a native one.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json cannot be read ({one_line(error)}): give a model's folder.") from error
    classes = {ours.__name__: ours for ours in TO_NATIVE}
    classes |= {native.__name__: ours for native, (_, ours) in FROM_NATIVE.items()}
    name = (config.architectures or ["no class"])[0]
    if name not in classes:
        raise UserError(f"{folder} was written by {name}, which is none of ours and no native bert, vit or marian.")
    return classes[name]


def open_model(folder: Path, ours: type[PreTrainedModel]) -> PreTrainedModel:
    """The model in a folder as one of ours, in fp32, ready to predict.

    Raises:
        UserError: its weights are not whole.
    """
    try:
        with quietly():
            model, missing = open_checkpoint(str(folder), ours)
    except UserError as error:
        raise UserError(str(error).removeprefix("init_from: ")) from error
    if missing:
        raise UserError(
            f"the weights of {folder} lack {min(missing)}, so that it would predict by chance: fine-tune it first."
        )
    return model.eval()


def has_foreign_mkl() -> bool:
    """Whether torch multiplies by Intel's library on a processor that is not Intel's, where oneDNN is faster."""
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        return False
    return torch.backends.mkl.is_available() and "GenuineIntel" not in processor


class Computer:
    """A model that computes in one way."""

    def __init__(self, model: PreTrainedModel, settings: PredictSettings):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(self.device)  # type: ignore[arg-type]
        self.model: Any = model
        self.settings = settings

    def choose(self) -> Candidate:
        """The way to compute that the settings ask for; what is `auto` is chosen by rules.

        They are no race, unlike those of training: a command that is given again shall write the same digits.
        """
        settings, on_cpu = self.settings, self.device.type == "cpu"
        precision: str = settings.precision
        if precision == "auto":
            precision = "bf16" if has_bf16_units(self.device) else "fp32"
        kernel: str = settings.kernel
        if kernel == "auto":  # in bf16 CPUs are fastest at products that are written out
            kernel = "eager" if on_cpu and precision == "bf16" else "sdpa"
        linear: str = settings.linear
        if linear == "auto":
            can_choose = on_cpu and precision == "fp32" and has_onednn_linear()
            linear = "onednn" if can_choose and has_foreign_mkl() else "torch"
        threads = count_processes(0) if settings.threads == "auto" else settings.threads
        return Candidate(precision, kernel, linear, threads)

    def compute_as(self, candidate: Candidate) -> None:
        self.candidate = candidate
        torch.set_num_threads(1)  # see `map`
        avoid_cudnn_attention()
        self.model.set_attn_implementation(candidate.kernel)
        choose_linear(self.model, candidate.linear)

    @contextmanager
    def computing(self) -> Iterator[None]:
        half = self.candidate.precision != "fp32"
        dtype = DTYPES[self.candidate.precision] if half else None
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=half):
            yield

    def map(self, forward: Callable[[Batch], Outputs], batches: Iterable[Batch]) -> Iterator[tuple[Batch, Outputs]]:
        """Each batch, and what `forward` makes of it, in order; on CPU as many at a time as there are threads.

        One thread computes a batch. Threads that share each product of a small model wait for one another most of the
        time; and so the digits do not depend on how many there are.
        """

        def compute(batch: Batch) -> Outputs:
            with self.computing():  # which holds for one thread
                return forward(batch)

        workers = self.candidate.threads if self.device.type == "cpu" else 1
        ahead: deque[tuple[Batch, Future[Outputs]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for batch in batches:
                ahead.append((batch, pool.submit(compute, batch)))
                if len(ahead) > workers:  # no more in memory than are computed, and the next
                    done, future = ahead.popleft()
                    yield done, future.result()
            for done, future in ahead:
                yield done, future.result()
