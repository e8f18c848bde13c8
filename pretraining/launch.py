"""shim"""

from accelerate import Accelerator
from accelerate.utils import DistributedType

from pretraining.errors import UserError
from pretraining.hardware import DTYPES, make_accelerator, make_process  # noqa: F401
from pretraining.settings import Settings


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
