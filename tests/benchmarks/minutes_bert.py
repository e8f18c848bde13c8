"""BERT in equal minutes: ours against `BertForMaskedLM` trained as transformers' run_mlm does it.

The peer has the same documents, tokenizer and size, and starts as transformers does. Every document is tokenised with
its special tokens, all are joined and cut into blocks of the config's sequence length, and
`DataCollatorForLanguageModeling` hides 15 % of a block anew each time; batches of 32.

Both are asked by native `BertForMaskedLM` in fp32 on held-out text, with masks that are drawn once (15 %: 80 % [MASK],
10 % random, 10 % kept). The text comes in three forms, so that neither side has the advantage of its own: `blocks` as
the peer trains on, `single` sequences of [CLS] text [SEP], and the `pairs` of ours. Ours also says of pairs whether B
follows A: those of several epochs' draws. Measures without a form are those of `blocks`.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from modeling import KeelBertForMaskedLM, KeelBertForPreTraining
from modeling.convert import to_native
from pretraining.data import draws
from pretraining.data.packing import IGNORED, Example
from pretraining.data.text.documents import Documents, load_text
from pretraining.data.text.filters import filter_text
from pretraining.data.text.masking import mask_tokens
from pretraining.objectives import make_objective
from pretraining.objectives.base import Objective
from pretraining.settings import Settings
from tests.benchmarks.minutes import Trained, train_ours, train_peer
from tests.benchmarks.rounds import print_table
from tests.benchmarks.updates import Inputs, padded

BATCH = 32  # blocks of the peer's step, and examples of the evaluator's
EXAMPLES = 1024  # of each form that the evaluator asks, unless told otherwise
NSP_EPOCHS = 10  # whose draws of pairs the evaluator asks


def documents_of(settings: Settings) -> dict[str, Documents]:
    """The documents that ours is trained and asked on, by split."""
    return filter_text(load_text(settings.data), settings.data, Path(settings.cache).expanduser(), is_builder=True)[0]


def blocks(documents: Documents, tokenizer: PreTrainedTokenizerBase, length: int) -> np.ndarray:
    """The documents, each with its special tokens, joined and cut into blocks (N, length), the rest left out."""
    pieces = [np.array(tokenizer(text, verbose=False)["input_ids"]) for text in documents.texts()]
    joined = np.concatenate(pieces)
    return joined[: len(joined) // length * length].reshape(-1, length)


def batches(data: np.ndarray, tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[Inputs]:
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


def train_native(settings: Settings, objective: Objective, options: argparse.Namespace) -> Trained:
    """The peer."""
    tokenizer, seed = objective.examples.tokenizer, settings.seed
    data = blocks(documents_of(settings)["train"], tokenizer, settings.objective.sequence_length)
    config = to_native(objective.head.build_model(settings.model)).config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = options.peer_dropout
    return train_peer(
        lambda: BertForMaskedLM(config),  # type: ignore[arg-type]
        lambda: batches(data, tokenizer, seed),
        lambda batch: batch["input_ids"].numel(),
        seed,
        options,
    )


def some(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` places, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def held_out(settings: Settings, objective: Objective, most: int) -> dict[str, list[Example]]:
    """The same held-out text in three forms, at most `most` examples each, their masks drawn once."""
    tokenizer, length = objective.examples.tokenizer, settings.objective.sequence_length
    joined = blocks(documents_of(settings)["validation"], tokenizer, length)
    plain = np.array(objective.examples.data["validation"].tokens, dtype=np.int64)
    plain = plain[: len(plain) // (length - 2) * (length - 2)].reshape(-1, length - 2)
    single = np.pad(plain, ((0, 0), (1, 1)))
    single[:, 0], single[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id

    def masked(rows: np.ndarray) -> list[Example]:
        examples = []
        for number in some(len(rows), most):
            ids = rows[number].astype(np.int64)
            inputs, labels = mask_tokens(
                ids,
                ~objective.examples.special[ids],
                None,
                draws.generator(0, 0, draws.MASK, int(number)),
                0.15,
                settings.objective.mask_token_rate,
                settings.objective.random_token_rate,
                tokenizer.mask_token_id,
                objective.examples.regular,
            )
            none = {"token_type_ids": np.zeros_like(ids), "next_sentence_label": np.array(IGNORED)}
            examples.append({"input_ids": inputs, "labels": labels, **none})
        return examples

    index = objective.examples.index("validation", 0)
    pairs = objective.examples.examples("validation", 0, index[some(len(index), most)])
    return {"blocks": masked(joined), "single": masked(single), "pairs": pairs}


@torch.no_grad()
def ask(model: nn.Module, objective: Objective, examples: list[Example], target: str) -> dict[str, float]:
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


def ask_pairs(settings: Settings, objective: Objective, most: int) -> dict[str, float]:
    """Whether B follows A, in our exported model, over several epochs' draws.

    The standard error takes the pairs for independent; they are drawn anew from the same chunks.
    """
    model = to_native(KeelBertForPreTraining.from_pretrained(settings.folder / "model")).to(PartialState().device)
    examples: list[Example] = []
    for epoch in range(NSP_EPOCHS):
        index = objective.examples.index("validation", epoch)
        examples += objective.examples.examples("validation", epoch, index[some(len(index), most)])
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
        asked, rate = found[name], of.spent["tokens_per_second"]
        scores = [f"{scores['accuracy']:.2%}, {scores['loss']:.3f}" for scores in asked.values()]
        table.append([name, f"{of.steps:,}", f"{of.count:,}", f"{rate:,.0f}", *scores, of.how])
        measures = {"accuracy": asked["blocks"]["accuracy"], "loss": asked["blocks"]["loss"], "forms": asked}
        result[name] = {**measures, **of.spent}
    if len(trained) == 2:
        ratios = {
            form: scores["accuracy"] / max(found["peer"][form]["accuracy"], 1e-9)
            for form, scores in found["ours"].items()
        }
        table.append(["ours / peer", "", "", "", *(f"{ratio:.2f}" for ratio in ratios.values()), ""])
        result = {"ratio": ratios["blocks"], "ratios": ratios} | result
    print_table(*table)
    return result


def compare(arguments: list[str], settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and asks: all that was found."""
    objective = make_objective(settings)
    objective.examples.prepare(is_builder=True)
    most = options.evaluation_examples or EXAMPLES
    examples = held_out(settings, objective, most)
    trained: dict[str, Trained] = {}
    nsp: dict[str, float] = {}
    if options.only != "peer":
        ours = train_ours(arguments, settings, KeelBertForMaskedLM)
        trained["ours"] = ours._replace(model=to_native(ours.model))
        if objective.examples.pairs:
            nsp = ask_pairs(settings, objective, most)
    if options.only != "ours":
        trained["peer"] = train_native(settings, objective, options)
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
    return {**result, **nsp}
