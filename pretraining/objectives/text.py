"""What every objective of tokens shares: the tokenizer that is saved, and positions that a longer phase begins with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pretraining.data.tokenizer import TARGET
from pretraining.init_from import load_weights
from pretraining.objectives.base import Examples, Head


class TokenExamples(Examples):
    """Examples of tokens."""

    tokenizer: PreTrainedTokenizerBase
    target_tokenizer: PreTrainedTokenizerBase | None = None
    """The targets' tokenizer, where they have a vocabulary of their own."""


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
