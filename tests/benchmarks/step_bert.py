"""The step of BERT: ours on packed rows against transformers' `BertForPreTraining` on the same examples, padded."""

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

from modeling import KeelBertConfig
from modeling.convert import to_native
from pretraining.data import draws
from pretraining.data.batches import Batch, Steps
from pretraining.data.plan import make_plan, pack
from pretraining.data.rows import IGNORED
from pretraining.hardware import SETTLED, choose_linear, settle, synchronize
from pretraining.objectives.sentence_pairs import SentencePairs
from pretraining.optim import make_optimizer
from pretraining.parsing import parse
from tests.benchmarks.updates import padded, update, update_peer

SHORT = 0.85  # share of the chunks cut to a random length: padded, such examples waste what those of others do
RATE = 1e-4
SECONDS = 2.0  # of the probe of one way of the peer's

SIZES = {
    "mini": "hidden_size=256 num_hidden_layers=4 num_attention_heads=4 intermediate_size=1024",
    "base": "hidden_size=768 num_hidden_layers=12 num_attention_heads=12 intermediate_size=3072",
}
VOCABULARY = {"mini": 8192, "base": 30522}


class Contestant(NamedTuple):
    """One way to train on the round's examples."""

    how: str
    precision: str
    model: PreTrainedModel
    run: Callable[[], None]
    """All updates of a round."""


def useful_flops(config: KeelBertConfig, lengths: np.ndarray, masked: int) -> float:
    """Operations of the matrix products that the losses of some examples need, forward and backward.

    Layers on real tokens, attention within the own example; what only the losses read (the last feed-forward, the
    heads) at the masked tokens and at the pooled ones alone. The backward pass costs twice the forward one.

    Args:
        lengths: tokens of each example (N,).
        masked: tokens to predict among them.
    """
    width, depth, examples = config.hidden_size, config.num_hidden_layers, len(lengths)
    tokens, scores = int(lengths.sum()), int((lengths**2).sum())
    attention = depth * (8 * width * width * tokens + 4 * width * scores)
    feed_forward = 4 * width * config.intermediate_size * ((depth - 1) * tokens + masked + examples)
    mlm = 2 * width * (width + config.vocab_size) * masked
    nsp = 2 * width * (width + 2) * examples
    return 3.0 * (attention + feed_forward + mlm + nsp)


