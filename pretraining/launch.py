"""How a run's processes start: who takes part, Accelerate, and what the C library does with freed memory."""

import ctypes
import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, parse_flag_from_env

from pretraining.errors import UserError
from pretraining.settings import Settings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Parameters of mallopt, of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
# What users set outside decides, not we. Every other allocator that is preloaded has malloc in its name.
MALLOC_VARIABLES = [f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")]
MALLOC_WORDS = {"GLIBC_TUNABLES": "glibc.malloc", "LD_PRELOAD": "malloc"}


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


def set_allocator(allocator: str, device: torch.device) -> str:
    """Makes the C library hold on to freed memory, where `train.allocator` asks for it; a line for the log, or "".

    By default glibc maps every block above 32 MiB anew, and gives the free end of its heap back: a training step frees
    all its activations, and takes them again page by page in the next one.

    Raises:
        UserError: `keep` is asked for, and the C library is not glibc, or the environment says otherwise.
    """
    if allocator == "system" or (allocator == "auto" and device.type != "cpu"):
        return ""
    outside = [name for name in MALLOC_VARIABLES if name in os.environ]
    outside += [name for name, word in MALLOC_WORDS.items() if word in os.environ.get(name, "")]
    if outside:
        obstacle = f"the environment's {outside[0]} already decides about freed memory"
    elif not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        obstacle = "the C library is not glibc"
    else:
        mallopt = ctypes.CDLL(None).mallopt
        # An older glibc refuses a threshold above 32 MiB: there no block is mapped by itself, whatever its size. And -1
        # is "never": mallopt takes an int, in which 2 GiB, as a step may free, have no room.
        set_all = (mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_MAX, 0)) and mallopt(M_TRIM_THRESHOLD, -1)
        assert set_all, "mallopt refused a parameter"
        return "allocator: freed memory is kept for the next step (train.allocator: system gives it back)"
    if allocator == "keep":
        raise UserError(f"train.allocator is keep, but {obstacle}: set train.allocator to auto or system.")
    return f"allocator: as the system has it, for {obstacle}"


def avoid_cudnn_attention() -> None:
    """On CUDA, leaves scaled dot products to torch's own kernels.

    On Hopper torch prefers cuDNN's for bf16, which plans anew for every shape of a batch. Where shapes change from
    batch to batch (predicting, generating, evaluating), planning took nine tenths of the time on an H200.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def set_numerics(settings: Settings, device: torch.device) -> None:
    """TF32 and deterministic kernels, on CUDA, as the settings have them."""
    avoid_cudnn_attention()
    torch.set_float32_matmul_precision("high" if settings.train.tf32 and device.type == "cuda" else "highest")
    if settings.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def make_accelerator(settings: Settings) -> Accelerator:
    """Accelerate in the run's precision.

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
    set_numerics(settings, accelerator.device)
    return accelerator


def check_scale(accelerator: Accelerator, settings: Settings) -> None:
    """Raises UserError where what is asked for has not been shown right under the launcher's way of scaling."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        return
    search = settings.objective.searches(settings)  # which reads weights outside of the calls that gather them
    unproven = {
        "optim.optimizer: muon": settings.optim.optimizer == "muon",
        "optim.ema": settings.optim.ema,
        "train.phases": settings.train.phases,
        # Evaluations call the model inside: there it is the wrapper that gathers the weights.
        "fsdp_version: 1": kind == DistributedType.FSDP and not accelerator.is_fsdp2,
        search: search,
    }
    for name, asked in unproven.items():
        if asked:
            raise UserError(f"{name} has not been shown right under {kind.value}: do without it, or use DDP.")
    rows = -(-settings.train.rows_per_step // accelerator.num_processes)
    if kind != DistributedType.FSDP and settings.train.micro_batch != rows:
        raise UserError(
            f"Under {kind.value} a step must be one micro-batch on every process: set train.micro_batch to {rows}."
        )
    if kind == DistributedType.DEEPSPEED:  # which asks for it where no loader is prepared
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = rows
