"""What the steps of all families share: ours as pretrain.py runs it, transformers' as it comes and at its best."""

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from modeling.convert import to_native
from pretraining.autotune import AUTOTUNED, autotune, synchronize
from pretraining.batches import Steps
from pretraining.cli import parse
from pretraining.data.packing import IGNORED
from pretraining.data.plan import Plan, make_plan
from pretraining.objectives.base import Batch, Objective
from pretraining.onednn import choose_linear
from pretraining.optim import make_optimizer
from pretraining.settings import Settings
from tests.benchmarks.updates import Inputs, update, update_peer

RATE = 1e-4
SECONDS = 2.0  # of the probe of one way of the peer's


def make_settings(family: str, size: str, options: Namespace, own: list[str], more: list[str]) -> Settings:
    """Of a run of `options.steps` updates with a model whose `size` is given as "field=value field=value".

    Args:
        own: arguments of the family; `more` are the user's, which come last.
    """
    fields = (f"--model.{field}" for field in size.split())
    usual = [f"--model.family={family}", *fields, f"--train.steps={options.steps}", f"--optim.learning_rate={RATE}"]
    return parse([*usual, *own, *more])


class Contestant(NamedTuple):
    """One way to train on the round's examples."""

    how: str
    precision: str
    model: PreTrainedModel
    run: Callable[[], None]
    """All updates of a round."""


