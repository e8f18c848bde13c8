"""The step of BERT: ours on packed rows against transformers' `BertForPreTraining` on the same examples, padded."""

from argparse import Namespace

import numpy as np
from accelerate.utils import send_to_device

from modeling import KeelBertConfig
from pretraining.data import draws
from pretraining.objectives import make_objective
from tests.benchmarks.step import Family, make_settings
from tests.benchmarks.updates import padded

SHORT = 0.85  # share of the chunks cut to a random length: padded, such examples waste what those of others do

SIZES = {
    "mini": "hidden_size=256 num_hidden_layers=4 num_attention_heads=4 intermediate_size=1024",
    "base": "hidden_size=768 num_hidden_layers=12 num_attention_heads=12 intermediate_size=3072",
}
VOCABULARY = {"mini": 8192, "base": 30522}


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


class Bert(Family):
    """MLM and NSP on Python's documentation, cut into examples of which 35 to 50 % would be padding.

    transformers' are padded to the longest of each batch; to one length where it is compiled, so that it is compiled
    once.
    """

    default_steps, default_examples = 4, 32
    losses = {
        "mlm_loss": ("prediction_logits", "labels"),
        "nsp_loss": ("seq_relationship_logits", "next_sentence_label"),
    }

    def __init__(self, options: Namespace, more: list[str]):
        length, size = options.sequence_length, options.size
        own = [
            f"--model.max_position_embeddings={max(512, length)}",
            f"--model.hidden_dropout_prob={options.dropout}",
            f"--model.attention_probs_dropout_prob={options.dropout}",
            f"--objective.sequence_length={length}",
            f"--objective.short_sequence_rate={SHORT}",
        ]
        settings = make_settings("bert", SIZES[size], options, own, more)
        objective = make_objective(settings)
        super().__init__(options, settings, objective)
        objective.examples.prepare(is_builder=True)
        # Python's documentation gives no 30,522 word pieces: the rest are names that the text has not.
        objective.examples.tokenizer.add_tokens(
            [f"[unused{i}]" for i in range(VOCABULARY[size] - len(objective.examples.tokenizer))]
        )

        # The same examples for everybody: transformers' batch by batch, ours as rows, in as many steps.
        every = objective.examples.index("train", 0)
        count = options.steps * options.examples
        if count > len(every):
            raise ValueError(f"{count:,} examples a round, and there are {len(every):,}: take fewer --steps.")
        index = np.argsort(draws.hash_key(0, draws.PERMUTATION, every), kind="stable")[:count]
        lengths = objective.examples.lengths("train", 0, index)
        plan = self.pack(index, lengths, options.steps)
        batches = [objective.examples.examples("train", 0, part) for part in np.split(index, options.steps)]
        self.usual = self.best = send_to_device([padded(objective, batch) for batch in batches], self.device)
        self.compiled = send_to_device([padded(objective, batch, length) for batch in batches], self.device)
        self.count = int(lengths.sum())
        masked = sum(batch.targets["labels"] for batch in self.packed)
        config = objective.head.build_model(settings.model).config
        self.flops = useful_flops(config, lengths, masked)
        padding = 1 - self.count / sum(batch["input_ids"].numel() for batch in self.usual)
        self.padding = {"padding": padding, "padding_packed": 1 - plan.fill}
        rows = len(plan.offsets) - 1
        self.about = (
            f"BERT {size}, vocabulary {config.vocab_size:,}, dropout {options.dropout:g}, {options.examples} examples "
            f"an update of at most {length} tokens, {lengths.mean():.0f} in the mean: padded to the longest of a batch "
            f"{padding:.1%} is padding, packed into {rows / options.steps:.1f} rows {1 - plan.fill:.1%}; "
            f"{masked / self.count:.1%} of the tokens are to be predicted"
        )
