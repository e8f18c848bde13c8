"""What the tests of the models share."""

from functools import partial

import torch
from torch import Tensor, nn

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)
equal = partial(torch.testing.assert_close, rtol=0, atol=0)


# A decoder of masked images.
DECODER = {
    "decoder_num_hidden_layers": 1,
    "decoder_hidden_size": 8,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 12,
}


def some(classes: int, *shape: int) -> Tensor:
    """Labels, about half of them -100."""
    return torch.randint(classes, shape).where(torch.rand(shape) < 0.5, -100)


def gradients(model: nn.Module, batches: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the batches' losses, and its gradient."""
    model.zero_grad()
    losses = []
    for batch in batches:
        losses.append(model(**batch).loss)
        losses[-1].backward()
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return torch.stack(losses).sum().detach(), grads