class Family:
    """Contestants that train on the same examples. A subclass makes these, and what is not assigned here."""

    default_steps: int
    """Updates of a round."""
    default_examples: int
    """Examples of an update."""
    losses: dict[str, tuple[str, str]]
    """Our output that is a loss: the native output and the argument that it compares."""
    dynamic: bool | None = None
    """Whether transformers' model is compiled for all shapes at once; None: torch decides."""

    usual: list[Inputs]
    """transformers' batches as its examples make them,"""
    best: list[Inputs]
    """as it is fastest on them,"""
    compiled: list[Inputs]
    """and so where it is compiled."""
    count: int
    """Tokens of a round, padding not counted; of images, these."""
    flops: float
    """Operations that a round's losses need."""
    padding: dict[str, float]
    """Shares of the places that are padding."""
    about: str
    """A line that describes the examples."""

    def __init__(self, options: Namespace, settings: Settings, objective: Objective):
        self.settings, self.objective = settings, objective
        self.process = PartialState(cpu=options.device == "cpu")
        self.device = self.process.device
        self.compile_peer = options.compile

    def pack(self, index: np.ndarray, lengths: np.ndarray, steps: int) -> Plan:
        """Our rows of the examples `index`, in so many updates."""

        def plan(rows: Callable[[int], int]) -> Plan:
            return make_plan(
                index, lengths, self.objective.examples.row_lengths, rows, len(index), self.settings.seed, 0
            )

        rows = plan(lambda _: 1).steps
        starts = [rows * step // steps for step in range(steps + 1)]
        found = plan(lambda step: starts[step + 1] - starts[step])
        self.steps = Steps(self.objective.examples, "train", 0, found, 2**31, 0, 1)
        packed = (self.steps.batch(found.step(step), 0.0) for step in range(found.steps))
        to_inputs = self.objective.head.to_model_inputs
        self.packed = [
            Batch(to_inputs(send_to_device(batch.tensors, self.device)), batch.targets, batch.units) for batch in packed
        ]
        return found

    def contestants(self, threads: int) -> dict[str, Contestant]:
        """`ours`, `ours_fp32` (where that is another), `stock` and `best`, each in the way that is fastest for it."""
        found = {"ours": self.ours({"train.threads": threads})}
        if found["ours"].precision != "fp32":
            found["ours_fp32"] = self.ours({"train.threads": threads, "train.precision": "fp32"})
        found["stock"] = self.peer(self.usual, "fp32", "sdpa", compiled=False, fused=False)
        found["best"] = self.best_peer()
        return found

    def model(self) -> PreTrainedModel:
        torch.manual_seed(self.settings.seed)
        return self.objective.head.build_model(self.settings.model).to(self.device)  # type: ignore[arg-type]

    def ours(self, given: dict[str, Any]) -> Contestant:
        """Ours with these settings, what is `auto` in them and in all others found by the product's own trial."""
        settings, model = self.settings.changed({"train.micro_batch": 2**31, **given}), self.model().train()
        found, line = autotune(settings, model, self.objective, self.steps.plan, self.process)
        if line:
            print(f"ours: {line}")
        settings = settings.changed({f"train.{name}": found[name] for name in AUTOTUNED})
        train = settings.train
        model.set_attn_implementation(train.kernel)
        choose_linear(model, train.linear)
        if train.compile:
            torch._dynamo.reset()
            model.compile()
        optimizer = make_optimizer(model, settings.optim)
        for group in optimizer.param_groups:
            group["lr"] = RATE * group["scale"]

        def run() -> None:
            for step, batch in enumerate(self.packed):
                update(model, optimizer, [batch], train.precision, train.max_grad_norm, 0, step)

        how = f"{train.precision}, {train.kernel} attention, {train.linear} linear" + ", compiled" * train.compile
        return Contestant(how, train.precision, model, run)

    def peer(self, batches: list[Inputs], precision: str, attention: str, compiled: bool, fused: bool) -> Contestant:
        """transformers' own, with our initial weights."""
        model = to_native(self.model()).train()
        model.set_attn_implementation(attention)
        if compiled:
            torch._dynamo.reset()
            model.compile(dynamic=self.dynamic)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=fused or None)

        def run() -> None:
            for batch in batches:
                update_peer(model, optimizer, batch, precision)

        parts = [precision, f"{attention} attention", *["compiled"] * compiled, *["fused AdamW"] * fused]
        return Contestant(", ".join(parts), precision, model, run)

    def best_peer(self) -> Contestant:
        """The fastest of {fp32, bf16} x {sdpa, eager}, and of these in the faster precision compiled; fused AdamW."""
        taken: dict[tuple[str, str, bool], float] = {}

        def make(precision: str, attention: str, compiled: bool) -> Contestant:
            batches = self.compiled if compiled else self.best
            return self.peer(batches, precision, attention, compiled, fused=True)

        def probe(precision: str, compiled: bool) -> None:
            for attention in ("sdpa", "eager"):
                contestant = make(precision, attention, compiled)
                taken[precision, attention, compiled] = seconds = self.seconds(contestant)
                print(f"transformers: probe: {contestant.how}: {seconds / len(self.best) * 1000:.0f} ms an update")

        probe("fp32", False)
        probe("bf16", False)
        if self.compile_peer:
            probe(min(taken, key=taken.__getitem__)[0], True)
        return make(*min(taken, key=taken.__getitem__))

    def seconds(self, contestant: Contestant) -> float:
        """Of a round, the best of several after one that warms up; infinite where it does not fit."""
        best, started = float("inf"), 0.0
        try:
            for i in range(10):
                synchronize(self.device)
                start = time.perf_counter()
                contestant.run()
                synchronize(self.device)
                if i:
                    best = min(best, time.perf_counter() - start)
                else:
                    started = time.perf_counter()
                if i and time.perf_counter() - started > SECONDS:
                    break
        except torch.OutOfMemoryError:
            pass
        return best

    @torch.no_grad()
    def loss_difference(self, contestants: dict[str, Contestant]) -> float:
        """The largest of the losses' differences, dropout off, in fp32, between ours on the round's rows and the same
        weights in transformers' model on its padded batches."""
        model = contestants.get("ours_fp32", contestants["ours"]).model.eval()
        native = to_native(model)
        ours, theirs, counts = np.zeros((3, len(self.losses)))
        one = dict.fromkeys(self.packed[0].targets, 1)
        for batch in self.packed:
            out = model(**batch.tensors, num_items_in_batch=one)
            ours += [float(out[name]) for name in self.losses]
        for batch in self.usual:
            out = native(**batch)
            for i, (logits, target) in enumerate(self.losses.values()):
                labels = batch[target]
                theirs[i] += float(cross_entropy(out[logits].flatten(0, -2), labels.flatten(), reduction="sum"))
                counts[i] += int((labels != IGNORED).sum())
        model.train()
        names = ", ".join(self.losses)
        print(f"without dropout, {names}: ours {ours / counts}, transformers' {theirs / counts}")
        return float(np.abs(ours / counts - theirs / counts).max())
