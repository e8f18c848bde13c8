"""Our blocks and losses against PyTorch's own, in float64, with gradients."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from modeling import KeelSeq2SeqConfig, KeelSeq2SeqModel
from modeling.attention import MultiHeadAttention
from modeling.layers import DecoderBlock, EncoderBlock
from modeling.losses import smoothed_loss
from modeling.packing import cross_attention_mask, self_attention_mask

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
WIDTH, HEADS = 16, 4
KERNELS = pytest.mark.parametrize("kernel", ["eager", "sdpa"])
NORMS = pytest.mark.parametrize("norm", ["post", "pre"])
ACTIVATIONS = pytest.mark.parametrize("activation", ["relu", "gelu"])

Pairs = Iterator[tuple[list[Tensor], Tensor]]  # our weights, and the one of torch that holds them one below another


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def configuration(kernel: str = "sdpa", norm: str = "post", activation: str = "relu") -> KeelSeq2SeqConfig:
    config = KeelSeq2SeqConfig(
        vocab_size=31,
        pad_token_id=30,
        decoder_start_token_id=30,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=24,
        encoder_layers=3,
        decoder_layers=2,
        hidden_act=activation,
        hidden_dropout_prob=0.0,
        norm_position=norm,
    )
    config._attn_implementation = kernel
    return config


def in_torch(norm: str, activation: str) -> dict:
    """The same layer in torch's words."""
    return {
        "d_model": WIDTH,
        "nhead": HEADS,
        "dim_feedforward": 24,
        "dropout": 0.0,
        "activation": activation,
        "batch_first": True,
        "norm_first": norm == "pre",
    }


def of_linear(ours: nn.Module, theirs: nn.Module) -> Pairs:
    """A linear layer or a norm."""
    yield [ours.weight], theirs.weight
    yield [ours.bias], theirs.bias


def of_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> Pairs:
    projections = (ours.query, ours.key, ours.value)
    yield [x.weight for x in projections], theirs.in_proj_weight
    yield [x.bias for x in projections], theirs.in_proj_bias
    yield from of_linear(ours.output, theirs.out_proj)


def of_block(ours: nn.Module, theirs: nn.Module) -> Pairs:
    """An encoder block, or a decoder block, which has cross-attention and the second norm for it."""
    yield from of_attention(ours.attention, theirs.self_attn)
    yield from of_linear(ours.attention_residual.norm, theirs.norm1)
    if isinstance(ours, DecoderBlock):
        yield from of_attention(ours.cross_attention, theirs.multihead_attn)
        yield from of_linear(ours.cross_attention_residual.norm, theirs.norm2)
    yield from of_linear(ours.feed_forward.up, theirs.linear1)
    yield from of_linear(ours.feed_forward.down, theirs.linear2)
    last = theirs.norm3 if isinstance(ours, DecoderBlock) else theirs.norm2
    yield from of_linear(ours.feed_forward_residual.norm, last)


@torch.no_grad()
def give_weights(pairs: Pairs) -> None:
    """Draw every weight of ours anew, norms and biases too, and hand it to torch."""
    for ours, theirs in pairs:
        for weight in ours:
            weight.normal_(std=0.3)
        theirs.copy_(torch.cat(ours))


def assert_same_gradients(output: Tensor, reference: Tensor, pairs: Pairs) -> None:
    assert_close(output, reference, **TOLERANCE)
    direction = torch.randn_like(output)
    for x in (output, reference):
        (x * direction).sum().backward()
    for ours, theirs in pairs:
        assert theirs.grad is not None and theirs.grad.any()
        assert_close(torch.cat([weight.grad for weight in ours]), theirs.grad, **TOLERANCE)


def padding(length: int) -> Tensor:
    """attention_mask (2, T): the second example ends two tokens early. torch wants the complement."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, -2:] = 0
    return mask


def future(length: int) -> Tensor:
    """torch's causal mask: True where a query must not look."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


@KERNELS
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_attention(kind, kernel):
    config = configuration(kernel)
    ours = MultiHeadAttention(config, causal=kind == "causal")
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    give_weights(of_attention(ours, theirs))
    x = torch.randn(2, 7, WIDTH)
    memory = torch.randn(2, 9, WIDTH) if kind == "cross" else None
    source = x if memory is None else memory
    seen = padding(source.shape[1])
    if kind == "self":
        mask = self_attention_mask(config, x, seen, None, {})
    elif kind == "causal":
        mask = self_attention_mask(config, x, seen, None, {}, causal=True)
    else:
        mask = cross_attention_mask(config, x, memory, seen, None, None, {})
    output, weights = ours(x, mask, memory)
    reference, reference_weights = theirs(
        x,
        source,
        source,
        key_padding_mask=seen == 0,
        attn_mask=future(7) if kind == "causal" else None,
        average_attn_weights=False,
    )
    assert_same_gradients(output, reference, of_attention(ours, theirs))
    if kernel == "eager":
        assert_close(weights, reference_weights, **TOLERANCE)


