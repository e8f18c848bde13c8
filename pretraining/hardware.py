"""How this machine computes: threads, precision, kernels and the size of a micro-batch, settled by a short probe."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from types import MethodType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env, send_to_device
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from pretraining.batches import Steps
from pretraining.data.plan import Plan
from pretraining.data.shards import count_processes
from pretraining.errors import UserError
from pretraining.objectives.base import Objective
from pretraining.settings import Settings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SETTLED = ("precision", "kernel", "linear", "threads", "micro_batch")
GAIN = 0.95  # what another way must bring the time down to: the clock's noise must not choose
ROWS = 8  # of a probe
SECONDS = 1.5  # of a probe, and at least two runs


def make_process() -> PartialState:
    """This process among the run's others.

    Raises:
        UserError: the launcher started processes that Accelerate does not join.
    """
    process = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world != process.num_processes:
        raise UserError(
            f"The launcher started {world} processes, but Accelerate joins {process.num_processes}: on CPU start "
            f"them with ACCELERATE_USE_CPU=true torchrun --nproc_per_node {world} pretrain.py."
        )
    return process


def make_accelerator(settings: Settings) -> Accelerator:
    """Accelerate in the run's settled precision.

    Raises:
        UserError: Accelerate is set to accumulate, a tracker is not installed, or the device has no such precision.
    """
    precision = settings.train.precision
    if precision == "fp16" and PartialState().device.type != "cuda":
        raise UserError("train.precision: fp16 needs a CUDA device: choose bf16, fp32 or auto.")
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        log_with=settings.log.trackers or None,
        project_dir=str(settings.folder),
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            f"Accelerate is set to accumulate {accelerator.gradient_accumulation_steps} times, which would divide "
            "the loss again: leave it at 1; train.micro_batch cuts a step into micro-batches."
        )
    missing = set(settings.log.trackers) - {"all"} - {tracker.value for tracker in accelerator.log_with}
    if missing:
        raise UserError(f"log.trackers: {missing.pop()!r} is not installed: install it, or take it out.")
    torch.set_float32_matmul_precision(
        "high" if settings.train.tf32 and accelerator.device.type == "cuda" else "highest"
    )
    if settings.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


class OneDNNLinear(torch.autograd.Function):
    """x W^T + b in full fp32 by oneDNN, whose products are faster than torch's on some CPUs."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return matrix_product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        of_x = matrix_product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = matrix_product(flat.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, flat.sum(0) if ctx.has_bias else None


def matrix_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.contiguous(), bias, "none", [], "")


def choose_linear(model: nn.Module, linear: str) -> None:
    """Linear layers by torch or by oneDNN; the module's class and parameters stay what they are."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if linear == "onednn":
                module.forward = MethodType(onednn_forward, module)  # type: ignore[method-assign]
            else:
                vars(module).pop("forward", None)


def onednn_forward(module: nn.Linear, x: Tensor) -> Tensor:
    return OneDNNLinear.apply(x, module.weight, module.bias)


def has_onednn_linear() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a product of two large square matrices: what this machine gives at best."""
    size = 8192 if device.type == "cuda" else 1024
    x = torch.randn(size, size, device=device, dtype=DTYPES[precision])
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        x @ x
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Probe:
    """A model and a step's rows of the run, to be timed in different ways."""

    def __init__(self, model: PreTrainedModel, objective: Objective, plan: Plan, ranks: int, device: torch.device):
        model.to(device)  # type: ignore[arg-type]
        self.model, self.objective, self.device = model.train(), objective, device
        self.steps = Steps(objective.examples, "train", 0, plan, 2**31, 0, ranks)
        self.share = self.steps.micro_batch
        """The rows of a step that fall to one process: no micro-batch is larger."""

    def batch(self, rows: int) -> Any:
        return self.steps.batch((self.steps.plan.step(0) * rows)[:rows], 0.0)

    def inputs(self, rows: int) -> dict[str, Any]:
        """A batch as the model takes it."""
        return self.objective.head.to_model_inputs(send_to_device(self.batch(rows).tensors, self.device))

    @contextmanager
    def way(self, precision: str, kernel: str, linear: str) -> Iterator[None]:
        """The model computes in this way; products of fp32 are torch's again afterwards."""
        self.model.set_attn_implementation(kernel)
        choose_linear(self.model, linear)
        half = torch.autocast(self.device.type, DTYPES[precision]) if precision != "fp32" else nullcontext()
        try:
            with half:
                yield
        finally:
            choose_linear(self.model, "torch")

    def run(self, batch: dict[str, Any]) -> None:
        """Forward and backward."""
        counts = {name: torch.ones((), device=self.device) for name in self.batch(1).targets}
        self.model(**batch, num_items_in_batch=counts).loss.backward()
        self.model.zero_grad()

    def seconds(self, rows: int, precision: str, kernel: str, linear: str) -> float:
        """Of forward and backward over `rows` rows, the best of several; infinite where they do not fit."""
        batch = self.inputs(rows)
        best, started = float("inf"), time.perf_counter()
        with self.way(precision, kernel, linear):
            try:
                for i in range(10):
                    synchronize(self.device)
                    start = time.perf_counter()
                    self.run(batch)
                    synchronize(self.device)
                    if i:  # the first one warms up
                        best = min(best, time.perf_counter() - start)
                    if i >= 2 and time.perf_counter() - started > SECONDS:
                        break
            except torch.OutOfMemoryError:
                self.model.zero_grad()
                return float("inf")
        return best

    def flops(self) -> float:
        """Floating-point operations of a step's token, forward and backward: those of its matrix products."""
        batch = self.batch(1)
        with FlopCounterMode(display=False) as counter, self.way("fp32", "eager", "torch"):
            self.run(self.objective.head.to_model_inputs(send_to_device(batch.tensors, self.device)))
        return counter.get_total_flops() / batch.units


