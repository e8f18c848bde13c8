"""Where in a text the answer to a question stands (Devlin 2018, 4.2 and 4.3).

A window is [CLS] question [SEP] part of the text [SEP]. One that does not have the whole answer has it at [CLS].

E examples of a batch, T tokens of an example.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetuning.metrics.answers import answer_metrics
from finetuning.prepared import PreparedTexts, Reader, read_texts
from finetuning.tasks.base import FinetuneHead, WindowExamples
from finetuning.tasks.records import Record, WindowScoring
from finetuning.windows import Windows
from modeling import KeelBertForQuestionAnswering
from pretraining.data.packing import IGNORED, Example, pack_values
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
            answers = table.targets
            without = sum(not each for each in answers)
            lines.append(f"{split}: {len(answers):,} questions, {without:,} without an answer")
        return lines

    @cached_property
    def may_lack(self) -> bool:
        """Whether a question may have no answer, as in SQuAD 2."""
        return any(not each for each in self.tables["train"].targets)

    @property
    def metric_names(self) -> list[str]:
        return ["f1", "exact_match", "loss"]

    def targets_of(self, split: str, number: int) -> Example:
        """The place of the answer in each window, counted from the window's [CLS]: (windows,)."""
        data, windows, row = self.data[split], self.windows[split], self.tables[split].dataset[number]
        assert data.places is not None
        places = data.places[data.span(number, 1)]
        inside = np.zeros(len(places), dtype=bool)
        if row["answers"]:
            begin, end = row["starts"][0], row["starts"][0] + len(row["answers"][0])
            inside = (places[:, 1] > begin) & (places[:, 0] < end) & (places[:, 1] > places[:, 0])
        tokens = np.flatnonzero(inside)
        starts, ends = [], []
        for question, part in windows.cut(number):
            first = question.stop + 2 - part.start  # where the text's token 0 would be: behind [CLS] question [SEP]
            whole = len(tokens) and part.start <= tokens[0] and tokens[-1] < part.stop
            starts.append(first + int(tokens[0]) if whole else 0)
            ends.append(first + int(tokens[-1]) if whole else 0)
        return {"start_positions": np.array(starts), "end_positions": np.array(ends)}

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        lines, tensors = self.lay_out(rows)
        del tensors["example_ids"]
        starts = tensors.pop("sequence_starts")  # (lines, windows)
        targets: dict[str, int] = {}
        for name in ("start_positions", "end_positions"):
            places = pack_values(lines.lines, name, starts.shape[1])
            tensors[name] = places.where(places == IGNORED, places + starts)  # in the line
            targets[name] = int((places != IGNORED).sum())
        return Batch(tensors, targets, int((tensors["sequence_ids"] != 0).sum()), lines)


def window_log_probabilities(windows: Sequence[Tensor]) -> np.ndarray:
    """Scores of an example's tokens, window by window, each window's normalised by itself: (T,)."""
    return torch.cat([window.log_softmax(0) for window in windows]).numpy()


class SpanHead(FinetuneHead[SpanExamples]):
    model_class = KeelBertForQuestionAnswering


class SpanScoring(WindowScoring[SpanExamples]):
    """Loss, and exact match and F1 of the answers as SQuAD counts them."""

    def records(self, out: Any, batch: Batch) -> list[Record]:
        examples, lines = self.examples, batch.source
        data, windows = examples.data["validation"], examples.windows["validation"]
        sides = [lines.windows_of(scores.float().cpu()) for scores in (out.start_logits, out.end_logits)]
        found: list[Record] = []
        for number, *scores in zip(lines.index, *sides, strict=True):
            start, end = map(window_log_probabilities, scores)
            answer = best_answer(data, windows, number, start, end, examples.settings.answer_length)
            targets = examples.targets_of("validation", number)
            firsts = np.cumsum([0, *map(len, scores[0][:-1])])  # of each window, behind the others
            losses = [
                -side[firsts + targets[name]].mean()
                for name, side in (("start_positions", start), ("end_positions", end))
            ]
            row = examples.tables["validation"].dataset[number]
            lacks = examples.may_lack and answer.none > answer.score
            found.append(
                {
                    "index": number,
                    "predicted": "" if lacks else row["context"][answer.start : answer.end],
                    "label": row["answers"],
                    "loss": float(np.mean(losses)),
                }
            )
        return found

    def score(self, records: list[Record], final: bool) -> dict[str, float]:
        return answer_metrics([record["predicted"] for record in records], [record["label"] for record in records])

    def explain(self, record: Record, row: dict[str, Any]) -> Record:
        return {"true": record["label"], "predicted": record["predicted"]}


def objective(settings: Settings) -> Objective:
    return Objective.of(SpanExamples(settings), SpanHead, SpanScoring)
