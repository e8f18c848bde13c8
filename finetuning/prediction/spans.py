"""Predictions of places in a text: tags of words and the entities that they make, and answers to questions.

Places are characters of the text as the file has it. T tokens, C classes.
"""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from finetuning.data.columns import TOKENS, Kind
from finetuning.prediction.base import DIGITS, class_names, finite, softmax
from finetuning.prediction.lines import Line, Source
from finetuning.prediction.settings import PredictSettings
from finetuning.prediction.texts import WindowPredictor
from finetuning.prediction.windows import Rows
from finetuning.tasks.spans import best_answer, window_log_probabilities
from finetuning.tasks.tokens import first_tokens_of_words
from pretraining.data.readers import Row
from pretraining.data.tokenizer import word_starts

OUTSIDE = "O"
ENTITY = pa.struct(
    [("start", pa.int64()), ("end", pa.int64()), ("tag", pa.string()), ("text", pa.string()), ("score", pa.float64())]
)


def entities(text: str, words: np.ndarray, tags: list[str | None], scores: list[float]) -> list[Row]:
    """What tagged words make together: B- begins an entity, and I- goes on with one of its type, or begins one.

    Tags of another form are of single words.

    Args:
        words: where each begins and ends in the text (words, 2).
        scores: the probability of each word's tag; an entity has their mean.
    """
    found: list[tuple[str, list[int]]] = []
    for number, tag in enumerate(tags):
        if tag is None or tag == OUTSIDE:
            continue
        position, dash, kind = tag.partition("-")
        is_bio = bool(dash) and position in ("B", "I")
        is_behind = bool(found) and found[-1][1][-1] == number - 1
        if is_bio and position == "I" and is_behind and found[-1][0] == kind:
            found[-1][1].append(number)
        else:
            found.append((kind if is_bio else tag, [number]))
    rows = []
    for kind, members in found:
        start, end = int(words[members[0], 0]), int(words[members[-1], 1])
        score = round(float(np.mean([scores[number] for number in members])), DIGITS)
        rows.append({"start": start, "end": end, "tag": kind, "text": text[start:end], "score": score})
    return rows


