"""The model of a folder, ours or native, and how it computes: precision, kernel, linear layers and threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from finetuning.prediction.settings import PredictSettings
from modeling.convert import FROM_NATIVE, TO_NATIVE
from pretraining.autotune import Candidate, has_bf16_units
from pretraining.data.shards import count_processes
from pretraining.errors import UserError, one_line
from pretraining.init_from import open_checkpoint, quietly
from pretraining.launch import DTYPES
from pretraining.onednn import choose_linear, has_onednn_linear

ROUNDS = 3  # of a trial
# Another way to compute must need less than this share of the usual one's time: a run that is begun anew on the same
# machine shall choose the same, for its last digits depend on it.
CLEARLY = 0.8


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


class Computer:
    """A model that computes in one way."""

    def __init__(self, model: PreTrainedModel, settings: PredictSettings):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(self.device)  # type: ignore[arg-type]
        self.model: Any = model
        self.settings = settings
        self.candidate = self.candidates()[0]

    def candidates(self) -> list[Candidate]:
        """The ways to compute that the settings leave open, the usual one first."""
        settings, on_cpu = self.settings, self.device.type == "cpu"
        precision: str = settings.precision
        if precision == "auto":
            precision = "bf16" if has_bf16_units(self.device) else "fp32"
        # In bf16 products written out are what CPUs are fastest at.
        kernels = ["eager", "sdpa"] if on_cpu and precision == "bf16" else ["sdpa", "eager"]
        linears = ["torch"]
        if on_cpu and precision == "fp32" and has_onednn_linear():
            linears.append("onednn")
        kernels = kernels if settings.kernel == "auto" else [settings.kernel]
        linears = linears if settings.linear == "auto" else [settings.linear]
        threads = count_processes(0) if settings.threads == "auto" else settings.threads
        return [Candidate(precision, kernel, linear, threads) for kernel, linear in product(kernels, linears)]

    def compute_as(self, candidate: Candidate) -> None:
        self.candidate = candidate
        torch.set_num_threads(candidate.threads)
        self.model.set_attn_implementation(candidate.kernel)
        choose_linear(self.model, candidate.linear)

    @contextmanager
    def computing(self) -> Iterator[None]:
        half = self.candidate.precision != "fp32"
        dtype = DTYPES[self.candidate.precision] if half else None
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=half):
            yield

    def choose(self, run: Callable[[], object]) -> Candidate:
        """The way to compute that is used: the usual one, unless another one is clearly faster."""
        candidates = self.candidates()
        best = dict.fromkeys(candidates, float("inf"))
        if len(candidates) == 1:
            return candidates[0]
        for number in range(ROUNDS + 1):
            for candidate in candidates:
                self.compute_as(candidate)
                with self.computing():
                    start = perf_counter()
                    run()
                    taken = perf_counter() - start
                if number:  # before that, kernels are compiled and memory is taken
                    best[candidate] = min(best[candidate], taken)
        fastest = min(candidates, key=best.__getitem__)
        return fastest if best[fastest] < CLEARLY * best[candidates[0]] else candidates[0]