class Bert:
    """MLM and NSP on Python's documentation, cut into examples of which 35 to 50 % would be padding."""

    def __init__(self, options: Namespace, more: list[str]):
        length, size = options.sequence_length, options.size
        self.settings = parse(
            [
                "--model.family=bert",
                *(f"--model.{field}" for field in SIZES[size].split()),
                f"--model.max_position_embeddings={max(512, length)}",
                f"--model.hidden_dropout_prob={options.dropout}",
                f"--model.attention_probs_dropout_prob={options.dropout}",
                f"--objective.sequence_length={length}",
                f"--objective.short_sequence_rate={SHORT}",
                f"--train.steps={options.steps}",
                f"--optim.learning_rate={RATE}",
                *more,
            ]
        )
        self.process = PartialState(cpu=options.device == "cpu")
        self.device = self.process.device
        self.compile_peer = options.compile
        self.objective = SentencePairs(self.settings)
        self.objective.prepare(writer=True)
        # Python's documentation gives no 30,522 word pieces: the rest are names that the text has not.
        tokenizer = self.objective.tokenizer
        tokenizer.add_tokens([f"[unused{i}]" for i in range(VOCABULARY[size] - len(tokenizer))])

        # The same examples for everybody: transformers' batch by batch, ours as rows, in as many steps.
        every = self.objective.index("train", 0)
        count = options.steps * options.examples
        if count > len(every):
            raise ValueError(f"{count:,} examples a round, and there are {len(every):,}: take fewer --steps.")
        index = np.argsort(draws.mix(0, draws.PERMUTATION, every), kind="stable")[:count]
        lengths = self.objective.lengths("train", 0, index)
        row_lengths = self.objective.row_lengths
        rows = len(pack(lengths, *row_lengths))
        starts = [rows * step // options.steps for step in range(options.steps + 1)]
        plan = make_plan(
            index, lengths, row_lengths, lambda step: starts[step + 1] - starts[step], count, self.settings.seed, 0
        )
        self.steps = Steps(self.objective, "train", 0, plan, 2**31, 0, 1)
        packed = [self.steps.batch(plan.step(step), 0.0) for step in range(plan.steps)]
        batches = [self.objective.examples("train", 0, part) for part in np.split(index, options.steps)]
        self.packed: list[Batch] = send_to_device(packed, self.device)
        self.longest: list[Batch] = send_to_device([padded(self.objective, batch) for batch in batches], self.device)
        self.fixed: list[Batch] = send_to_device(
            [padded(self.objective, batch, length) for batch in batches], self.device
        )
        self.tokens = int(lengths.sum())
        masked = sum(int((batch["labels"] != IGNORED).sum()) for batch in packed)
        config = self.objective.build_model(self.settings.model).config
        self.flops = useful_flops(config, lengths, masked)
        self.padding = 1 - self.tokens / sum(batch["input_ids"].numel() for batch in self.longest)
        self.about = (
            f"BERT {size}, vocabulary {config.vocab_size:,}, dropout {options.dropout:g}, {options.examples} examples "
            f"an update of at most {length} tokens, {lengths.mean():.0f} in the mean: padded to the longest of a batch "
            f"{self.padding:.1%} is padding, packed into {rows / options.steps:.1f} rows {1 - plan.fill:.1%}; "
            f"{masked / self.tokens:.1%} of the tokens are to be predicted"
        )

    def contestants(self, threads: int) -> dict[str, Contestant]:
        """`ours`, `ours_fp32` (where that is another), `stock` and `best`, each in the way that is fastest for it."""
        found = {"ours": self.ours({"train.threads": threads})}
        if found["ours"].precision != "fp32":
            found["ours_fp32"] = self.ours({"train.threads": threads, "train.precision": "fp32"})
        found["stock"] = self.peer("fp32", "sdpa", compiled=False, fused=False)
        found["best"] = self.best_peer()
        return found

    def model(self) -> PreTrainedModel:
        torch.manual_seed(self.settings.seed)
        return self.objective.build_model(self.settings.model).to(self.device)  # type: ignore[arg-type]

    def ours(self, given: dict[str, Any]) -> Contestant:
        """Ours with these settings, what is `auto` in them and in all others found by the product's own probe."""
        settings, model = self.settings.changed({"train.micro_batch": 2**31, **given}), self.model().train()
        found, line = settle(settings, model, self.objective, self.steps.plan, self.process)
        if line:
            print(f"ours: {line}")
        settings = settings.changed({f"train.{name}": found[name] for name in SETTLED})
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
                update(model, optimizer, [batch], self.objective, train.precision, train.max_grad_norm, 0, step)

        how = f"{train.precision}, {train.kernel} attention, {train.linear} linear" + ", compiled" * train.compile
        return Contestant(how, train.precision, model, run)

    def peer(self, precision: str, attention: str, compiled: bool, fused: bool) -> Contestant:
        """transformers' own, with our initial weights.

        Padded to the longest of each batch; to one length where it is compiled, so that it is compiled once.
        """
        model = to_native(self.model()).train()
        model.set_attn_implementation(attention)
        if compiled:
            torch._dynamo.reset()
            model.compile()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=fused or None)
        batches = self.fixed if compiled else self.longest

        def run() -> None:
            for batch in batches:
                update_peer(model, optimizer, batch, precision)

        parts = [precision, f"{attention} attention", *["compiled"] * compiled, *["fused AdamW"] * fused]
        return Contestant(", ".join(parts), precision, model, run)

    def best_peer(self) -> Contestant:
        """The fastest of {fp32, bf16} x {sdpa, eager}, and of these in the faster precision compiled; fused AdamW."""
        taken: dict[tuple[str, str, bool], float] = {}

        def probe(precision: str, compiled: bool) -> None:
            for attention in ("sdpa", "eager"):
                contestant = self.peer(precision, attention, compiled, fused=True)
                taken[precision, attention, compiled] = seconds = self.seconds(contestant)
                print(f"transformers: probe: {contestant.how}: {seconds / len(self.longest) * 1000:.0f} ms an update")

        probe("fp32", False)
        probe("bf16", False)
        if self.compile_peer:
            probe(min(taken, key=taken.__getitem__)[0], True)
        return self.peer(*min(taken, key=taken.__getitem__), fused=True)

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
        """The larger of both losses' differences, dropout off, in fp32, between ours on the round's rows and the same
        weights in transformers' model on its padded batches."""
        model = contestants.get("ours_fp32", contestants["ours"]).model.eval()
        native = to_native(model)
        ours, theirs = np.zeros(2), np.zeros(2)
        counts = np.zeros(2)
        one = dict.fromkeys(self.objective.targets, 1)
        for batch in self.packed:
            out = model(**batch, num_items_in_batch=one)
            ours += [float(out.mlm_loss), float(out.nsp_loss)]
        for batch in self.longest:
            inputs = {name: value for name, value in batch.items() if name not in self.objective.targets}
            out = native(**inputs)
            pairs = (
                (out.prediction_logits, batch["labels"]),
                (out.seq_relationship_logits, batch["next_sentence_label"]),
            )
            for i, (logits, labels) in enumerate(pairs):
                theirs[i] += float(cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum"))
                counts[i] += int((labels != IGNORED).sum())
        model.train()
        print(f"losses without dropout, MLM and NSP: ours {ours / counts}, transformers' {theirs / counts}")
        return float(np.abs(ours / counts - theirs / counts).max())
