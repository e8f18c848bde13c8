"""Fine-tuning a text classifier: ours against transformers' `Trainer` on the same checkpoint, by turns in one process.

    python -m tests.benchmarks.finetune --model DIR --data TRAIN --validation-data VALIDATION [--examples 4000]
        [--epochs 1] [--batch 32] [--rounds 3] [--threads 2] [--allocator keep|system]
        [--section.key value of finetune.py ...]

    python -m tests.benchmarks.finetune --model runs/bert-mini-novels/model --data glue_sst2/train.parquet \\
        --validation-data glue_sst2/validation.parquet --optim.learning_rate=3e-4

Everybody starts from the same weights (the checkpoint, and a head that the round's seed draws), sees the same examples
as often, and has the same AdamW, learning rate, schedule, warm-up, decay, clipping and dropout. A round is one training
of

- ours: packed rows in the loop's own `walk` and `update`, computed as finetune.py's own trial finds best. A step has so
  many rows that it has `--batch` examples in the mean, as near as whole rows come; the others' batches have as many;
- stock: `Trainer` at its defaults on the checkpoint in its native form: fp32, SDPA, random batches padded to their
  longest by `DataCollatorWithPadding`, a `datasets.Dataset`;
- random: `Trainer` on random batches like ours, the examples in memory, and the fastest of a short trial of
  {fp32, bf16} x {SDPA, eager attention}. The table says which it was;
- grouped: the same with `train_sampling_strategy="group_by_length"`, which computes nearly no padding, but learns from
  batches of one length each: its accuracy says what that costs.

The seconds are those of training: planning, batches, updates and a log line every 500 steps. Outside are tokenising,
loading, the trials, evaluation and saving. Medians and quartiles; a ratio is that of one round. Beside them stand the
processor's seconds, which other work on the machine disturbs less (with one thread: hardly). A round is a seed: the
accuracy on the held-out file is the mean over rounds and its standard deviation, by one evaluator, of all models in
their native form. The losses of the first step are of our first step's examples, dropout off, before any training.
`--allocator` is what the C library does with freed memory, for everybody alike: finetune.py runs with `keep`. The last
line is JSON.
"""

import argparse
import contextlib
import copy
import dataclasses
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import datasets
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device, set_seed
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from finetuning.cli import parse_finetune
from finetuning.settings import FinetuneSettings
from finetuning.tasks import make_task
from modeling.convert import to_native
from pretraining.autotune import AUTOTUNED, HOPELESS, has_bf16_units, synchronize
from pretraining.batches import Steps
from pretraining.checkpoint import State
from pretraining.data.plan import Plan
from pretraining.data.shards import count_processes
from pretraining.launch import set_allocator
from pretraining.loop import log_steps, update, walk
from pretraining.objectives.base import Objective
from pretraining.run import Phase, claim, start
from tests.benchmarks.rounds import alternate, cell, print_table, ratios, spread

NAMES = {"ours": "ours", "stock": "Trainer, stock", "random": "Trainer, random", "grouped": "Trainer, grouped"}
PEERS = [name for name in NAMES if name != "ours"]
LOG_EVERY = 500  # steps, as Trainer's own
TRIAL_STEPS = 12  # of each way of the peer's trial; the first ones warm up
WARM_STEPS = 4
EVALUATION_BATCH = 64
LIBRARIES = ("torch", "transformers", "accelerate")

Feature = dict[str, list[int] | int]
"""An example as transformers' tokenizers make it, with its label."""


class Way(NamedTuple):
    """How a Trainer computes."""

    precision: str = "fp32"
    attention: str = "sdpa"
    group_by_length: bool = False
    in_memory: bool = False

    def __str__(self) -> str:
        return ", ".join([self.precision, f"{self.attention} attention", *["by length"] * self.group_by_length])


STOCK = Way()


class Spent(NamedTuple):
    """What a training took."""

    seconds: float
    cpu: float
    """Seconds of the processor, of all threads together: other work on the machine adds little to them."""


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


