"""Translations by an encoder-decoder, searched for in batches of sentences alike in length."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from finetuning.prediction.base import TablePredictor
from finetuning.prediction.lines import Bad, Line, Source
from finetuning.prediction.settings import PredictSettings
from modeling.search import Search
from pretraining.data.readers import Row
from pretraining.data.tokenizer import TARGET, load_tokenizer, require_end, require_tokens

SENTENCES = 32  # searched for at a time


class TranslationPredictor(TablePredictor):
    """A text for each text."""

    kind = "text"
    writes = {"translation": pa.string()}

    def __init__(self, folder: Path, model: PreTrainedModel, settings: PredictSettings):
        super().__init__(folder, model, settings)
        self.tokenizer = load_tokenizer(str(folder))
        require_tokens(self.tokenizer, ("pad_token", "eos_token"))
        require_end(self.tokenizer)
        is_separate = (folder / TARGET).is_dir()
        self.target_tokenizer = load_tokenizer(str(folder), TARGET) if is_separate else self.tokenizer
        self.backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # a text that says </s> is a text, as in training
        options: Any = self.model.generation_config
        self.beams = settings.beams or options.num_beams or 1
        most = self.config.max_position_embeddings
        asked = options.max_length if settings.max_length is None else settings.max_length + 1  # the start token
        self.max_length = min(asked or most, most)
        penalty = options.length_penalty
        self.penalty = 1.0 if penalty is None else float(penalty)
        self.search: Search | None = None

    def describe(self) -> list[str]:
        return [*super().describe(), f"search: beams {self.beams}, at most {self.max_length - 1} tokens"]

    @property
    def resolved(self) -> dict[str, Any]:
        return {"beams": self.beams, "max_length": self.max_length - 1}

    def find_columns(self, source: Source) -> list[str]:
        super().find_columns(source)
        self.found = self.found.without("pair")
        return [self.found.columns["text"]]

    def read(self, line: Line) -> np.ndarray:
        """The tokens of a text, with their end."""
        ids = self.backend.encode(super().read(line)["text"], add_special_tokens=False).ids
        most = self.config.max_position_embeddings
        if len(ids) >= most:
            raise Bad(f"it has {len(ids) + 1} tokens, and the model reads at most {most}: cut it into sentences")
        return np.array([*ids, self.tokenizer.eos_token_id], dtype=np.int64)

    def predict(self, examples: list[np.ndarray]) -> list[Row]:
        if self.search is None:
            torch.set_num_threads(self.computer.candidate.threads)  # which share each step of a search
            with self.computer.computing():
                self.search = Search(self.model)  # which lays out the weights once, in the precision that is on
        pad = self.tokenizer.pad_token_id
        order = sorted(range(len(examples)), key=lambda number: -len(examples[number]))
        texts = [""] * len(examples)
        size = self.settings.rows or SENTENCES
        for first in range(0, len(order), size):
            members = order[first : first + size]
            ids = np.full((len(members), len(examples[members[0]])), pad, dtype=np.int64)
            for row, number in zip(ids, members, strict=True):
                row[: len(examples[number])] = examples[number]
            sources = torch.from_numpy(ids).to(self.computer.device)
            with self.computer.computing():
                found = self.search(
                    sources, sources != pad, max_length=self.max_length, num_beams=self.beams,
                    length_penalty=self.penalty,
                )  # fmt: skip
            for number, target in zip(members, found.tolist(), strict=True):
                texts[number] = str(self.target_tokenizer.decode(target, skip_special_tokens=True)).strip()
        return [{"translation": text} for text in texts]
