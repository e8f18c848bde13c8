"""Where in a text the answer to a question stands (Devlin 2018, 4.2 and 4.3).

A window is [CLS] question [SEP] part of the text [SEP]. One that does not have the whole answer has it at [CLS].

N examples, R rows, L tokens in a row, P the most windows in a row.
"""

from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetuning import metrics
from finetuning.prepared import PreparedTexts, Reader, read_texts
from finetuning.tasks.base import FinetuneHead, Record, RecordScoring, WindowExamples, members
from finetuning.windows import Windows
from modeling import KeelBertForQuestionAnswering
from pretraining.data.packing import IGNORED, Example
from pretraining.objectives.base import Batch, Objective
from pretraining.settings import Settings

BEST = 20  # starts and ends that are combined, as in the released code of Devlin 2018


class Answer(NamedTuple):
    """The best answer of all windows: its place in the text in characters, and how likely it is among what they say."""

    start: int
    end: int
    score: float
    """The log-probability that the window gives it, its start's and its end's."""
    none: float
    """That of no answer: the least of all windows, for each that lacks the answer must say so."""


def best_answer(
    data: PreparedTexts, windows: Windows, number: int, start: np.ndarray, end: np.ndarray, answer_length: int
) -> Answer:
    """The best span of an example's text.

    Args:
        start, end: the log-probabilities of its tokens, window behind window (T,).
        answer_length: longest answer in tokens.
    """
    assert data.places is not None
    places = data.places[data.span(number, 1)]
    best, at, none = Answer(0, 0, -np.inf, 0.0), 0, np.inf
    for question, part in windows.cut(number):
        first = at + question.stop + 2  # behind [CLS], the question and [SEP]
        size = part.stop - part.start
        none = min(none, float(start[at] + end[at]))
        starts, ends = start[first : first + size], end[first : first + size]
        for s in np.argsort(-starts, kind="stable")[:BEST].tolist():
            for e in np.argsort(-ends, kind="stable")[:BEST].tolist():
                score = float(starts[s] + ends[e])
                if s <= e < s + answer_length and score > best.score:
                    best = Answer(int(places[part.start + s, 0]), int(places[part.start + e, 1]), score, 0.0)
        at = first + size + 1
    return best._replace(none=none)


class SpanExamples(WindowExamples):
    """A question and its text each, with the answer's place."""

    kind = "spans"
    places = True
    cut_second = True

    @property
    def shown(self) -> list[str]:
        return ["question", "context"]

    @property
    def reader(self) -> Reader:
        return partial(read_texts, columns=self.shown)

    def read_labels(self) -> list[str]:
        lines = []
        for split, table in self.tables.items():
            answers = table.dataset["answers"][:]
            without = sum(not each for each in answers)
            lines.append(f"{split}: {len(answers):,} questions, {without:,} without an answer")
        return lines

    @cached_property
    def may_lack(self) -> bool:
        """Whether a question may have no answer, as in SQuAD 2."""
        return any(not each for each in self.tables["train"].dataset["answers"])

    @property
    def metric_names(self) -> list[str]:
        return ["f1", "exact_match", "loss"]

    def targets_of(self, split: str, number: int, example: Example) -> Example:
        """The places of each window's answer among the example's tokens (windows,)."""
        data, windows, row = self.data[split], self.windows[split], self.tables[split].dataset[number]
        assert data.places is not None
        places = data.places[data.span(number, 1)]
        inside = np.zeros(len(places), dtype=bool)
        if row["answers"]:
            begin, end = row["starts"][0], row["starts"][0] + len(row["answers"][0])
            inside = (places[:, 1] > begin) & (places[:, 0] < end) & (places[:, 1] > places[:, 0])
        tokens = np.flatnonzero(inside)
        starts, ends, at = [], [], 0
        for question, part in windows.cut(number):
            first = at + question.stop + 2 - part.start  # where the text's token 0 would be
            whole = len(tokens) and part.start <= tokens[0] and tokens[-1] < part.stop
            starts.append(first + int(tokens[0]) if whole else at)
            ends.append(first + int(tokens[-1]) if whole else at)
            at = first + part.stop + 1
        return {"start_positions": np.array(starts), "end_positions": np.array(ends)}

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        tensors = self.pack_windows(rows, sequences)
        places = tensors.pop("example_ids").shape[1]
        del tensors["sequence_starts"]
        targets: dict[str, int] = {}
        for name in ("start_positions", "end_positions"):
            packed = np.full((len(rows), places), IGNORED, dtype=np.int64)
            for row, examples in zip(packed, rows, strict=True):
                sizes = np.cumsum([0, *(len(example["input_ids"]) for example in examples)])
                found = [example[name] + at for example, at in zip(examples, sizes, strict=False)]
                if found:
                    flat = np.concatenate(found)
                    row[: len(flat)] = flat
            tensors[name] = torch.from_numpy(packed)
            targets[name] = int((packed != IGNORED).sum())
        return Batch(tensors, targets, units=int((tensors["sequence_ids"] != 0).sum()))


def window_log_probabilities(scores: Tensor, sizes: list[int]) -> np.ndarray:
    """Scores of an example's tokens (T,), window behind window, each window's normalised by itself."""
    return torch.cat([window.log_softmax(0) for window in scores.split(sizes)]).numpy()


class SpanHead(FinetuneHead[SpanExamples]):
    model_class = KeelBertForQuestionAnswering


class SpanScoring(RecordScoring[SpanExamples]):
    """Loss, and exact match and F1 of the answers as SQuAD counts them."""

    def records(self, out: Any, batch: Batch) -> list[Record]:
        examples = self.examples
        data, windows = examples.data["validation"], examples.windows["validation"]
        logits = [scores.float().cpu() for scores in (out.start_logits, out.end_logits)]  # each (R, L)
        found: list[Record] = []
        row_now, at = -1, 0
        for row, _, number in members(batch.tensors["index"]):
            at = at if row == row_now else 0
            example = examples.window_tokens(data, windows, number)
            targets = examples.targets_of("validation", number, example)
            sizes = example["window_lengths"].tolist()
            row_now, span = row, slice(at, at + sum(sizes))
            at = span.stop
            start, end = (window_log_probabilities(scores[row, span], sizes) for scores in logits)
            answer = best_answer(data, windows, number, start, end, examples.settings.answer_length)
            true = examples.tables["validation"].dataset[number]
            lacks = examples.may_lack and answer.none > answer.score
            found.append(
                {
                    "index": number,
                    "predicted": "" if lacks else true["context"][answer.start : answer.end],
                    "label": true["answers"],
                    "loss": -float(start[targets["start_positions"]].mean() + end[targets["end_positions"]].mean()) / 2,
                }
            )
        return found

    def score(self, records: list[Record], final: bool) -> dict[str, float]:
        return metrics.squad([record["predicted"] for record in records], [record["label"] for record in records])

    def explain(self, record: Record, row: dict[str, Any]) -> Record:
        return {"true": record["label"], "predicted": record["predicted"]}


def objective(settings: Settings) -> Objective:
    return Objective.of(SpanExamples(settings), SpanHead, SpanScoring)