class TokenPredictor(WindowPredictor):
    """A tag for each word. Texts are read as lists of words, or as they are: then the tokenizer says what a word is."""

    kind: Kind = "tokens"
    places = True

    def __init__(self, folder: Path, model: PreTrainedModel, settings: PredictSettings):
        super().__init__(folder, model, settings)
        self.names = class_names(self.config)
        self.begins = word_starts(self.tokenizer)

    def find_columns(self, source: Source) -> list[str]:
        usual = self.settings.text_column is None and any(name.lower() in TOKENS for name in source.columns)
        has_words = usual or self.settings.tokens_column is not None
        self.kind = "tokens" if has_words else "text"
        self.writes = {"entities": pa.list_(ENTITY)}
        if has_words:
            self.writes = {"tags": pa.list_(pa.string())} | self.writes
        super().find_columns(source)
        self.found = self.found.without("pair")
        return list(self.found.columns.values())

    def read(self, line: Line) -> list[str] | str:
        """The words of a line, or its text, as they stand."""
        super().read(line)  # which tells what is wrong
        (column,) = self.found.columns.values()
        value = line.row[column]
        return list(map(as_text, value)) if isinstance(value, list) else as_text(value)

    def texts(self, example: list[str] | str) -> list[str]:
        return [example if isinstance(example, str) else " ".join(example)]

    def forward(self, rows: Rows) -> list[torch.Tensor]:
        inputs = self.inputs(rows)
        del inputs["sequence_starts"]  # nothing is pooled
        return [self.model(**inputs).logits]

    def predict(self, examples: list[list[str] | str]) -> list[Row]:
        data, _, flat = self.prepare(examples)
        assert data.places is not None
        words, spans, counts = self.words(examples, data.tokens, data.places, data.bounds)
        logits = finite(self.of_tokens(flat))  # (T, C)
        # A word's tag is read at its first token, in every window that has it.
        word = np.where(flat.source >= 0, words[flat.source], -1)
        begins = word >= 0
        total, sums = int(counts.sum()), np.zeros((int(counts.sum()), logits.shape[1]))
        np.add.at(sums, word[begins], logits[begins].astype(np.float64))
        seen = np.bincount(word[begins], minlength=total)
        probabilities = softmax(sums / np.maximum(seen, 1)[:, None])
        best, scores = probabilities.argmax(1), probabilities.max(1).round(DIGITS)
        rows = []
        at = 0
        for example, count in zip(examples, counts.tolist(), strict=True):
            part = slice(at, at + count)
            at += count
            tags = [self.names[tag] if n else self.unseen for tag, n in zip(best[part], seen[part], strict=True)]
            (text,) = self.texts(example)
            row: Row = {"entities": entities(text, spans[part], tags, scores[part].tolist())}
            rows.append(row if isinstance(example, str) else {"tags": tags} | row)
        return rows

    @property
    def unseen(self) -> str | None:
        """What is said of a word that no token stands for."""
        return OUTSIDE if OUTSIDE in self.names else None

    def words(
        self, examples: list[list[str] | str], tokens: np.ndarray, places: np.ndarray, bounds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The word that each token begins, -1 where it begins none; each word's span in its text; words of each text.

        Words are numbered over the whole block.
        """
        numbers = np.full(len(tokens), -1, dtype=np.int64)
        spans: list[np.ndarray] = []
        before = 0
        for example, first, last in zip(examples, bounds, bounds[1:], strict=False):
            of_text = places[first:last]
            if isinstance(example, str):
                begins = self.begins[tokens[first:last]].copy()
                begins[:1] = True
                found = np.where(begins, np.cumsum(begins) - 1, -1)
                heads = np.flatnonzero(begins)
                tails = np.append(heads[1:], len(begins))[: len(heads)] - 1
                span = trimmed(example, of_text[heads, 0], of_text[tails, 1])
            else:
                found = first_tokens_of_words(example, of_text)
                ends = np.cumsum([len(word) + 1 for word in example]) - 1
                span = np.stack([ends - [len(word) for word in example], ends], 1)
            numbers[first:last] = np.where(found >= 0, found + before, -1)
            spans.append(span)
            before += len(span)
        return numbers, np.concatenate(spans), np.array([len(span) for span in spans])


def as_text(value: str | bytes) -> str:
    """Some writers of parquet do not say that their bytes are text."""
    return value.decode() if isinstance(value, bytes) else value


def trimmed(text: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Spans without the white space that some tokenizers keep with the word behind it, marks whole: (words, 2)."""
    spans = np.stack([starts, ends], 1)
    for span in spans:
        while span[0] < span[1] and text[span[0]].isspace():
            span[0] += 1
        span[1] = with_marks(text, int(span[1]))
    return spans


def with_marks(text: str, end: int) -> int:
    """The end of a span with the combining marks behind it, which a tokenizer may have taken away."""
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    return end


class AnswerPredictor(WindowPredictor):
    """Where in a text the answer to a question stands."""

    kind = "spans"
    places = True
    cut_second = True
    writes = {
        "answer": pa.string(),
        "start": pa.int64(),
        "end": pa.int64(),
        "score": pa.float64(),
        "no_answer": pa.float64(),
    }

    def texts(self, example: Row) -> list[str]:
        return [example["question"], example["context"]]

    def forward(self, rows: Rows) -> list[torch.Tensor]:
        inputs = self.inputs(rows)
        del inputs["sequence_starts"]
        outputs: Any = self.model(**inputs)
        return [outputs.start_logits[..., None], outputs.end_logits[..., None]]

    def predict(self, examples: list[Row]) -> list[Row]:
        data, windows, flat = self.prepare(examples)
        logits = finite(self.of_tokens(flat))  # (T, 2)
        bounds = np.concatenate([[0], np.cumsum(windows.lengths)])
        sizes = np.split(flat.sizes, np.cumsum(windows.counts)[:-1])
        rows = []
        for number, example in enumerate(examples):
            part = torch.from_numpy(logits[bounds[number] : bounds[number + 1]])  # (tokens, 2)
            start, end = (window_log_probabilities(scores.split(sizes[number].tolist())) for scores in part.unbind(1))
            answer = best_answer(data, windows, number, start, end, self.settings.answer_length)
            last = with_marks(example["context"], answer.end) if answer.end else 0
            rows.append(
                {
                    "answer": example["context"][answer.start : last],
                    "start": answer.start,
                    "end": last,
                    "score": round(float(np.exp(answer.score)), DIGITS),
                    "no_answer": round(float(np.exp(answer.none)), DIGITS),
                }
            )
        return rows
