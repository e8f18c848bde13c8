"""What a model knows of single tokens: their names, which are alike, and which it puts in place of masked words.

V vocabulary, D dimensions, T tokens, W words.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pretraining.data.tokenizer import word_starts

PREDICTIONS = 5  # for each masked token
NEIGHBOURS, SAMPLE = 10, 200  # by how many neighbours of how many tokens a reduced table is judged
FEWEST_DIMENSIONS = 64  # below which entries are left out instead
ROWS = 32  # of a batch
BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # of byte-level tokenizers


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text of each token, behind an underscore where a word begins, and legible where it is no printable text."""
    names = tokenizer.convert_ids_to_tokens(ids)
    labels: list[str] = []
    for token, name in zip(ids, names, strict=True):
        text = str(tokenizer.decode([token])).strip()
        if "\ufffd" in text and all(c in BYTE_OF for c in name):  # a part of a character, as its bytes
            text = f"‹{' '.join(f'{BYTE_OF[c]:02x}' for c in name)}›"
        else:
            text = "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in text)
        labels.append("_" * name.startswith(("Ġ", "▁")) + text or name)
    return labels


@dataclass(frozen=True)
class TokenTable:
    """The directions of a token table's rows, as precise as there is room for."""

    labels: list[str]
    rows: Tensor
    """(V, D), int8; each row has a scale of its own, which no cosine depends on."""
    reduction: str
    """What was left out; empty where nothing was."""


def reduce_table(weights: Tensor, labels: list[str], room: int) -> TokenTable:
    """A token table (V, D) in at most `room` bytes, its cosines kept as well as possible.

    Dimensions are reduced first, to the principal ones of the unit rows (about the origin: cosines are about it too).
    Where that is not enough, the entries with the highest numbers are left out.
    """
    unit = normalize(weights.double(), dim=-1)
    count, width = unit.shape
    dimensions = min(width, max(room // count, FEWEST_DIMENSIONS))
    entries = min(count, room // dimensions)
    said: list[str] = []
    if entries < count:
        said.append(f"the first {entries:,} of {count:,} entries are here: tokenizers number frequent pieces first")
        unit = unit[:entries]
    reduced = unit
    if dimensions < width:
        lengths, axes = torch.linalg.eigh(unit.T @ unit)  # ascending
        reduced = unit @ axes[:, -dimensions:]
        share = lengths[-dimensions:].sum() / lengths.sum()
        said.append(f"{width} dimensions are reduced to {dimensions}, with {share:.0%} of the rows' squared length")
    rows = (reduced / reduced.abs().amax(1, keepdim=True).clamp(min=1e-12) * 127).round()
    if said:
        shared = shared_neighbours(unit, rows)
        said.append(f"of a token's ten nearest neighbours {shared:.1f} are those of the whole rows")
    return TokenTable(labels[:entries], rows.to(torch.int8), "; ".join(said))


def shared_neighbours(full: Tensor, reduced: Tensor) -> float:
    """How many of ten nearest neighbours two tables of the same V tokens have in common, in the mean over a sample."""
    sample = torch.arange(0, len(full), max(len(full) // SAMPLE, 1))
    found: list[Tensor] = []
    for table in (full, reduced):
        unit = normalize(table.double(), dim=-1)
        cosines = unit[sample] @ unit.T
        cosines[torch.arange(len(sample)), sample] = -2.0  # a token is no neighbour of its own
        found.append(cosines.topk(min(NEIGHBOURS, len(full) - 1)).indices)
    one, other = found
    return (one[:, :, None] == other[:, None]).any(2).sum(1).double().mean().item()


@torch.no_grad()
def masked_words(model: Any, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, Tensor]) -> list[dict[str, Any]]:
    """What the model predicts where a word of its input (1, T) is masked, each in turn.

    Returns:
        For each word, special tokens among them, its `tokens`; and for each of these, unless it is special, its
        probability (`own`) and the most probable ones (`predicted`).

    Raises:
        UserError: the tokenizer does not show where words begin.
    """
    ids = inputs["input_ids"][0]
    special = torch.tensor([token in tokenizer.all_special_ids for token in ids.tolist()])
    starts = torch.from_numpy(word_starts(tokenizer))[ids]
    starts[1:] |= special[:-1]  # the first word of a text, which byte-level tokenizers do not mark
    word = starts.cumsum(0)  # (T,): which word each token is of
    turns = [number for number in word.unique().tolist() if not special[word == number].any()]
    labels = pieces(tokenizer, ids.tolist())
    words: list[dict[str, Any]] = []
    probabilities: dict[int, Tensor] = {}
    for first in range(0, len(turns), ROWS):
        part = turns[first : first + ROWS]
        where = word[None] == torch.tensor(part)[:, None]  # (W, T)
        batch = {name: value.expand(len(part), -1) for name, value in inputs.items()}
        batch["input_ids"] = batch["input_ids"].masked_fill(where, tokenizer.mask_token_id)
        logits = model(**batch)[0]  # (W, T, V)
        probabilities |= {number: logits[row, where[row]].softmax(-1) for row, number in enumerate(part)}
    for number in word.unique().tolist():
        places = (word == number).nonzero().flatten().tolist()
        tokens: list[dict[str, Any]] = [{"label": labels[place]} for place in places]
        for place, token, found in zip(places, tokens, probabilities.get(number, []), strict=False):
            top = found.topk(PREDICTIONS)
            names = pieces(tokenizer, top.indices.tolist())
            token["own"] = round(found[ids[place]].item(), 4)
            token["predicted"] = [[n, round(p, 4)] for n, p in zip(names, top.values.tolist(), strict=True)]
        words.append({"tokens": tokens})
    return words
