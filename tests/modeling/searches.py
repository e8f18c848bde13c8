"""What the tests of searches share: sentences, and whose turn it is to search."""

from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.generation import GenerationMixin

from modeling import generation

END, PAD, WIDTH = 0, 39, 12


def sentences(count: int) -> dict[str, Tensor]:
    """Of 2 to 12 random tokens, padded on the right."""
    lengths = torch.randint(2, WIDTH + 1, (count,))
    mask = (torch.arange(WIDTH) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, PAD, mask.shape).where(mask == 1, PAD), "attention_mask": mask}


@contextmanager
def only(monkeypatch, theirs: bool):
    """Whoever's turn it is not may not search."""

    def refuse(*args, **kwargs):
        raise AssertionError("the wrong search")

    searches = (
        ((generation, "Decoder"),) if theirs else ((GenerationMixin, "_sample"), (GenerationMixin, "_beam_search"))
    )
    with monkeypatch.context() as patch:
        for owner, name in searches:
            patch.setattr(owner, name, refuse)
        yield


def both(monkeypatch, model, theirs=None, **settings) -> tuple:
    """What our search finds, and what transformers' finds with the same model or with `theirs`."""
    with only(monkeypatch, theirs=False):
        ours = model.generate(**settings)
    with only(monkeypatch, theirs=True):
        return ours, GenerationMixin.generate(theirs or model, **settings)