def ways(settings: Settings, device: torch.device) -> list[dict[str, str]]:
    """Every precision, kernel and kind of linear layer that the settings leave open and the device has, usual first."""
    train, on_cpu = settings.train, device.type == "cpu"
    open_to = {
        "precision": ["fp32", "bf16"] if device.type in ("cpu", "cuda") else ["fp32"],
        "kernel": ["sdpa", "eager"] if on_cpu else ["sdpa", "eager", "varlen"],
        "linear": ["torch", "onednn"],
    }
    given = {name: getattr(train, name) for name in open_to}
    choices = [values if given[name] == "auto" else [given[name]] for name, values in open_to.items()]

    def possible(way: dict[str, str]) -> bool:
        onednn = on_cpu and way["precision"] == "fp32" and not train.compile and has_onednn_linear()
        varlen = way["precision"] != "fp32" and not settings.model.attention_probs_dropout_prob
        refused = {"onednn": not onednn, "varlen": not varlen}
        return not any(refused.get(value, False) and given[name] == "auto" for name, value in way.items())

    return [way for values in product(*choices) if possible(way := dict(zip(open_to, values, strict=True)))]


def settle(
    settings: Settings, model: PreTrainedModel, objective: Objective, plan: Plan, process: PartialState
) -> tuple[dict[str, Any], str]:
    """What is still `auto` among a run's precision, kernel, linear layers, threads and micro-batch.

    Found on the run's own model and rows; a way must be 5 % faster than the one before it to be taken. All processes
    probe together, as they will compute together, and the main one's findings hold for all.

    Returns:
        All five, with the FLOPs of a token and the machine's peak in FLOP/s; and a line that tells what was tried.
    """
    train, device = settings.train, process.device
    cores = count_processes(0)  # for each of the run's processes on this machine
    threads = cores if train.threads == "auto" else train.threads
    torch.set_num_threads(threads)
    probe = Probe(model, objective, plan, process.num_processes, device)
    way, *others = ways(settings, device)
    tried = []
    rows = min(ROWS, probe.share)
    halved = [cores // 2] if train.threads == "auto" and device.type == "cpu" and cores > 1 else []
    if others or halved:
        best = probe.seconds(rows, **way)
        tried.append(f"{' '.join(way.values())} {best * 1000:.0f} ms")
        for other in others:
            taken = probe.seconds(rows, **other)
            tried.append(f"{' '.join(other.values())} {taken * 1000:.0f} ms")
            if taken < GAIN * best:
                way, best = other, taken
        for fewer in halved:
            torch.set_num_threads(fewer)
            taken = probe.seconds(rows, **way)
            tried.append(f"{fewer} threads {taken * 1000:.0f} ms")
            threads = fewer if taken < GAIN * best else threads
            torch.set_num_threads(threads)

    size = train.micro_batch
    if size == "auto":
        a_row: dict[int, float] = {}
        larger = 1
        while larger not in a_row:
            a_row[larger] = probe.seconds(larger, **way) / larger
            if a_row[larger] > 1.5 * min(a_row.values()):  # it does not fit, or has outgrown the caches
                break
            larger = min(2 * larger, probe.share)
        size, cost = min(a_row.items(), key=lambda pair: pair[1])
        tried.append(f"micro-batch {size}: {cost * 1000:.1f} ms a row")
    machine = {"flops_per_token": probe.flops(), "peak": measure_peak(device, way["precision"])}
    settled = {**way, "threads": threads, "micro_batch": size, **machine}
    settled = broadcast_object_list([settled])[0]
    torch.set_num_threads(settled["threads"])
    return settled, "probe: " + ", ".join(tried) if tried else ""
