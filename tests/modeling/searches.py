"""What the tests of searches share: sentences, and the same search by us and by transformers."""

import copy
from typing import Any

import torch
from torch import Tensor

from modeling.search import Search

END, PAD, WIDTH = 0, 39, 12
OURS = ("num_beams", "num_return_sequences", "length_penalty", "early_stopping")  # the options that Search takes


def sentences(count: int) -> dict[str, Tensor]:
    """Of 2 to 12 random tokens, padded on the right."""
    lengths = torch.randint(2, WIDTH + 1, (count,))
    mask = (torch.arange(WIDTH) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, PAD, mask.shape).where(mask == 1, PAD), "attention_mask": mask}


def ours(model, batch: dict[str, Tensor], max_new_tokens: int, **options: Any) -> Tensor:
    """What our search finds; options that are the model's own (which token ends a target) are set on it meanwhile."""
    kept, model.generation_config = model.generation_config, copy.deepcopy(model.generation_config)
    try:
        for name in options.keys() - set(OURS):
            setattr(model.generation_config, name, options[name])
        given = {name: options[name] for name in OURS if name in options}
        return Search(model)(**batch, max_length=max_new_tokens + 1, **given)
    finally:
        model.generation_config = kept


def theirs(model, batch: dict[str, Tensor], max_new_tokens: int, **options: Any) -> Tensor:
    """What transformers' search finds."""
    return model.generate(**batch, max_new_tokens=max_new_tokens, **options)


@torch.no_grad()
def score(model, batch, found) -> Tensor:
    """Mean log-probability of each target's tokens up to its end."""
    logprobs = model(**batch, decoder_input_ids=found[:, :-1]).logits.log_softmax(-1)
    real = found[:, 1:] != PAD
    return (logprobs.gather(2, found[:, 1:, None])[..., 0] * real).sum(1) / real.sum(1)
