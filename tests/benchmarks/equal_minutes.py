"""What is learnt in equal minutes: pretrain.py against `BertForMaskedLM` trained as transformers' run_mlm does it.

    python -m tests.benchmarks.equal_minutes --task bert-pydocs [--minutes 4] [--threads 2] [--only ours|peer]
        [--peer-precision auto|bf16|fp32] [--peer-learning-rate 5e-4] [--peer-dropout 0.1] [--section.key value ...]
    python -m tests.benchmarks.equal_minutes --task bert-novels --data FILES --validation-data FILES [...]

Ours is the product: pretrain.py with the task's config and this budget, its exported model converted to native BERT.
The peer has the same documents, tokenizer and size, transformers' usual dropout unless told otherwise, and starts as
transformers does. Every document is
tokenised with its special tokens, all are joined and cut into blocks of the config's sequence length, and
`DataCollatorForLanguageModeling` hides 15 % of a block anew each time; batches of 32, fused AdamW, linear decay after
10 % of warm-up, clipping to 1, in a plain loop, which is not slower than Trainer. Its precision is bf16 or fp32:
`auto` takes what a short probe finds faster. The minutes are those of training, data included, by each one's own
clock; evaluation, saving and probes are outside.

Both are then asked the same by one evaluator, native `BertForMaskedLM` in fp32 on held-out text, with masks that are
drawn once (15 %: 80 % [MASK], 10 % random, 10 % kept). The text comes in three forms, so that neither side has the
advantage of its own: `blocks` as the peer trains on, `single` sequences of [CLS] text [SEP], and the `pairs` of ours.
Ours also says of pairs whether B follows A: those of several epochs' draws. The last line is JSON; its measures
without a form are those of `blocks`.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

import pretrain
from modeling import KeelBertForMaskedLM, KeelBertForPreTraining
from modeling.convert import to_native
from pretraining.data import draws
from pretraining.data.batches import Batch
from pretraining.data.documents import Documents, load_text
from pretraining.data.filters import filter_text
from pretraining.data.masking import mask_tokens
from pretraining.data.parallel import count_processes
from pretraining.data.rows import IGNORED, Example
from pretraining.hardware import synchronize
from pretraining.objectives.sentence_pairs import SentencePairs
from pretraining.optim import learning_rate
from pretraining.parsing import parse
from pretraining.settings import OptimSettings, Settings
from tests.benchmarks.rounds import print_table
from tests.benchmarks.updates import padded, update_peer


class Task(NamedTuple):
    """What is pretrained, and for how long unless told otherwise."""

    config: str
    minutes: float


TASKS = {
    "bert-pydocs": Task("configs/pretrain/bert-pydocs.yaml", 4),
    "bert-novels": Task("configs/pretrain/bert-mini-novels.yaml", 20),
}
BATCH = 32  # blocks of the peer's step, and examples of the evaluator's
NSP_EPOCHS = 10  # whose draws of pairs the evaluator asks


class Trained(NamedTuple):
    """A model, and what became of its minutes."""

    model: BertForMaskedLM
    steps: int
    tokens: int
    seconds: float
    how: str


def train_ours(arguments: list[str], settings: Settings) -> Trained:
    pretrain.main(arguments)
    lines = [json.loads(line) for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "tokens" in line][-1]
    chosen = yaml.safe_load((settings.folder / "config.yaml").read_text())["train"]
    how = f"{chosen['precision']}, {chosen['kernel']} attention, {chosen['linear']} linear"
    model = to_native(KeelBertForMaskedLM.from_pretrained(settings.folder / "model"))
    return Trained(model, last["step"], last["tokens"], last["seconds"], how)


def documents_of(settings: Settings) -> dict[str, Documents]:
    """The documents that ours is trained and asked on, by split."""
    return filter_text(load_text(settings.data), settings.data, Path(settings.cache).expanduser(), writer=True)[0]


def blocks(documents: Documents, tokenizer: PreTrainedTokenizerBase, length: int) -> np.ndarray:
    """The documents, each with its special tokens, joined and cut into blocks (N, length), the rest left out."""
    pieces = [np.array(tokenizer(text, verbose=False)["input_ids"]) for text in documents.texts()]
    joined = np.concatenate(pieces)
    return joined[: len(joined) // length * length].reshape(-1, length)


def batches(data: np.ndarray, tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[Batch]:
    """The peer's, epoch after epoch, shuffled and masked anew."""
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(data))
        for first in range(0, len(order), BATCH):
            rows = data[np.sort(order[first : first + BATCH])]
            features = [
                {"input_ids": row, "special_tokens_mask": np.isin(row, tokenizer.all_special_ids)} for row in rows
            ]
            yield dict(collate(features))


