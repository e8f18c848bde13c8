"""Equal minutes, whatever is learnt: pretrain.py's run, and the plain loop of transformers' own model."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import send_to_device
from transformers import PreTrainedModel

import pretrain
from pretraining.autotune import synchronize
from pretraining.optim import learning_rate
from pretraining.settings import OptimSettings, Settings
from tests.benchmarks.updates import Inputs, update_peer


class Trained(NamedTuple):
    """A model, and what became of its minutes."""

    model: PreTrainedModel
    steps: int
    count: int
    """Tokens, or images."""
    seconds: float
    how: str
    unit: str = "tokens"

    @property
    def spent(self) -> dict[str, Any]:
        rate = self.count / self.seconds
        spent = {"steps": self.steps, self.unit: self.count, f"{self.unit}_per_second": rate, "seconds": self.seconds}
        return {**spent, "how": self.how}


def train_ours(arguments: list[str], settings: Settings, kind: type[PreTrainedModel]) -> Trained:
    """The product's run; its exported model, a `kind`."""
    pretrain.main(arguments)
    lines = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    unit = settings.objective.unit
    last = [line for line in lines if unit in line][-1]
    chosen = yaml.safe_load((settings.folder / "config.yaml").read_text())["train"]
    how = f"{chosen['precision']}, {chosen['kernel']} attention, {chosen['linear']} linear"
    model = kind.from_pretrained(settings.folder / "model")
    return Trained(model, last["step"], last[unit], last["seconds"], how, unit)


def train_peer(
    make: Callable[[], PreTrainedModel],
    batches: Callable[[], Iterator[Inputs]],
    count: Callable[[Inputs], int],
    seed: int,
    options: argparse.Namespace,
    smoothing: float = 0.0,
    unit: str = "tokens",
) -> Trained:
    """Fused AdamW, linear decay over the minutes after 10 % of warm-up, gradients clipped to 1.

    Args:
        make: the model with fresh weights.
        batches: those of all epochs, from the first one.
        count: tokens of a batch, padding not counted, or its images.
        smoothing: of the labels.
    """
    device = PartialState().device

    def start() -> tuple[PreTrainedModel, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model: Any = make().to(device).train()  # type: ignore[arg-type]
        return model, torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, fused=True)

    precision = options.peer_precision
    if precision == "auto":
        taken = {}
        for way in ("fp32", "bf16"):
            model, optimizer = start()
            stream = batches()
            times = []
            for _ in range(4):
                batch = send_to_device(next(stream), device)
                begun = time.perf_counter()
                update_peer(model, optimizer, batch, way, smoothing)
                synchronize(device)
                times.append(time.perf_counter() - begun)
            taken[way] = min(times[1:])
        precision = min(taken, key=taken.__getitem__)
        print("peer: probe: " + ", ".join(f"{way} {seconds * 1000:.0f} ms" for way, seconds in taken.items()))

    schedule = OptimSettings(learning_rate=options.peer_learning_rate, schedule="linear", warmup=0.1)
    budget, steps, seen, seconds = 60 * options.minutes, 0, 0, 0.0
    model, optimizer = start()
    stream = batches()
    begun = time.perf_counter()
    while seconds < budget:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, model.config.hidden_size, steps + 1, seconds / budget)
        batch = next(stream)
        steps, seen = steps + 1, seen + count(batch)
        update_peer(model, optimizer, send_to_device(batch, device), precision, smoothing)
        synchronize(device)
        seconds = time.perf_counter() - begun
    return Trained(model, steps, seen, seconds, f"{precision}, {model.config._attn_implementation} attention", unit)