@KERNELS
@NORMS
@ACTIVATIONS
def test_encoder_block(activation, norm, kernel):
    config = configuration(kernel, norm, activation)
    ours, theirs = EncoderBlock(config), nn.TransformerEncoderLayer(**in_torch(norm, activation))
    give_weights(of_block(ours, theirs))
    x, seen = torch.randn(2, 7, WIDTH), padding(7)
    output = ours(x, self_attention_mask(config, x, seen, None, {}))
    reference = theirs(x, src_key_padding_mask=seen == 0)
    assert_same_gradients(output, reference, of_block(ours, theirs))


@KERNELS
@NORMS
@ACTIVATIONS
def test_decoder_block(activation, norm, kernel):
    config = configuration(kernel, norm, activation)
    ours, theirs = DecoderBlock(config), nn.TransformerDecoderLayer(**in_torch(norm, activation))
    give_weights(of_block(ours, theirs))
    x, memory = torch.randn(2, 7, WIDTH), torch.randn(2, 9, WIDTH)
    mask = self_attention_mask(config, x, padding(7), None, {}, causal=True)
    memory_mask = cross_attention_mask(config, x, memory, padding(9), None, None, {})
    output = ours(x, mask, memory, memory_mask)
    reference = theirs(
        x,
        memory,
        tgt_mask=future(7),
        tgt_key_padding_mask=padding(7) == 0,
        memory_key_padding_mask=padding(9) == 0,
    )
    assert_same_gradients(output, reference, of_block(ours, theirs))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@NORMS
def test_whole_transformer(norm):
    """torch ends both stacks with one more norm, whatever the layers do.

    Ours has it where the norm is pre, and there the two are compared as they are. Where it is post, every block ends
    with a norm already (Vaswani 2017, 3.1): torch's last ones are taken away.
    """
    config = configuration(norm=norm)
    ours = KeelSeq2SeqModel(config)
    theirs = nn.Transformer(num_encoder_layers=3, num_decoder_layers=2, **in_torch(norm, "relu"))
    if norm == "post":
        theirs.encoder.norm = theirs.decoder.norm = None

    def pairs() -> Pairs:
        for mine, other in ((ours.encoder.stack, theirs.encoder), (ours.decoder.stack, theirs.decoder)):
            for block, layer in zip(mine.blocks, other.layers, strict=True):
                yield from of_block(block, layer)
            if norm == "pre":
                yield from of_linear(mine.norm, other.norm)

    give_weights(pairs())
    source, target = torch.randint(0, 30, (2, 9)), torch.randint(0, 30, (2, 7))
    output = ours(source, padding(9), target, padding(7)).last_hidden_state
    reference = theirs(
        ours.encoder.embeddings(source).detach(),
        ours.decoder.embeddings(target).detach(),
        tgt_mask=future(7),
        src_key_padding_mask=padding(9) == 0,
        tgt_key_padding_mask=padding(7) == 0,
        memory_key_padding_mask=padding(9) == 0,
    )
    assert_same_gradients(output, reference, pairs())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("pad", [None, 12, 5])
def test_smoothed_loss(pad, smoothing):
    """No padding token: torch's loss. With one, of logit -1e4: torch's loss over the words that are left."""
    logits, labels = torch.randn(2, 7, 13), torch.randint(0, 13, (2, 7))
    labels[0, 3:] = -100
    words = [word for word in range(13) if word != pad]
    if pad is not None:
        logits[..., pad] = -1e4
        labels[labels == pad] = 0
    mine, other = (logits.clone().requires_grad_() for _ in range(2))
    loss = smoothed_loss(mine, labels, pad, smoothing, None)
    renumbered = labels - (labels > (13 if pad is None else pad)).long()
    reference = cross_entropy(other[..., words].flatten(0, 1), renumbered.flatten(), label_smoothing=smoothing)
    assert_close(loss, reference, **TOLERANCE)
    loss.backward()
    reference.backward()
    assert_close(mine.grad, other.grad, **TOLERANCE)  # zero for padding, too
    by_count = smoothed_loss(logits, labels, pad, smoothing, {"labels": 40})
    assert_close(by_count * 40, reference * (labels != -100).sum(), **TOLERANCE)
