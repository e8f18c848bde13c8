"""The step of ViT: ours against transformers' `ViTForImageClassification` on the same images."""

from argparse import Namespace

import numpy as np

from modeling import KeelViTConfig
from pretraining.data import draws
from pretraining.objectives import make_objective
from tests.benchmarks.step import Family, make_settings

SIZES = {
    "mini": "image_size=32 patch_size=4 hidden_size=192 num_hidden_layers=6 num_attention_heads=3 "
    "intermediate_size=768",
    "base": "image_size=224 patch_size=16",
}


def useful_flops(config: KeelViTConfig, images: int) -> float:
    """Operations of the matrix products that the loss of some images needs, forward and backward.

    Of the last layer the loss reads the class token alone: its query, what it mixes and its feed-forward. The backward
    pass costs twice the forward one, but for the pixels, which need no gradient.
    """
    width, depth = config.hidden_size, config.num_hidden_layers
    patches = (config.image_size // config.patch_size) ** 2
    tokens = patches + 1
    embedding = 2 * width * config.num_channels * config.patch_size**2 * patches
    layer = 8 * width**2 * tokens + 4 * width * tokens**2 + 4 * width * config.intermediate_size * tokens
    last = 4 * width**2 * (tokens + 1) + 4 * width * tokens + 4 * width * config.intermediate_size
    head = 2 * width * (config.num_labels or 0)
    return images * (2.0 * embedding + 3.0 * ((depth - 1) * layer + last + head))


class ViT(Family):
    """Scikit-learn's digits, enlarged, as they are: what is measured is the model, not how images are changed."""

    default_steps, default_examples = 4, 64
    losses = {"loss": ("logits", "labels")}

    def __init__(self, options: Namespace, more: list[str]):
        own = ["--objective.crop=none", "--objective.flip=0"]
        settings = make_settings("vit", SIZES[options.size], options, own, more)
        objective = make_objective(settings)
        super().__init__(options, settings, objective)
        objective.examples.prepare(is_builder=True)
        every = objective.examples.index("train", 0)
        self.count = options.steps * options.examples
        if self.count > len(every):
            raise ValueError(f"{self.count:,} images a round, and there are {len(every):,}: take fewer --steps.")
        index = np.argsort(draws.hash_key(0, draws.PERMUTATION, every), kind="stable")[: self.count]
        self.pack(index, objective.examples.lengths("train", 0, index), options.steps)
        self.usual = [batch.tensors for batch in self.packed]
        self.best = self.compiled = self.usual
        config = objective.head.build_model(settings.model).config
        self.flops = useful_flops(config, self.count)
        self.padding: dict[str, float] = {}
        self.about = (
            f"ViT {options.size}, {config.image_size} pixels in patches of {config.patch_size}, "
            f"{options.examples} images an update, no dropout"
        )
