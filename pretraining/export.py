"""A trained model becomes an ordinary checkpoint, and proves that it reads back."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from modeling.convert import TO_NATIVE, to_native
from pretraining.errors import UserError, one_line
from pretraining.files import SUMS, follow_umask, publish, read_sums, sha256, sync, write_sums
from pretraining.objectives.base import Head
from pretraining.publish.probe.samples import labels, machine, samples

# Files of our form alone.
OURS = ("*.py", "config.json", "generation_config.json", "*.safetensors*", SUMS)


def write_model(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """A model's code and configuration with these weights.

    They go into a fresh model first: a wrapped one would save the wrapper's code, not ours.

    Args:
        model: not wrapped.
    """
    fresh: Any = type(model)(model.config)  # type: ignore[call-arg, arg-type]
    fresh.load_state_dict(weights)
    if fresh.can_generate():
        fresh.generation_config = model.generation_config
    fresh.save_pretrained(folder)
    follow_umask(folder)


def write_whole(model: nn.Module, head: Head, weights: dict[str, Tensor], folder: Path) -> None:
    """All that opens anywhere: weights, code, the tokenizer or image processor, and the hashes of these files.

    Args:
        model: not wrapped.
        weights: the wrapped model's, whole.
    """
    write_model(model, head.merge(weights), folder)
    head.save_inputs(folder)
    write_sums(folder)


def export(accelerator: Accelerator, model: nn.Module, head: Head, folder: Path) -> Path:
    """Writes `model/` (weights, code, tokenizer); every process calls this."""
    weights = accelerator.get_state_dict(model)
    final, unfinished, replaced = (folder / name for name in ("model", "model.unfinished", "model.replaced"))
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        write_whole(accelerator.unwrap_model(model), head, weights, unfinished)
        shutil.rmtree(replaced, ignore_errors=True)
        sync(unfinished)  # before the old one is moved away: the moment without a model is short
        if final.exists():
            os.replace(final, replaced)
        publish(unfinished, final)
        shutil.rmtree(replaced, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def how_to_open(model: PreTrainedModel, inputs: dict[str, tuple[str, str]], folder: Path) -> str:
    """Lines of code that open the exported model anywhere.

    Args:
        inputs: as in `Head`.
    """
    auto = next(auto for auto, name in model.config.auto_map.items() if name.endswith(f".{type(model).__name__}"))
    parts = {**inputs, "model": (auto, "")}
    lines = [f"  from transformers import {', '.join(sorted({auto for auto, _ in parts.values()}))}"]
    for name, (auto, part) in parts.items():
        lines.append(f'  {name} = {auto}.from_pretrained("{folder / part}", trust_remote_code=True)')
    return "\n".join([f"\nthe model is in {folder}; it opens anywhere with", *lines])


def open_exported(folder: Path, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """The exported model, as a stranger's program opens it: on CPU, fp32, the eager kernel."""
    return model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def open_one_of(classes: Sequence[type[PreTrainedModel]], called: str, folder: Path) -> PreTrainedModel:
    """The model in a folder that somebody named, under that one of these classes of ours which wrote it.

    Raises:
        UserError: there is no such folder, or no model of these classes in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give a run's model/.")
    try:
        wrote = AutoConfig.from_pretrained(folder, trust_remote_code=False).architectures
        for model_class in classes:
            if wrote == [model_class.__name__]:
                return open_exported(folder, model_class)
        names = " or ".join(model_class.__name__ for model_class in classes)
        raise UserError(f"it says that {', '.join(wrote or ['nobody'])} wrote it, not {names}")
    except Exception as error:  # a checkpoint can be wrong in any way
        raise UserError(
            f"no {called} of ours can be read from {folder} ({one_line(error)}): give a run's model/."
        ) from error


def write_native(model: Path | str, folder: Path | str) -> None:
    """Writes a run's model as transformers' own bert, marian or vit, with all that was written beside the weights.

    That is the tokenizer, or the image processor, and how to generate: the files that SHA256SUMS names, and where there
    is none, all that lie there.

    Args:
        model: a run's `model/`.

    Raises:
        UserError: there is no model of ours.
        ValueError: it has no native form.
    """
    model, folder = Path(model), Path(folder)
    native = to_native(open_one_of(list(TO_NATIVE), "model", model))
    there = [path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()]
    for name in read_sums(model) or there:
        if not any(Path(name).match(pattern) for pattern in OURS):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model / name, folder / name)
    native.save_pretrained(folder)
    write_sums(folder)
    follow_umask(folder)


@torch.no_grad()
def write_reference(model: PreTrainedModel, inputs: dict[str, Tensor], folder: Path, path: Path) -> None:
    """Inputs and what the model makes of them, on one thread: whoever reads the model back can compare bit by bit.

    Beside them: what the tokenizer or the image processor makes of fixed samples, the label map, and the hash of
    SHA256SUMS, which could be written anew. Bits are equal under the same torch on the same kind of processor, so the
    file's metadata names both.

    Args:
        folder: the model's own, which has been written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = model(**inputs).items()
    torch.set_num_threads(threads)
    tensors = {f"input.{name}": x.contiguous() for name, x in inputs.items()}
    tensors |= {f"output.{name}": x.contiguous() for name, x in found if isinstance(x, Tensor) and x.ndim}
    facts = {**machine(), "labels": labels(model.config), "sums": sha256(folder / SUMS)}
    save_file(tensors | samples(folder), path, metadata=facts)
    follow_umask(path)
