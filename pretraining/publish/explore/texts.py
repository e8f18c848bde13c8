"""Where a model looks in a text: the attention of every layer and head.

L layers, A heads, Q queries, K keys, T tokens, S source tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pretraining.data.tokenizer import TARGET, load_tokenizer
from pretraining.errors import UserError
from pretraining.init_from import is_separate
from pretraining.publish.explore.tokens import pieces
from pretraining.publish.source import Source

PAIR = "|||"  # between the two texts of one input


@dataclass(frozen=True)
class TextMaps:
    """The attention of one stack of layers over a text."""

    name: str
    title: str
    queries: list[str]
    keys: list[str]
    weights: Tensor
    """(L, A, Q, K); rows sum to 1."""


@dataclass(frozen=True)
class ReadText:
    """What a model makes of a text, or of a pair."""

    inputs: dict[str, Tensor]
    """The encoder's, (1, T) each."""
    written: str
    """By an encoder-decoder."""
    maps: list[TextMaps]


def load_tokenizers(source: Source) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """That of the texts that a model reads, and that of what it writes; mostly they are one."""
    tokenizer = load_tokenizer(str(source.folder))
    return tokenizer, load_tokenizer(str(source.folder), TARGET) if is_separate(source.config) else tokenizer


def encode_text(model: Any, tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, Tensor]:
    """An encoder's input (1, T) of a text, or of two with `|||` between them for a BERT.

    Raises:
        UserError: a text is empty or too long, or there are more than the model reads.
    """
    config = model.config
    start = text if len(text) <= 40 else f"{text[:40]}…"
    parts = [part.strip() for part in text.split(PAIR)]
    most = 1 if config.is_encoder_decoder or config.type_vocab_size == 1 else 2
    if not all(parts):
        raise UserError(f"the input {start!r} has an empty text: give some words.")
    if len(parts) > most:
        raise UserError(
            f"the input {start!r} has {len(parts)} texts, and the model reads {most} at a time: give fewer."
        )
    inputs = dict(tokenizer(*parts, return_tensors="pt", verbose=False))  # what is too long is told below
    tokens, positions = inputs["input_ids"].shape[1], config.max_position_embeddings
    if tokens > positions:
        raise UserError(
            f"the input {start!r} has {tokens} tokens, and the model has {positions} positions: shorten it."
        )
    return inputs


@torch.no_grad()
def read_text(model: Any, tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase, text: str) -> ReadText:
    """What a BERT or an encoder-decoder, under the eager kernel, makes of a text.

    Args:
        target: the tokenizer of what an encoder-decoder writes.

    Raises:
        UserError: a text is empty or too long, or there are more than the model reads.
    """
    if not model.config.is_encoder_decoder:
        inputs = encode_text(model, tokenizer, text)
        weights = torch.cat(model.base_model(**inputs, output_attentions=True).attentions)  # (L, A, T, T)
        labels = pieces(tokenizer, inputs["input_ids"][0].tolist())
        return ReadText(inputs, "", [TextMaps("encoder", "text at text", labels, labels, weights)])
    inputs = {"input_ids": encode_text(model, tokenizer, text)["input_ids"]}  # (1, S)
    generated = model.generate(**inputs)  # (1, T + 1), behind the start token
    read, written = generated[:, :-1], generated[:, 1:]
    outputs = model(**inputs, decoder_input_ids=read, output_attentions=True)
    sources = pieces(tokenizer, inputs["input_ids"][0].tolist())
    decoder_input = pieces(target, read[0].tolist())
    targets = pieces(target, written[0].tolist())
    maps = [
        TextMaps("encoder", "source at source", sources, sources, torch.cat(outputs.encoder_attentions)),
        TextMaps("decoder", "target at target", decoder_input, decoder_input, torch.cat(outputs.decoder_attentions)),
        TextMaps("cross", "target at source", targets, sources, torch.cat(outputs.cross_attentions)),
    ]
    return ReadText(inputs, str(target.decode(written[0], skip_special_tokens=True)).strip(), maps)