def train_peer(settings: Settings, objective: SentencePairs, options: argparse.Namespace) -> Trained:
    tokenizer, device = objective.tokenizer, PartialState().device
    data = blocks(documents_of(settings)["train"], tokenizer, settings.objective.sequence_length)
    config = to_native(objective.build_model(settings.model)).config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = options.peer_dropout

    def start() -> tuple[BertForMaskedLM, torch.optim.Optimizer]:
        torch.manual_seed(settings.seed)
        model = BertForMaskedLM(config).to(device).train()  # type: ignore[arg-type]
        return model, torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, fused=True)

    precision = options.peer_precision
    if precision == "auto":
        taken = {}
        for way in ("fp32", "bf16"):
            model, optimizer = start()
            stream = batches(data, tokenizer, settings.seed)
            times = []
            for _ in range(4):
                batch = send_to_device(next(stream), device)
                begun = time.perf_counter()
                update_peer(model, optimizer, batch, way)
                synchronize(device)
                times.append(time.perf_counter() - begun)
            taken[way] = min(times[1:])
        precision = min(taken, key=taken.__getitem__)
        print("peer: probe: " + ", ".join(f"{way} {seconds * 1000:.0f} ms" for way, seconds in taken.items()))

    schedule = OptimSettings(learning_rate=options.peer_learning_rate, schedule="linear", warmup=0.1)
    budget, steps, tokens, seconds = 60 * options.minutes, 0, 0, 0.0
    model, optimizer = start()
    stream = batches(data, tokenizer, settings.seed)
    begun = time.perf_counter()
    while seconds < budget:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, config.hidden_size, steps + 1, seconds / budget)
        batch = send_to_device(next(stream), device)
        update_peer(model, optimizer, batch, precision)
        synchronize(device)
        steps, tokens = steps + 1, tokens + batch["input_ids"].numel()
        seconds = time.perf_counter() - begun
    return Trained(model, steps, tokens, seconds, f"{precision}, {config._attn_implementation} attention")


