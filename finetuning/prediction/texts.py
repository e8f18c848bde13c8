"""Predictions of texts by BERT's heads, in packed rows: classes and numbers, tags, answers, choices.

N texts, W windows, T tokens of all windows, C classes.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.special import expit
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from finetuning.prediction.base import (
    DIGITS,
    ONE_CLASS,
    PROBABILITIES,
    TablePredictor,
    class_names,
    finite,
    named,
    one_class,
    softmax,
)
from finetuning.prediction.lines import Source
from finetuning.prediction.settings import WINDOWS, PredictSettings, fine_tuned_with
from finetuning.prediction.windows import Rows, over_windows, pack_rows
from finetuning.prepared import BATCH, PreparedTexts, place_tokens
from finetuning.settings import WindowSettings
from finetuning.windows import Flat, Windows, flatten, ragged
from pretraining.data.readers import Row
from pretraining.data.tokenizer import load_tokenizer, require_tokens
from pretraining.errors import UserError

ANY = 2**31 - 1  # windows of a text


class WindowPredictor(TablePredictor):
    """A predictor of texts of any length."""

    places = False
    """Whether it matters where in its text each token stands."""
    cut_second = False
    most_windows = ANY

    def __init__(self, folder: Path, model: PreTrainedModel, settings: PredictSettings):
        super().__init__(folder, model, settings)
        self.tokenizer = load_tokenizer(str(folder))
        require_tokens(self.tokenizer, ("cls_token", "sep_token", "pad_token"))
        if len(self.tokenizer) > self.config.vocab_size:
            raise UserError(
                f"the tokenizer of {folder} has {len(self.tokenizer)} entries, its model {self.config.vocab_size}: "
                "give a folder in which they fit each other."
            )
        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # a text that says [MASK] is a text, as in training
        self.backend = backend
        self.unknown = self.tokenizer.unk_token_id
        self.window = self.window_settings()

    def window_settings(self) -> WindowSettings:
        """How texts are cut: as the settings say, else as in fine-tuning."""
        before = fine_tuned_with(self.folder)
        self.whence = " as it was fine-tuned" if before else ""
        values = WINDOWS | before
        most = self.config.max_position_embeddings
        given = self.settings
        if given.sequence_length is not None and given.sequence_length > most:
            raise UserError(f"--sequence_length is {given.sequence_length}, and the model reads at most {most} tokens.")
        length = given.sequence_length or min(values["sequence_length"], most)
        largest = (length - 3) // 2 - 1
        if given.stride is not None and given.stride > largest:
            raise UserError(f"--stride is {given.stride}, and windows of {length} tokens can share at most {largest}.")
        stride = min(values["stride"], largest) if given.stride is None else given.stride
        return WindowSettings(sequence_length=length, stride=stride, windows=self.most_windows)

    def describe(self) -> list[str]:
        length, stride = self.window.sequence_length, self.window.stride
        whence = self.whence if self.settings.sequence_length is None and self.settings.stride is None else ""
        return [*super().describe(), f"windows of {length} tokens, {stride} in common with the one before{whence}"]

    @property
    def resolved(self) -> dict[str, Any]:
        return {"sequence_length": self.window.sequence_length, "stride": self.window.stride}

    # ---- texts to windows ----

    def texts(self, example: Any) -> list[str]:
        """The sides of an example."""
        raise NotImplementedError

    def tokenise(self, texts: list[list[str]]) -> PreparedTexts:
        """The tokens of N examples of S texts."""
        flat = list(chain.from_iterable(texts))
        places = None
        if self.places:
            arrays, _ = place_tokens(flat, self.backend, self.unknown)
            tokens, sizes, places = arrays["tokens"], arrays["bounds"], arrays["places"].reshape(-1, 2)
        else:
            found: list[list[int]] = []
            for first in range(0, len(flat), BATCH):
                batch = self.backend.encode_batch_fast(flat[first : first + BATCH], add_special_tokens=False)
                found += [encoding.ids for encoding in batch]
            tokens = np.fromiter(chain.from_iterable(found), dtype=np.int64)
            sizes = np.array([len(ids) for ids in found], dtype=np.int64)
        bounds = np.concatenate([[0], sizes.cumsum()])
        return PreparedTexts("", tokens, bounds, len(texts[0]), 0.0, places)

    def windows_of(self, data: PreparedTexts) -> tuple[Windows, Flat]:
        pairs = data.sides > 1
        lengths = data.lengths if pairs else np.pad(data.lengths, ((0, 0), (0, 1)))
        windows = Windows.of(lengths, pairs, self.window, self.cut_second)
        every = np.arange(len(lengths))
        return windows, flatten(data, windows, every, self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)

    def prepare(self, examples: list[Any]) -> tuple[PreparedTexts, Windows, Flat]:
        data = self.tokenise([self.texts(example) for example in examples])
        windows, flat = self.windows_of(data)
        if unread := int((windows.unread > 0).sum()):
            note = "lines of which one side is longer than half a window, so that its end was not read"
            self.notes[note] = self.notes.get(note, 0) + unread
        return data, windows, flat

    # ---- windows to outputs ----

    def forwarded(self, flat: Flat) -> Iterator[tuple[Rows, list[torch.Tensor]]]:
        """The windows in packed rows, and what the head says of them."""
        return self.computer.map(self.forward, pack_rows(flat, self.settings.rows, self.tokenizer.pad_token_id))

    def inputs(self, rows: Rows) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.computer.device) for name, tensor in rows.tensors.items()}

    def forward(self, rows: Rows) -> list[torch.Tensor]:
        """What the head says of these rows: of each window (R, E, C) or of each token (R, L, C)."""
        raise NotImplementedError

    def of_windows(self, flat: Flat) -> np.ndarray:
        """The logits of each window: (W, C)."""
        found: np.ndarray | None = None
        for rows, (logits,) in self.forwarded(flat):
            values = logits.float().cpu().numpy()  # (R, E, C)
            if found is None:
                found = np.empty((len(flat.sizes), values.shape[-1]), dtype=np.float32)
            found[rows.windows] = values[rows.row, rows.place]
        assert found is not None
        return found

    def of_tokens(self, flat: Flat) -> np.ndarray:
        """The logits of each token, window behind window: (T, C)."""
        found: np.ndarray | None = None
        for rows, logits in self.forwarded(flat):
            values = torch.cat(logits, -1).float().flatten(0, 1).cpu().numpy()  # (R L, C)
            if found is None:
                found = np.empty((len(flat.input_ids), values.shape[-1]), dtype=np.float32)
            sizes, length = flat.sizes[rows.windows], rows.tensors["input_ids"].shape[1]
            of = ragged(flat.starts[rows.windows], sizes)
            found[of] = values[ragged(rows.row * length + rows.start, sizes)]
        assert found is not None
        return found


class PooledPredictor(WindowPredictor):
    """A head that reads each window's pooled vector."""

    def forward(self, rows: Rows) -> list[torch.Tensor]:
        outputs = self.model.bert(**self.inputs(rows), pooler_only=True, return_dict=True)
        return [self.model.classifier(outputs.pooler_output)]


