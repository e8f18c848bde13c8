"""What a page shows of a BERT or an encoder-decoder, and of texts that it reads."""

import json
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from modeling import KeelSeq2SeqForConditionalGeneration
from pretraining.data.tokenizer import word_starts
from pretraining.errors import UserError
from pretraining.init_from import is_separate
from pretraining.publish.explore.inputs import default_texts
from pretraining.publish.explore.pack import base64_of, pack_similarities
from pretraining.publish.explore.texts import load_tokenizers, read_text
from pretraining.publish.explore.tokens import masked_words, pieces, reduce_table
from pretraining.publish.source import Source

MOST_POSITIONS = 128  # of a map
ROOM, ATTENTION = 1_250_000, 550_000  # bytes of token tables and attention together, and at most of attention
WORDS = 4  # from the inputs, whose neighbours are offered
ANALOGIES = ("king - man + woman", "was - is + are", "files - file + name", "returns - return + raise")


def positions(embeddings: Any, title: str) -> dict[str, Any]:
    """How alike positions are; where they are many, every n-th of them."""
    table = embeddings.positions.weight.detach()
    every = -(-len(table) // MOST_POSITIONS)
    unit = normalize(table[::every].double(), dim=-1)
    return {"title": title, "every": every, "maps": pack_similarities(unit @ unit.T)}


def position_tables(model: Any) -> dict[str, Any]:
    """The embeddings whose positions differ, by the title of their map."""
    if not model.config.is_encoder_decoder:
        return {"positions": model.base_model.embeddings}
    encoder, decoder = model.model.encoder.embeddings, model.model.decoder.embeddings
    if model.config.position_embedding_type == "sinusoidal":
        return {"fixed sinusoids, in encoder and decoder": encoder}
    return {"encoder": encoder, "decoder": decoder}


def token_table(embedding: Any, tokenizer: Any, title: str, room: int, seen: list[str]) -> dict[str, Any]:
    """A token table, and some words and analogies of it to begin with.

    Args:
        seen: tokens of the inputs.
    """
    weights = embedding.weight.detach()[: len(tokenizer)]
    names = pieces(tokenizer, list(range(len(weights))))
    table = reduce_table(weights, names, room - len(json.dumps(names, ensure_ascii=False).encode()))
    known = {label.removeprefix("_") for label in table.labels}
    words = [token.removeprefix("_") for token in seen]
    words = [word for word in dict.fromkeys(words) if len(word) > 1 and word.isalnum() and word in known]
    words.sort(key=len, reverse=True)
    analogies = [each for each in ANALOGIES if {*each.split()} - {"-", "+"} <= known]
    return {
        "title": title,
        "labels": table.labels,
        "dimensions": table.rows.shape[1],
        "bytes": base64_of(table.rows.numpy().tobytes()),
        "reduction": table.reduction,
        "examples": words[:WORDS] + analogies,
    }


def room_for_tables(weights: list[Tensor]) -> int:
    """Bytes that attention does not need."""
    return ROOM - min(sum(each.numel() for each in weights), ATTENTION)


def token_tables(model: Any, tokenizer: Any, target: Any, room: int, seen: list[str]) -> list[dict[str, Any]]:
    """The token tables that differ, in `room` bytes together."""
    if not is_separate(model.config):
        return [token_table(model.base_model.get_input_embeddings(), tokenizer, "tokens", room, seen)]
    encoder, decoder = model.model.encoder.embeddings.tokens, model.model.decoder.embeddings.tokens
    return [
        token_table(encoder, tokenizer, "source tokens", room // 2, seen),
        token_table(decoder, target, "target tokens", room // 2, seen),
    ]


def why_unmasked(model: Any, tokenizer: Any) -> str:
    """Why there are no predictions of masked words to show; empty where there are some."""
    if model.config.is_encoder_decoder:
        return "An encoder-decoder writes a text of its own; it puts no word in the place of a masked one."
    if not hasattr(model, "mlm"):
        return f"A {type(model).__name__} has no head that predicts masked words."
    try:
        word_starts(tokenizer)
    except UserError:
        return "This model's tokenizer does not show where words begin."
    return ""


def explore_texts(source: Source, model: Any, texts: list[str]) -> tuple[dict[str, Any], list[Tensor]]:
    """What the page shows of a model and of texts, or where there are none, of the default ones.

    Returns:
        The page's data, and the attention weights of its `maps`, in their order.

    Raises:
        UserError: a text cannot be read, or the model has no head that writes.
    """
    if source.family == "seq2seq" and not isinstance(model, KeelSeq2SeqForConditionalGeneration):
        raise UserError(f"{source.folder} has a {type(model).__name__}, which writes nothing to look at.")
    tokenizer, target = load_tokenizers(source)
    entries: list[dict[str, Any]] = []
    weights: list[Tensor] = []
    seen: list[str] = []
    unmasked = why_unmasked(model, tokenizer)
    for text in texts or default_texts(source):
        read = read_text(model, tokenizer, target, text)
        maps = [{"name": m.name, "title": m.title, "queries": m.queries, "keys": m.keys} for m in read.maps]
        entry: dict[str, Any] = {"title": text, "maps": maps}
        if read.written:
            entry["caption"] = f"The model writes: {read.written}"
        if not unmasked:
            entry["words"] = masked_words(model, tokenizer, read.inputs)
        entries.append(entry)
        weights += [each.weights for each in read.maps]
        seen += [token for each in read.maps for token in each.queries]
    content = {
        "inputs": entries,
        "positions": [positions(embeddings, title) for title, embeddings in position_tables(model).items()],
        "tables": token_tables(model, tokenizer, target, room_for_tables(weights), seen),
        "unmasked": unmasked,
    }
    return content, weights
