"""What every objective of tokens shares: the tokenizer that is saved, and positions that a longer phase begins with."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pretraining.data.tokenizer import TARGET
from pretraining.init_from import load_weights
from pretraining.objectives.base import Examples, Head

UNKNOWN = 0.01  # share of a text from which on it is worth a warning that the tokenizer does not know it
LOWER_CASE = {
    "tr": "i of the Turkish I, which is the capital of ı",
    "az": "i of the Azerbaijani I, which is the capital of ı",
    "el": "σ of every Greek Σ, also where ς ends a word",
}


class TokenExamples(Examples):
    """Examples of tokens."""

    tokenizer: PreTrainedTokenizerBase
    target_tokenizer: PreTrainedTokenizerBase | None = None
    """The targets' tokenizer, where they have a vocabulary of their own."""

    def describe_unknown(self, shares: dict[str, float]) -> list[str]:
        """A line that tells how much of each split's text its tokens lack, and a warning where that is much.

        Args:
            shares: of the characters that are the unknown token.
        """
        self.results = {"unknown": shares}
        token = self.tokenizer.unk_token or "unknown to the tokenizer"
        lines = [f"{' and '.join(f'{share:.2%} of the {split}' for split, share in shares.items())} text is {token}"]
        if max(shares.values()) > UNKNOWN:
            lines.append(f"warning: nothing is learnt of text that is {token}: {self.mend_unknown()}")
        return lines

    def mend_unknown(self) -> str:
        """What helps where the tokenizer does not know the text."""
        if self.run.init_from is not None:
            return "start from a checkpoint whose tokenizer knows this text (init_from)"
        if self.run.tokenizer.path is not None:
            return "name a tokenizer that knows it, or leave tokenizer.path out and set tokenizer.kind to bpe"
        return "set tokenizer.kind to bpe, which knows every character, or tokenizer.vocab_size higher"

    def describe_case(self, languages: Iterable[str | None]) -> list[str]:
        """A line where small letters are other letters: of the Turkish I and the final sigma of Greek."""
        if self.run.tokenizer.path is not None or self.run.tokenizer.cased:
            return []
        found = [LOWER_CASE[language] for language in dict.fromkeys(languages) if language in LOWER_CASE]
        return [f"tokenizer.cased is false, and small letters make {what}: set it to true" for what in found]


AnyTokens = TypeVar("AnyTokens", bound=TokenExamples)


class TokenHead(Head[AnyTokens]):
    """A model that reads tokens."""

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:  # type: ignore[override]
        if self.examples.target_tokenizer is None:
            return {"tokenizer": ("AutoTokenizer", "")}
        return {"tokenizer": ("AutoTokenizer", ""), "target_tokenizer": ("AutoTokenizer", TARGET)}

    def load_weights(self, model: PreTrainedModel, checkpoint: str) -> str:
        return load_weights(model, checkpoint, self.examples.tokenizer)

    @torch.no_grad()
    def enter_phase(self, model: Any, before: Sequence[Examples]) -> None:
        """Positions that were never trained start as copies of those that were (Beltagy 2020, 4.1).

        A model that has learnt to look at its neighbours would not find them at positions as they were drawn, and its
        loss would jump. Trained are the positions that an example of an earlier phase could have, and all of a
        checkpoint that the run started from.
        """
        lengths = (examples.settings.sequence_length for examples in before)
        trained = max(self.examples.run.trained_positions, *lengths)
        tables = model.get_position_embeddings()
        for table in tables if isinstance(tables, tuple) else (tables,):
            if isinstance(table, nn.Embedding):  # sinusoids need no training
                untrained = torch.arange(trained, table.num_embeddings, device=table.weight.device)
                table.weight[untrained] = table.weight[untrained % trained]

    def save_inputs(self, folder: Path) -> None:
        self.examples.tokenizer.save_pretrained(folder)
        if self.examples.target_tokenizer is not None:
            self.examples.target_tokenizer.save_pretrained(folder / TARGET)