class ClassPredictor(PooledPredictor):
    """One class, several classes or a number for each text or pair."""

    kind = "text"

    def __init__(self, folder: Path, model: PreTrainedModel, settings: PredictSettings):
        super().__init__(folder, model, settings)
        self.names = class_names(self.config)
        problem = self.config.problem_type
        if problem is None:
            problem = "regression" if self.config.num_labels == 1 else "single_label_classification"
        self.problem = problem
        self.pooling = settings.window_pooling or self.config.window_pooling
        self.writes = {
            "single_label_classification": ONE_CLASS,
            "multi_label_classification": {"labels": pa.list_(pa.string()), "probabilities": PROBABILITIES},
            "regression": {"value": pa.float64()},
        }[problem]

    def texts(self, example: Row) -> list[str]:
        return [example[part] for part in ("text", "pair") if part in self.found.columns]

    def predict(self, examples: list[Row]) -> list[Row]:
        _, _, flat = self.prepare(examples)
        logits = finite(over_windows(self.of_windows(flat), flat.owners, self.pooling))  # (N, C)
        if self.problem == "regression":
            return [{"value": round(value, DIGITS)} for value in logits[:, 0].astype(float).tolist()]
        if self.problem == "single_label_classification":
            return one_class(logits, self.names, self.settings.top)
        probabilities = expit(logits.astype(np.float64))
        rows = zip(probabilities, named(probabilities, self.names, self.settings.top), strict=True)
        return [
            {"labels": [self.names[number] for number in np.flatnonzero(row > 0.5)], "probabilities": every}
            for row, every in rows
        ]


class ChoicePredictor(PooledPredictor):
    """The best of several choices, each a sequence of its own."""

    kind = "choice"
    most_windows = 1
    writes = {"choice": pa.int64(), "score": pa.float64(), "probabilities": pa.list_(pa.float64())}

    def find_columns(self, source: Source) -> list[str]:
        names = super().find_columns(source)
        self.before = [part for part in ("context", "question") if part in self.found.columns]
        return names

    def sequences(self, example: Row) -> list[list[str]]:
        """What each choice is read with, as in fine-tuning."""
        if not self.before:
            return [[choice] for choice in example["choices"]]
        before = " ".join(filter(None, (example["context"], example["question"])))
        return [[before, choice] for choice in example["choices"]]

    def prepare(self, examples: list[Row]) -> tuple[PreparedTexts, Windows, Flat]:
        data = self.tokenise(list(chain.from_iterable(map(self.sequences, examples))))
        windows, flat = self.windows_of(data)
        if unread := int((windows.unread > 0).sum()):
            note = "choices that are longer than a window, so that their end was not read"
            self.notes[note] = self.notes.get(note, 0) + unread
        return data, windows, flat

    def predict(self, examples: list[Row]) -> list[Row]:
        _, _, flat = self.prepare(examples)
        scores = finite(self.of_windows(flat))[:, 0]
        counts = [len(example["choices"]) for example in examples]
        rows = []
        for logits in np.split(scores, np.cumsum(counts)[:-1]):
            probabilities = softmax(logits).round(DIGITS).tolist()
            best = int(logits.argmax())
            rows.append({"choice": best, "score": probabilities[best], "probabilities": probabilities})
        return rows