class Race:
    """The examples of everybody, and what trains on them."""

    def __init__(self, settings: FinetuneSettings, objective: Objective, batch: int):
        """`batch`: examples that a step should have in the mean."""
        self.objective = objective
        plan = Phase(settings, objective, end=1.0).plan_epoch(State())
        rows = max(1, round(batch * (len(plan.offsets) - 1) / len(plan.examples)))
        self.settings = settings.changed({"train.rows_per_step": rows})
        self.plan: Plan = Phase(self.settings, objective, end=1.0).plan_epoch(State())
        self.batch = round(len(self.plan.examples) / (len(self.plan.offsets) - 1) * rows)
        self.train, self.held_out = (self.features(split) for split in ("train", "validation"))
        self.stored = datasets.Dataset.from_list(self.train)
        self.collate = DataCollatorWithPadding(objective.examples.tokenizer)
        self.device = PartialState().device
        self.autotuned: dict[str, Any] = {}
        self.ways = {"stock": STOCK}
        """How each peer computes."""
        self.scores: dict[str, list[float]] = {name: [] for name in NAMES}
        self.cpu: dict[str, list[float]] = {name: [] for name in NAMES}
        """Seconds of the processor that each training took."""

    def features(self, split: str) -> list[Feature]:
        """The split's texts, tokenised as transformers' examples do it."""
        examples = self.objective.examples
        dataset = examples.tables[split].dataset
        texts = [[text or "" for text in dataset[column]] for column in examples.shown]
        encoded = examples.tokenizer(*texts, truncation=True, max_length=examples.settings.sequence_length)
        columns: dict[str, list] = {**encoded, "labels": examples.labels[split].tolist()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def of_seed(self, seed: int) -> FinetuneSettings:
        """The settings of a round; it computes as the first one's trial has found."""
        settings = dataclasses.replace(self.settings, seed=seed, name=f"seed-{seed}-{len(self.scores['ours'])}")
        return settings.changed({f"train.{name}": value for name, value in self.autotuned.items()})

    def fresh(self, seed: int) -> PreTrainedModel:
        """What a run of this seed begins with, as `pretraining.run.start` makes it."""
        set_seed(seed)
        model = self.objective.head.build_model(copy.deepcopy(self.settings.model))
        assert self.settings.init_from is not None
        self.objective.head.load_weights(model, self.settings.init_from)
        return model

    def now(self) -> Spent:
        synchronize(self.device)
        return Spent(time.perf_counter(), time.process_time())

    def since(self, began: Spent) -> Spent:
        now = self.now()
        return Spent(now.seconds - began.seconds, now.cpu - began.cpu)

    # ---- ours ----

    def train_ours(self, seed: int) -> tuple[Spent, PreTrainedModel]:
        """What training took, and the model."""
        AcceleratorState._reset_state(True)  # a Trainer's precision may be another
        settings = self.of_seed(seed)
        with claim(settings) as (process, source):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):  # the same in every round, but for the trial
                run = start(settings, make_task(settings), process, source)
            for line in said.getvalue().splitlines():
                if line.startswith("autotune"):
                    print(line)
            self.autotuned = {name: getattr(run.settings.train, name) for name in AUTOTUNED}
            with contextlib.redirect_stdout(said), run.log.running(run.accelerator, run.settings, run.state):
                began = self.now()
                for micro_batches in walk(run):
                    run.set_learning_rate()
                    update(run, micro_batches)
                    if run.is_due(LOG_EVERY):
                        log_steps(run)
                return self.since(began), run.unwrapped

    # ---- transformers ----

    def trainer(self, seed: int, way: Way, steps: int = -1) -> Trainer:
        """The peer with our settings, at our initial weights.

        Args:
            steps: after which it ends; -1: after the epochs.
        """
        AcceleratorState._reset_state(True)
        torch.set_num_threads(self.settings.train.threads)  # type: ignore[arg-type]
        optim, train = self.settings.optim, self.settings.train
        arguments = TrainingArguments(
            output_dir=str(self.settings.folder / "trainer"),
            per_device_train_batch_size=self.batch,
            num_train_epochs=train.epochs or 1,
            max_steps=steps,
            learning_rate=optim.learning_rate or 0.0,
            lr_scheduler_type=optim.schedule,
            warmup_steps=optim.warmup,  # below 1 a share of the budget, as ours
            weight_decay=optim.weight_decay,
            adam_beta1=optim.beta1,
            adam_beta2=optim.beta2,
            adam_epsilon=optim.epsilon,
            max_grad_norm=train.max_grad_norm,
            bf16=way.precision == "bf16",
            train_sampling_strategy="group_by_length" if way.group_by_length else "random",
            logging_steps=LOG_EVERY,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=self.device.type == "cpu",
            seed=seed,
        )
        model = to_native(self.fresh(seed))
        model.set_attn_implementation(way.attention)
        data: Any = self.train if way.in_memory else self.stored
        return Trainer(model=model, args=arguments, train_dataset=data, data_collator=self.collate)

    def train_peer(self, seed: int, way: Way) -> tuple[Spent, PreTrainedModel]:
        """What training took, and the model."""
        trainer = self.trainer(seed, way)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its log
            began = self.now()
            trainer.train()
            return self.since(began), trainer.model  # type: ignore[return-value]

    def choose_way(self, grouped: bool) -> Way:
        """The fastest way for a peer, by turns, twice where it is not hopeless."""
        every = [Way(*how, grouped, in_memory=True) for how in product(("fp32", "bf16"), ("sdpa", "eager"))]

        def seconds(way: Way) -> float:
            # The same steps for every way: a step is as long as its batch, so their sum counts.
            trainer, clock = self.trainer(0, way, TRIAL_STEPS), Clock()
            trainer.add_callback(clock)
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.train()
            return clock.ends[-1] - clock.ends[WARM_STEPS - 1]

        taken = {way: seconds(way) for way in every}
        for way in every:
            if taken[way] < HOPELESS * min(taken.values()):
                taken[way] = min(taken[way], seconds(way))
        for way, best in taken.items():
            print(f"Trainer: trial: {way}: {1000 * best / (TRIAL_STEPS - WARM_STEPS):.0f} ms a step")
        return min(every, key=taken.__getitem__)

    # ---- what they are asked ----

    @torch.no_grad()
    def first_losses(self) -> dict[str, float]:
        """The losses of our first step's examples before any training, dropout off, in fp32: ours and the native."""
        model = self.fresh(0).to(self.device).eval()
        (batch,) = Steps(self.objective.examples, "train", 0, self.plan, 2**31, 0, 1)[0, 0.0]
        inputs = self.objective.head.to_model_inputs(send_to_device(batch.tensors, self.device))
        ours = float(model(**inputs, num_items_in_batch=batch.targets).loss)
        padded = self.collate([self.train[number] for number in batch.source])
        return {"ours": ours, "native": float(to_native(model)(**send_to_device(dict(padded), self.device)).loss)}

    @torch.no_grad()
    def accuracy(self, model: PreTrainedModel) -> float:
        """Share of the held-out examples that a native model classifies right, in fp32."""
        model.eval()
        right = 0
        for first in range(0, len(self.held_out), EVALUATION_BATCH):
            batch = send_to_device(dict(self.collate(self.held_out[first : first + EVALUATION_BATCH])), self.device)
            labels = batch.pop("labels")
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
        return right / len(self.held_out)

    def host_seconds(self) -> float:
        """Seconds of the processor to plan an epoch and to make its batches."""
        train = self.settings.train
        began = time.process_time()
        plan = Phase(self.settings, self.objective, end=1.0).plan_epoch(State())
        steps = Steps(self.objective.examples, "train", 0, plan, self.autotuned["micro_batch"], 0, 1)
        for _ in steps.since(0, train.workers):
            pass
        return time.process_time() - began

    def contestant(self, name: str) -> Callable[[], float]:
        """One training a call, each with another seed: its seconds; the rest goes to `cpu` and `scores`."""

        def run() -> float:
            seed = len(self.scores[name])
            if name == "ours":
                spent, trained = self.train_ours(seed)
                model = to_native(trained)
            else:
                spent, model = self.train_peer(seed, self.ways[name])
            self.cpu[name].append(spent.cpu)
            self.scores[name].append(self.accuracy(model))
            print(
                f"{NAMES[name]}, seed {seed}: {spent.seconds:.1f} s, {spent.cpu:.1f} s of the processor, accuracy "
                f"{self.scores[name][-1]:.4f}, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            return spent.seconds

        return run


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures are of."""
    facts = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else next(iter(names), platform.processor()),
        "cores": os.cpu_count(),
        "bf16_units": has_bf16_units(device),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def spread_of_seeds(scores: list[float]) -> str:
    return f"{mean(scores):.4f}" + (f" ± {stdev(scores):.4f}" if len(scores) > 1 else "")


def compare(race: Race, rounds: int) -> dict[str, Any]:
    """All rounds: a table, and its figures."""
    losses = race.first_losses()
    race.ways |= {"random": race.choose_way(grouped=False), "grouped": race.choose_way(grouped=True)}
    seconds = alternate({name: race.contestant(name) for name in NAMES}, rounds)
    trained = round(len(race.train) * (race.settings.train.epochs or 1))
    compared = {f"ratio_{name}": ratios(seconds[name], seconds["ours"]) for name in PEERS}
    compared |= {f"cpu_ratio_{name}": ratios(race.cpu[name], race.cpu["ours"]) for name in PEERS}
    chosen = race.autotuned
    how = {
        "ours": f"{chosen['precision']}, {chosen['kernel']} attention, {chosen['linear']} linear, "
        f"micro-batch {chosen['micro_batch']}",
        **{name: str(way) for name, way in race.ways.items()},
    }
    rows = [
        [
            NAMES[name],
            cell(seconds[name], ".1f"),
            cell(race.cpu[name], ".1f"),
            f"{trained / spread(seconds[name]).median:,.0f}",
            spread_of_seeds(race.scores[name]),
            how[name],
        ]
        for name in NAMES
    ]
    print_table(["", "seconds", "of the processor", "examples/s", "accuracy", "how"], *rows)
    print_table(
        ["ratios", "of seconds", "of the processor's"],
        *(
            [f"{name} / ours", cell(compared[f"ratio_{name}"], ".2f"), cell(compared[f"cpu_ratio_{name}"], ".2f")]
            for name in PEERS
        ),
    )
    host = race.host_seconds() * (race.settings.train.epochs or 1) / spread(race.cpu["ours"]).median
    difference = abs(losses["ours"] - losses["native"])
    print(
        f"\nloss of the first step: ours {losses['ours']:.7f}, native {losses['native']:.7f}, "
        f"difference {difference:.1e}\nours: planning and batches are {host:.1%} of its processor's seconds"
    )
    return {
        **{name: spread(values).median for name, values in compared.items()},
        **{f"{name}_quartiles": spread(values)[::2] for name, values in compared.items()},
        "seconds": {name: spread(values).median for name, values in seconds.items()},
        "cpu_seconds": {name: spread(values).median for name, values in race.cpu.items()},
        "accuracy": {name: mean(values) for name, values in race.scores.items()},
        "accuracy_std": {name: stdev(values) if rounds > 1 else None for name, values in race.scores.items()},
        "first_loss": losses,
        "loss_difference": difference,
        "host_share": host,
        "how": how,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="the checkpoint: a run's model/")
    parser.add_argument("--data", nargs="+", required=True, help="files of labelled texts to train on")
    parser.add_argument("--validation-data", nargs="+", required=True, help="held-out files")
    parser.add_argument("--examples", type=int, default=4000, help="training examples; 0: all")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=32, help="examples of a step, in the mean")
    parser.add_argument("--rounds", type=int, default=3, help="each with a seed of its own")
    parser.add_argument("--threads", type=int, default=count_processes(0))
    parser.add_argument("--allocator", choices=["keep", "system"], default="keep")
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as runs:
        settings = parse_finetune(
            [
                f"--model={options.model}",
                f"--data.files={json.dumps(options.data)}",
                f"--data.validation_files={json.dumps(options.validation_data)}",
                f"--data.examples={options.examples}",
                f"--train.epochs={options.epochs}",
                f"--train.threads={options.threads}",
                f"--train.allocator={options.allocator}",
                "--log.trackers=[]",
                f"--runs={runs}",
                *more,
            ]
        )
        set_allocator(options.allocator, PartialState().device)
        torch.set_num_threads(options.threads)
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        objective = make_task(settings)
        print(*objective.examples.prepare(is_builder=True), sep="\n")
        race = Race(settings, objective, options.batch)
        print(
            f"a step: {race.settings.train.rows_per_step} rows of {objective.examples.row_lengths[0]} tokens, "
            f"{race.plan.fill:.1%} full, {race.batch} examples; an epoch: {race.plan.steps} steps; peers: batches of "
            f"{race.batch}"
        )
        result = compare(race, options.rounds)
    facts = {name: getattr(options, name) for name in ("examples", "epochs", "rounds", "threads", "allocator")}
    print(json.dumps({**result, **facts, "batch": race.batch, **machine(race.device)}))


if __name__ == "__main__":
    main()
