"""A trained model becomes an ordinary checkpoint, and proves that it reads back."""

import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pretraining.objectives import Objective


def export(accelerator: Accelerator, model: nn.Module, objective: Objective, folder: Path) -> Path:
    """Writes `model/` (weights, code, tokenizer); every process calls this.

    The weights go into a fresh model first: a wrapped one would save the wrapper's code, not ours.
    """
    weights = accelerator.get_state_dict(model)
    final, unfinished, replaced = (folder / name for name in ("model", "model.unfinished", "model.replaced"))
    if accelerator.is_main_process:
        unwrapped = accelerator.unwrap_model(model)
        fresh = type(unwrapped)(unwrapped.config)
        fresh.load_state_dict(weights)
        shutil.rmtree(unfinished, ignore_errors=True)
        fresh.save_pretrained(unfinished)
        objective.tokenizer.save_pretrained(unfinished)
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            os.replace(final, replaced)
        os.replace(unfinished, final)
        shutil.rmtree(replaced, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def open_exported(folder: Path, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """The exported model, as a stranger's program opens it: on CPU, fp32, the eager kernel."""
    return model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def write_probe(model: PreTrainedModel, inputs: dict[str, Tensor], path: Path) -> None:
    """Inputs and what the model makes of them, on one thread: whoever reads the model back can compare bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outputs = {f"output.{name}": value.contiguous() for name, value in model(**inputs).items() if value.ndim}
    torch.set_num_threads(threads)
    save_file({f"input.{name}": value for name, value in inputs.items()} | outputs, path)
