"""The step of the encoder-decoder Transformer: ours on packed rows against `MarianMTModel` on the same padded pairs."""

from argparse import Namespace

import numpy as np
from accelerate.utils import send_to_device
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from modeling import KeelSeq2SeqConfig
from pretraining.data.pairs.prepared import PreparedPairs
from pretraining.objectives.base import Objective
from pretraining.objectives.seq2seq import Seq2SeqHead, Seq2SeqScoring
from pretraining.objectives.translation import TranslationExamples
from pretraining.settings import Settings
from tests.benchmarks.step import Family, make_settings
from tests.benchmarks.updates import Inputs, padded_pairs

# Tokens of a source, its end token included: exp(normal), cut; of a target: so many times its source's.
MEAN, DEVIATION, SHORTEST, LONGEST = 2.95, 0.6, 4, 80
RATIO = (0.85, 1.2)
POOL = (
    512  # updates among which transformers' pairs are put together by length: an epoch's, as a bucketing sampler does
)

SIZES = {
    "mini": "hidden_size=256 encoder_layers=3 decoder_layers=3 num_attention_heads=4 intermediate_size=1024",
    "base": "hidden_size=512 encoder_layers=6 decoder_layers=6 num_attention_heads=8 intermediate_size=2048",
}
VOCABULARY = {"mini": 8000, "base": 37000}


def useful_flops(config: KeelSeq2SeqConfig, lengths: np.ndarray) -> float:
    """Operations of the matrix products that the loss of some pairs needs, forward and backward.

    Layers on real tokens, attention within the own pair, in the decoder to the tokens so far; every target token is
    predicted. The backward pass costs twice the forward one.

    Args:
        lengths: tokens of each source and target (N, 2).
    """
    width, wide = config.hidden_size, config.intermediate_size
    source, target = lengths.astype(float).T
    square = 2 * width * width  # one product of a token with a matrix of the attention
    encoder = source * (4 * square + 4 * width * wide) + 4 * width * source**2
    own = target * 4 * square + 4 * width * target * (target + 1) / 2
    cross = 2 * square * (source + target) + 4 * width * source * target
    decoder = own + cross + target * 4 * width * wide
    head = target * 2 * width * config.vocab_size
    return 3.0 * float((config.encoder_layers * encoder + config.decoder_layers * decoder + head).sum())


def draw_lengths(count: int, random: np.random.Generator) -> np.ndarray:
    """Tokens of source and target (N, 2), their end tokens included."""
    source = np.clip(np.round(random.lognormal(MEAN, DEVIATION, count)), SHORTEST, LONGEST)
    target = np.maximum(2, np.round(source * random.uniform(*RATIO, count)))
    return np.stack([source, target], 1).astype(int)


def buckets(lengths: np.ndarray, count: int) -> list[np.ndarray]:
    """Pairs put together by their longer side, in so many batches of equally many tokens."""
    order = np.lexsort((lengths.sum(1), lengths.max(1)))
    tokens = lengths[order].sum(1).cumsum()
    return np.split(order, np.searchsorted(tokens, tokens[-1] * np.arange(1, count) / count))


class RandomPairs(TranslationExamples):
    """Translation of pairs of these lengths (N, 2), whose tokens are drawn."""

    def __init__(self, settings: Settings, lengths: np.ndarray, random: np.random.Generator):
        super().__init__(settings)
        words = ["</s>", "<unk>", *(f"w{i}" for i in range(settings.tokenizer.vocab_size - 3)), "<pad>"]
        vocabulary = {word: i for i, word in enumerate(words)}
        special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
        offsets = np.concatenate([[0], (lengths - 1).ravel().cumsum()])
        pairs = PreparedPairs(
            name="random",
            tokens=random.integers(2, len(words) - 1, offsets[-1]),
            offsets=offsets,
            groups=np.zeros(len(lengths), dtype=np.uint16),
            group_names=[""],
            points=np.empty((0, 2), dtype=np.uint16),
            point_offsets=np.zeros(len(lengths) + 1, dtype=np.int64),
        )
        self.data = {"train": pairs, "validation": pairs}
        self.repeated: dict[str, dict[str, int]] = {"train": {}, "validation": {}}
        self.index_examples()


class Seq2Seq(Family):
    """Translation of random tokens.

    All of an epoch's pairs are put together by length, and of these batches some are taken, evenly spread: transformers
    is best on them, and they are as full as an epoch makes them. The same pairs are shuffled for its usual batches, and
    packed into rows for ours.
    """

    default_steps, default_examples = 16, 64
    losses = {"loss": ("logits", "labels")}
    dynamic = True  # batches have all shapes

    def __init__(self, options: Namespace, more: list[str]):
        size, steps = options.size, options.steps
        own = [f"--model.hidden_dropout_prob={options.dropout}", f"--tokenizer.vocab_size={VOCABULARY[size]}"]
        settings = make_settings("seq2seq", SIZES[size], options, own, more)
        random = np.random.default_rng(settings.seed)
        updates = max(POOL, steps)
        pool = draw_lengths(updates * options.examples, random)
        every = buckets(pool, updates)
        taken = [every[updates * (2 * step + 1) // (2 * steps)] for step in range(steps)]
        lengths = pool[np.concatenate(taken)]
        examples = RandomPairs(settings, lengths, random)
        objective = Objective(examples, Seq2SeqHead(examples), Seq2SeqScoring(examples))
        super().__init__(options, settings, objective)

        index = np.arange(len(lengths))
        plan = self.pack(index, lengths, steps)
        alike = np.split(index, np.cumsum([len(batch) for batch in taken])[:-1])
        shuffled = np.array_split(random.permutation(index), max(1, round(len(index) / options.examples)))
        self.best = self.compiled = self.padded([alike[i] for i in random.permutation(steps)])
        self.usual = self.padded(shuffled)
        self.count = int(lengths.sum())
        config = objective.head.build_model(settings.model).config
        self.flops = useful_flops(config, lengths)
        usual, best = (
            1 - self.count / sum(batch["input_ids"].numel() + batch["labels"].numel() for batch in batches)
            for batches in (self.usual, self.best)
        )
        self.padding = {"padding": usual, "padding_best": best, "padding_packed": 1 - plan.fill}
        source, target = lengths.mean(0)
        rows = len(plan.offsets) - 1
        room = " + ".join(map(str, objective.examples.row_lengths))
        self.about = (
            f"Seq2seq {size}, vocabulary {config.vocab_size:,}, dropout {options.dropout:g}, {len(index):,} pairs in "
            f"{steps} updates, {source:.1f} tokens in a source and {target:.1f} in a target: {options.examples} pairs "
            f"padded to their longest are {usual:.1%} padding, batches of {self.count / steps:,.0f} tokens alike in "
            f"length {best:.1%}, {rows / steps:.1f} packed rows of {room} {1 - plan.fill:.1%}"
        )

    def padded(self, batches: list[np.ndarray]) -> list[Inputs]:
        """Pairs as transformers takes them, on the device."""
        found = [padded_pairs(self.objective, self.objective.examples.examples("train", 0, batch)) for batch in batches]
        return send_to_device(found, self.device)