def some(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` places, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def held_out(settings: Settings, objective: SentencePairs, most: int) -> dict[str, list[Example]]:
    """The same held-out text in three forms, at most `most` examples each, their masks drawn once."""
    tokenizer, length = objective.tokenizer, settings.objective.sequence_length
    joined = blocks(documents_of(settings)["validation"], tokenizer, length)
    plain = np.array(objective.data["validation"].tokens, dtype=np.int64)
    plain = plain[: len(plain) // (length - 2) * (length - 2)].reshape(-1, length - 2)
    single = np.pad(plain, ((0, 0), (1, 1)))
    single[:, 0], single[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id

    def masked(rows: np.ndarray) -> list[Example]:
        examples = []
        for number in some(len(rows), most):
            ids = rows[number].astype(np.int64)
            inputs, labels = mask_tokens(
                ids,
                ~objective.special[ids],
                None,
                draws.generator(0, 0, draws.MASK, int(number)),
                0.15,
                settings.objective.mask_token_rate,
                settings.objective.random_token_rate,
                tokenizer.mask_token_id,
                objective.regular,
            )
            none = {"token_type_ids": np.zeros_like(ids), "next_sentence_label": np.array(IGNORED)}
            examples.append({"input_ids": inputs, "labels": labels, **none})
        return examples

    index = objective.index("validation", 0)
    pairs = objective.examples("validation", 0, index[some(len(index), most)])
    return {"blocks": masked(joined), "single": masked(single), "pairs": pairs}


@torch.no_grad()
def ask(model: nn.Module, objective: SentencePairs, examples: list[Example], target: str) -> dict[str, float]:
    """Share of right answers, mean loss and number of targets: `labels`, or `next_sentence_label`."""
    model.eval()
    right, loss, count = 0, 0.0, 0
    for first in range(0, len(examples), BATCH):
        batch = padded(objective, examples[first : first + BATCH])
        labels = batch[target].flatten()
        inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
        out = model(**send_to_device(inputs, model.device))
        logits = out.logits if target == "labels" else out.seq_relationship_logits
        at = labels != IGNORED
        logits, labels = logits.flatten(0, -2).cpu()[at].float(), labels[at]
        right += int((logits.argmax(-1) == labels).sum())
        loss += float(cross_entropy(logits, labels, reduction="sum"))
        count += len(labels)
    return {"accuracy": right / count, "loss": loss / count, "targets": count}


def ask_pairs(settings: Settings, objective: SentencePairs, most: int) -> dict[str, float]:
    """Whether B follows A, in our exported model, over several epochs' draws.

    The standard error takes the pairs for independent; they are drawn anew from the same chunks.
    """
    model = to_native(KeelBertForPreTraining.from_pretrained(settings.folder / "model")).to(PartialState().device)
    examples: list[Example] = []
    for epoch in range(NSP_EPOCHS):
        index = objective.index("validation", epoch)
        examples += objective.examples("validation", epoch, index[some(len(index), most)])
    found = ask(model, objective, examples, "next_sentence_label")
    accuracy, count = found["accuracy"], found["targets"]
    error = math.sqrt(accuracy * (1 - accuracy) / count)
    return {"nsp_accuracy": accuracy, "nsp_standard_error": error, "nsp_pairs": count}


def tell(trained: dict[str, Trained], found: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The table, and all that it shows."""
    forms = next(iter(found.values()))
    table = [["", "steps", "tokens", "tokens/s", *(f"{form}: accuracy, loss" for form in forms), "how"]]
    result: dict[str, Any] = {}
    for name, of in trained.items():
        rate, asked = of.tokens / of.seconds, found[name]
        scores = [f"{scores['accuracy']:.2%}, {scores['loss']:.3f}" for scores in asked.values()]
        table.append([name, f"{of.steps:,}", f"{of.tokens:,}", f"{rate:,.0f}", *scores, of.how])
        measures = {"accuracy": asked["blocks"]["accuracy"], "loss": asked["blocks"]["loss"], "forms": asked}
        spent = {"steps": of.steps, "tokens": of.tokens, "tokens_per_second": rate, "seconds": of.seconds}
        result[name] = {**measures, **spent, "how": of.how}
    if len(trained) == 2:
        ratios = {
            form: scores["accuracy"] / max(found["peer"][form]["accuracy"], 1e-9)
            for form, scores in found["ours"].items()
        }
        table.append(["ours / peer", "", "", "", *(f"{ratio:.2f}" for ratio in ratios.values()), ""])
        result = {"ratio": ratios["blocks"], "ratios": ratios} | result
    print_table(*table)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--task", choices=list(TASKS), default="bert-pydocs")
    parser.add_argument("--config", help="instead of the task's own")
    parser.add_argument("--data", nargs="+", default=[], help="files of documents, instead of the config's")
    parser.add_argument("--validation-data", nargs="+", default=[], help="held-out files; none: a share of --data")
    parser.add_argument("--minutes", type=float, help="of training, each; default: the task's")
    parser.add_argument("--threads", type=int, default=count_processes(0))
    parser.add_argument("--only", choices=["ours", "peer"])
    parser.add_argument("--peer-dropout", type=float, default=0.1, help="0.1 is BertConfig's")
    parser.add_argument("--peer-precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--peer-learning-rate", type=float, default=5e-4)
    parser.add_argument("--evaluation-examples", type=int, default=1024, help="of each form, and of each epoch's pairs")
    options, more = parser.parse_known_args()
    task = TASKS[options.task]
    options.minutes = options.minutes or task.minutes
    if options.data:
        more += ["--data.source=files", f"--data.files={json.dumps(options.data)}"]
        more += [f"--data.validation_files={json.dumps(options.validation_data)}"]

    with tempfile.TemporaryDirectory() as runs:
        arguments = [
            f"--config={options.config or task.config}",
            "--train.steps=null",
            "--train.epochs=null",
            "--train.tokens=null",
            f"--train.minutes={options.minutes}",
            f"--train.threads={options.threads}",
            "--log.trackers=[]",
            f"--runs={runs}",
            *more,
        ]
        settings = parse(arguments)
        torch.set_num_threads(options.threads)
        objective = SentencePairs(settings)
        objective.prepare(writer=True)
        examples = held_out(settings, objective, options.evaluation_examples)
        trained: dict[str, Trained] = {}
        nsp: dict[str, float] = {}
        if options.only != "peer":
            trained["ours"] = train_ours(arguments, settings)
            if objective.pairs:
                nsp = ask_pairs(settings, objective, options.evaluation_examples)
        if options.only != "ours":
            trained["peer"] = train_peer(settings, objective, options)
    found = {
        name: {form: ask(of.model, objective, asked, "labels") for form, asked in examples.items()}
        for name, of in trained.items()
    }
    result = tell(trained, found)
    if nsp:
        print(
            f"ours says of {nsp['nsp_pairs']:,} pairs whether B follows A: {nsp['nsp_accuracy']:.1%} right, "
            f"standard error {nsp['nsp_standard_error']:.1%}"
        )
    facts = {"task": options.task, "minutes": options.minutes, "threads": options.threads}
    print(json.dumps({**facts, **result, **nsp}))


if __name__ == "__main__":
    main()
