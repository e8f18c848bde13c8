"""Compute a step that was not finite again: python -m pretraining.bad_step runs/NAME/bad-step-N"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

import modeling
from pretraining.export import write_model
from pretraining.files import to_json
from pretraining.launch import DTYPES
from pretraining.objectives.base import Batch
from pretraining.run import Run
from pretraining.step import seed_of


def keep_bad_step(run: Run, micro_batches: list[Batch]) -> Path:
    """Writes all that computing a step again needs: weights, batches, seeds; every process calls this."""
    accelerator, step = run.accelerator, run.state.step
    folder = run.settings.folder / f"bad-step-{step}"
    weights = accelerator.get_state_dict(run.model)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_model(run.unwrapped, run.objective.head.merge(weights), folder)
        facts: dict[str, Any] = {
            "step": step,
            "seed": run.settings.seed,
            "processes": accelerator.num_processes,
            "class": type(run.unwrapped).__name__,
            "precision": run.settings.train.precision,
            "kernel": run.settings.train.kernel,
        }
        (folder / "replay.json").write_text(to_json(facts, indent=1))
    accelerator.wait_for_everyone()
    to_inputs = run.objective.head.to_model_inputs
    inputs = [to_inputs(send_to_device(batch.tensors, accelerator.device)) for batch in micro_batches]
    torch.save(send_to_device(inputs, "cpu"), folder / f"rank-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    return folder


def finite(value: object) -> bool:
    tensors = value if isinstance(value, tuple | list) else [value]
    return all(bool(torch.isfinite(x).all()) for x in tensors if isinstance(x, Tensor) and x.is_floating_point())


def first_bad_module(model: nn.Module, batch: dict[str, Tensor]) -> str:
    """The first module, in the order of computation, whose output is not finite; empty: none."""
    found: list[str] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: None if finite(out) else found.append(name))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return found[0] if found else ""


def replay(folder: Path, device: str) -> bool:
    """Prints loss and gradient norm of every micro-batch, as the run computed it and in fp32.

    Returns:
        Whether all were finite in fp32.
    """
    facts = json.loads((folder / "replay.json").read_text())
    model = getattr(modeling, facts["class"]).from_pretrained(folder, attn_implementation=facts["kernel"])
    model = model.to(device).train()
    bad = [name for name, weight in model.named_parameters() if not finite(weight)]
    print(f"step {facts['step']} of seed {facts['seed']}; weights that are not finite: {', '.join(bad) or 'none'}")
    fine = not bad
    for rank in range(facts["processes"]):
        for i, batch in enumerate(torch.load(folder / f"rank-{rank}.pt", weights_only=True)):
            batch = {name: value.to(device) for name, value in batch.items()}
            for precision in dict.fromkeys((facts["precision"], "fp32")):
                torch.manual_seed(seed_of(facts["seed"], facts["step"], rank, i))
                with torch.autocast(device, DTYPES[precision], enabled=precision != "fp32"):
                    loss = model(**batch).loss
                loss.backward()
                norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
                model.zero_grad()
                print(
                    f"process {rank}, micro-batch {i}, {precision}: loss {float(loss):.6g}, gradient {float(norm):.6g}"
                )
                fine = fine and (precision != "fp32" or finite([loss, norm]))
            if module := first_bad_module(model, batch):
                print(f"  the first output that is not finite: {module}")
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="runs/NAME/bad-step-N")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if not (options.folder / "replay.json").is_file():
        parser.error(f"{options.folder} holds no replay.json: name a folder bad-step-N that a run left")
    sys.exit(0 if replay(options.folder, options.device) else 1)


if __name__ == "__main__":
    main()
