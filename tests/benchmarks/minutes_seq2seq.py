"""Translation in equal minutes: ours against `MarianMTModel` trained as transformers' run_translation does it.

The peer has the same pairs, tokenizer and size, and starts as transformers does: normal weights of std 0.02. Its
batches are 64 pairs, shuffled anew in each epoch and padded to their longest, targets shifted to the right behind
padding; the config's label smoothing, over the whole vocabulary as Trainer has it: the peer is asked to give padding,
which is never a target, its share too.

Both are native models in fp32 when they are asked: they translate the test file with transformers' own beam search, by
the config's beams and length penalty, scored by sacreBLEU: cased (13a), lower-cased (13a as well: what papers report
that tokenise and lower-case their references) and chrF. Their losses on the held-out pairs and on the test file are
without smoothing, in nats a target token. Tokens are those of both sides, padding not counted.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from sacrebleu.metrics import BLEU, CHRF
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedModel

from modeling import KeelSeq2SeqForConditionalGeneration
from modeling.convert import to_native
from pretraining.data.packing import IGNORED, Example
from pretraining.data.pairs.corpus import load_pairs
from pretraining.objectives import make_objective
from pretraining.objectives.base import Objective
from pretraining.settings import Settings
from tests.benchmarks.minutes import Trained, train_ours, train_peer
from tests.benchmarks.rounds import print_table
from tests.benchmarks.updates import Inputs, padded_pairs

BATCH = 64  # pairs of the peer's step, and of the evaluator's
SCORES = {"bleu": BLEU(), "bleu_lowercase": BLEU(lowercase=True, tokenize="13a"), "chrf": CHRF()}


def batches(objective: Objective, seed: int) -> Iterator[Inputs]:
    """The peer's, epoch after epoch, shuffled anew."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(objective.examples.index("train", 0))
        for first in range(0, len(order), BATCH):
            yield padded_pairs(objective, objective.examples.examples("train", 0, order[first : first + BATCH]))


def real_tokens(batch: Inputs) -> int:
    return int(batch["attention_mask"].sum() + (batch["labels"] != IGNORED).sum())


def train_native(settings: Settings, objective: Objective, options: argparse.Namespace) -> Trained:
    """The peer."""
    config: Any = to_native(objective.head.build_model(settings.model)).config
    config.dropout, config.init_std = options.peer_dropout, MarianConfig().init_std
    return train_peer(
        lambda: MarianMTModel(config),
        lambda: batches(objective, settings.seed),
        real_tokens,
        settings.seed,
        options,
        settings.model.label_smoothing,  # type: ignore[attr-defined]
    )


def read_test(settings: Settings, files: list[str]) -> list[tuple[str, str]]:
    """All pairs of the test files, as texts."""
    pairs = load_pairs(settings.changed({"data.validation_files": files}).data)[0]["validation"]
    return [pair for shard in pairs.shards() for pair in pairs.sides(shard)]


def as_examples(objective: Objective, pairs: list[tuple[str, str]]) -> list[Example]:
    """Texts as tokens, with their end token."""
    texts = zip(objective.examples.tokenizers.values(), zip(*pairs, strict=True), strict=True)
    sides = [tokenizer(list(side))["input_ids"] for tokenizer, side in texts]
    return [{"input_ids": np.array(source), "labels": np.array(target)} for source, target in zip(*sides, strict=True)]


@torch.no_grad()
def ask(model: PreTrainedModel, objective: Objective, examples: list[Example]) -> float:
    """The mean loss of a target token."""
    total, count = 0.0, 0
    for first in range(0, len(examples), BATCH):
        batch = send_to_device(padded_pairs(objective, examples[first : first + BATCH]), model.device)
        logits = model(**batch).logits.flatten(0, -2)
        total += float(cross_entropy(logits, batch["labels"].flatten(), reduction="sum"))
        count += int((batch["labels"] != IGNORED).sum())
    return total / count


@torch.no_grad()
def translate(model: Any, objective: Objective, examples: list[Example]) -> list[str]:
    """What the model writes for the examples' sources; the same options for every model."""
    tokenizer, options = objective.examples.tokenizers["labels"], objective.examples.settings
    model.generation_config = GenerationConfig(
        num_beams=options.beams,
        length_penalty=options.length_penalty,
        max_length=options.sequence_length + 1,  # the start token
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    texts = [""] * len(examples)
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]["input_ids"]))  # alike in length
    for first in range(0, len(order), BATCH):
        some = order[first : first + BATCH]
        batch = send_to_device(padded_pairs(objective, [examples[i] for i in some]), model.device)
        out = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for i, text in zip(some, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
            texts[i] = text.strip()
    return texts


def tell(trained: dict[str, Trained], found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The table, and all that it shows."""
    names = {"bleu": "BLEU", "bleu_lowercase": "BLEU lower-case", "chrf": "chrF"}
    names |= {"loss": "test loss", "validation_loss": "held-out loss"}
    table = [["", "steps", "tokens", "tokens/s", *names.values(), "how"]]
    for name, of in trained.items():
        scores = [f"{found[name][measure]:.{3 if 'loss' in measure else 2}f}" for measure in names]
        rate = of.spent["tokens_per_second"]
        table.append([name, f"{of.steps:,}", f"{of.count:,}", f"{rate:,.0f}", *scores, of.how])
    print_table(*table)
    signatures = {name: str(score.get_signature()) for name, score in SCORES.items()}
    for name, signature in signatures.items():
        print(f"{names[name]}: {signature}")
    result: dict[str, Any] = {name: {**found[name], **of.spent} for name, of in trained.items()}
    if len(trained) == 2:
        differences = {name: found["ours"][name] - found["peer"][name] for name in SCORES}
        print(f"ours is {differences['bleu']:+.2f} BLEU from the peer")
        result = {"difference": differences["bleu"], "differences": differences} | result
    return {**result, "signatures": signatures}


def compare(arguments: list[str], settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and asks: all that was found."""
    objective = make_objective(settings)
    objective.examples.prepare(is_builder=True)
    pairs = read_test(settings, options.test_data)[: options.evaluation_examples]
    test = as_examples(objective, pairs)
    validation = objective.examples.examples("validation", 0, objective.examples.index("validation", 0))
    trained: dict[str, Trained] = {}
    if options.only != "peer":
        ours = train_ours(arguments, settings, KeelSeq2SeqForConditionalGeneration)
        trained["ours"] = ours._replace(model=to_native(ours.model))
    if options.only != "ours":
        trained["peer"] = train_native(settings, objective, options)
    found: dict[str, dict[str, float]] = {}
    for name, of in trained.items():
        model: Any = of.model.to(PartialState().device).eval()  # type: ignore[arg-type]
        begun = time.perf_counter()
        written = translate(model, objective, test)
        seconds = time.perf_counter() - begun
        scores = {
            measure: score.corpus_score(written, [[target for _, target in pairs]]).score
            for measure, score in SCORES.items()
        }
        losses = {"loss": ask(model, objective, test), "validation_loss": ask(model, objective, validation)}
        found[name] = {**scores, **losses, "translation_seconds": seconds}
        for (source, target), text in list(zip(pairs, written, strict=True))[:3]:
            print(f"{name}: {source}\n    written: {text}\n    right:   {target}")
    return tell(trained, found)
