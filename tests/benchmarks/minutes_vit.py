"""Classification of images in equal minutes: ours against transformers' own ViT, trained as its example does it.

The peer is `ViTForImageClassification` of the config's size, with its class token and learned positions. Its batches
are 64 images, shuffled anew in each epoch, mirrored half of the time and cut out of what is padded by an eighth all
round: by our own functions, which take a hundredth of its step. Both are asked the class of
every held-out image, seen whole.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from modeling import KeelViTForImageClassification
from pretraining.objectives import make_objective
from pretraining.objectives.base import Objective
from pretraining.objectives.classification import TOP
from pretraining.settings import Settings
from tests.benchmarks.minutes import Trained, train_ours, train_peer
from tests.benchmarks.rounds import print_table
from tests.benchmarks.updates import Inputs

BATCH = 64


def batches(objective: Objective, seed: int) -> Iterator[Inputs]:
    """The peer's, epoch after epoch, shuffled anew."""
    random, epoch = np.random.default_rng(seed), 0
    while True:
        order = random.permutation(objective.examples.index("train", epoch))
        for first in range(0, len(order), BATCH):
            examples = objective.examples.examples("train", epoch, order[first : first + BATCH])
            yield objective.head.to_model_inputs(
                objective.examples.collate([[example] for example in examples], 1).tensors
            )
        epoch += 1


def train_native(settings: Settings, options: argparse.Namespace) -> Trained:
    """The peer."""
    plain = {"crop": "padded", "flip": 0.5, "randaugment_layers": 0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    objective = make_objective(settings.changed({f"objective.{name}": value for name, value in plain.items()}))
    objective.examples.prepare(is_builder=True)
    ours: Any = objective.head.build_model(settings.model).config
    config = ViTConfig(
        **{name: getattr(ours, name) for name in ("image_size", "patch_size", "num_channels", "hidden_size")},
        **{name: getattr(ours, name) for name in ("num_hidden_layers", "num_attention_heads", "intermediate_size")},
        hidden_dropout_prob=options.peer_dropout,
        id2label=ours.id2label,
        label2id=ours.label2id,
    )
    return train_peer(
        lambda: ViTForImageClassification(config),
        lambda: batches(objective, settings.seed),
        lambda batch: len(batch["labels"]),
        settings.seed,
        options,
        unit="images",
    )


@torch.no_grad()
def ask(model: PreTrainedModel, objective: Objective, index: np.ndarray) -> dict[str, float]:
    """Shares of held-out images `index` whose class is a model's first guess, or among its first five."""
    labels = torch.from_numpy(objective.examples.data["validation"].labels[index])
    best = (
        objective.scoring.logits(model, index).topk(min(TOP, len(objective.examples.classes))).indices
        == labels[:, None]
    )
    return {"accuracy": float(best[:, 0].float().mean()), "top5_accuracy": float(best.any(1).float().mean())}


def compare(arguments: list[str], settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and asks: all that was found."""
    objective = make_objective(settings)
    for line in objective.examples.prepare(is_builder=True):
        print(line)
    index = objective.examples.index("validation", 0)[: options.evaluation_examples]
    trained: dict[str, Trained] = {}
    if options.only != "peer":
        trained["ours"] = train_ours(arguments, settings, KeelViTForImageClassification)
    if options.only != "ours":
        trained["peer"] = train_native(settings, options)
    found: dict[str, dict[str, float]] = {}
    table = [["", "steps", "images", "images/s", "top-1", "top-5", "how"]]
    for name, of in trained.items():
        found[name] = ask(of.model.to(PartialState().device).eval(), objective, index)  # type: ignore[arg-type]
        shares = [f"{100 * share:.2f} %" for share in found[name].values()]
        rate = of.spent["images_per_second"]
        table.append([name, f"{of.steps:,}", f"{of.count:,}", f"{rate:,.0f}", *shares, of.how])
    print_table(*table)
    result: dict[str, Any] = {name: {**found[name], **of.spent} for name, of in trained.items()}
    if len(found) == 2:
        difference = 100 * (found["ours"]["accuracy"] - found["peer"]["accuracy"])
        print(f"ours is {difference:+.2f} points from the peer")
        result = {"difference": difference} | result
    return result
