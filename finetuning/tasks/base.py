"""What the fine-tuning tasks of texts share: examples of one or more windows in packed rows, heads, and records.

N examples, R rows, L tokens in a row, E the most examples in a row, P the most windows in a row, C classes.
"""

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetuning.adapt import adapt, merge
from finetuning.data.tables import Table, load_tables
from finetuning.metrics import rank
from finetuning.prepared import LIBRARIES, PreparedTexts, Reader, prepare_texts
from finetuning.windows import Windows
from pretraining import files
from pretraining.data import draws
from pretraining.data.packing import IGNORED, Example, layout, pack_tokens
from pretraining.data.plan import choose_row_lengths
from pretraining.data.shards import count_processes
from pretraining.data.tokenizer import load_tokenizer, require_tokens
from pretraining.errors import UserError
from pretraining.objectives.base import Batch, Examples, Scoring
from pretraining.objectives.text import TokenExamples, TokenHead
from pretraining.settings import Settings

# What a batch carries for its records; the model does not take it.
NO_INPUTS = ("index", "word_ids")

Record = dict[str, Any]
"""What is kept of a held-out example: its "index", its "loss", and what the model predicted."""


class WindowExamples(TokenExamples):
    """Rows of a table, each one or more windows of tokens, which lie one behind the other in one packed row."""

    libraries = LIBRARIES
    kind: ClassVar[str]
    """Of the table, as `load_tables` names it."""
    places: ClassVar[bool] = False
    """Whether it is kept where in its text each token stands."""
    cut_second: ClassVar[bool] = False
    """Whether it is always the second text that is cut into windows."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.tables: dict[str, Table] = {}

    def prepare(self, is_builder: bool) -> list[str]:
        cache, options = Path(self.run.cache).expanduser(), self.run.data
        self.tokenizer = load_tokenizer(self.run.tokenizer.path)
        require_tokens(self.tokenizer, ("cls_token", "sep_token", "pad_token"))
        tables = load_tables(options, self.kind)
        self.tables = {split: tables[split] for split in ("train", "validation")}
        lines = self.read_labels()
        if self.metric not in self.metric_names:
            raise UserError(
                f"objective.metric is {self.metric!r}, and what this task can be judged by is: "
                f"{', '.join(self.metric_names)}."
            )
        self.data: dict[str, PreparedTexts] = {
            split: prepare_texts(
                table,
                self.reader,
                self.sides,
                self.tokenizer,
                self.places,
                count_processes(options.processes),
                cache,
                is_builder,
            )
            for split, table in self.tables.items()
        }
        self.index_examples()
        return [
            *self.describe_table(),
            *lines,
            *self.describe_windows(),
            *self.describe_unknown({split: data.unknown for split, data in self.data.items()}),
        ]

    @property
    @abstractmethod
    def reader(self) -> Reader:
        """What reads the texts of rows, `sides` of each."""

    @property
    def sides(self) -> int:
        return len(self.shown)

    @property
    @abstractmethod
    def shown(self) -> list[str]:
        """The columns that tell what an example is about."""

    @property
    @abstractmethod
    def metric_names(self) -> list[str]:
        """The metrics that can decide which evaluation is best, the usual one first."""

    @property
    def metric(self) -> str:
        """The metric that decides which evaluation is best."""
        return self.settings.metric or self.metric_names[0]

    def describe_table(self) -> list[str]:
        counts = ", ".join(f"{split}: {len(table):,} examples" for split, table in self.tables.items())
        notes = dict.fromkeys(note for table in self.tables.values() for note in table.notes)
        return [*notes, f"{counts}, fingerprint {self.tables['train'].fingerprint}"]

    @abstractmethod
    def read_labels(self) -> list[str]:
        """Reads and checks the labels of the tables; returns lines that describe them.

        Raises:
            UserError: a label is wrong, with its file and row.
        """

    @property
    def labels_name(self) -> str:
        """What decides the numbers of labels, for the fingerprint."""
        return ""

    def cut(self, split: str) -> Windows:
        """How the examples of a split are cut into windows."""
        lengths = self.data[split].lengths
        pairs = lengths.shape[1] > 1
        both = lengths if pairs else np.pad(lengths, ((0, 0), (0, 1)))
        return Windows.of(both, pairs, self.settings, self.cut_second)

    def index_examples(self) -> None:
        self.windows = {split: self.cut(split) for split in self.data}
        self.example_lengths = {split: self.count_tokens(split) for split in self.data}
        longest = [lengths.max(keepdims=True) for lengths in self.example_lengths.values()]
        train = self.example_lengths["train"][:, None]
        self.row_lengths = choose_row_lengths(train, np.max(longest, axis=0), self.settings.row_length)
        self.most_windows = max(self.count_windows(split) for split in self.data)
        names = [data.name for data in self.data.values()]
        self.fingerprint = " ".join([*names, self.labels_name])

    def count_tokens(self, split: str) -> np.ndarray:
        """Tokens of each example of a split, special ones included: (N,)."""
        return self.windows[split].lengths

    def count_windows(self, split: str) -> int:
        """The most windows that an example of a split has."""
        return int(self.windows[split].counts.max())

    def describe_windows(self) -> list[str]:
        lines = []
        for split, windows in self.windows.items():
            lengths, several = self.example_lengths[split], int((windows.counts > 1).sum())
            line = f"{split}: {lengths.sum():,} tokens, {lengths.mean():.1f} in an example (at most {lengths.max():,})"
            if several:
                line += f"; {several:,} texts in several windows of {self.settings.sequence_length} (at most "
                line += f"{windows.counts.max()})"
            if unread := int((windows.unread > 0).sum()):
                line += f"; of {unread:,} texts {windows.unread.sum():,} tokens are not read: raise objective.windows "
                line += "or objective.sequence_length"
            lines.append(line)
        return lines

    def index(self, split: str, epoch: int) -> np.ndarray:
        """The examples of the split (N,); held-out ones in a drawn order, so that the first are from everywhere."""
        numbers = np.arange(len(self.tables[split]))
        if split == "train":
            return numbers
        return np.argsort(draws.hash_key(self.seed(split), draws.SUBSET, numbers), kind="stable")

    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        return self.example_lengths[split][index]

    def window_tokens(self, data: PreparedTexts, windows: Windows, number: int) -> Example:
        """All windows of a row's texts: ids, segments, and the tokens of each window."""
        cls, sep = (getattr(self.tokenizer, f"{name}_token_id") for name in ("cls", "sep"))
        texts = [data.tokens[data.span(number, side)] for side in range(data.sides)]
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        sizes: list[int] = []
        for parts in windows.cut(number):
            a, *b = (text[part] for text, part in zip(texts, parts, strict=False))
            window = np.concatenate([[cls], a, [sep], *(each for text in b for each in (text, [sep]))])
            segment = np.zeros(len(window), dtype=np.int64)
            segment[len(a) + 2 :] = 1
            ids.append(window)
            types.append(segment)
            sizes.append(len(window))
        return {
            "input_ids": np.concatenate(ids).astype(np.int64),
            "token_type_ids": np.concatenate(types),
            "window_lengths": np.array(sizes),
        }

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        data, windows = self.data[split], self.windows[split]
        found: list[Example] = []
        for number in index.tolist():
            example = self.window_tokens(data, windows, number)
            found.append({**example, "index": np.array(number), **self.targets_of(split, number, example)})
        return found

    @abstractmethod
    def targets_of(self, split: str, number: int, example: Example) -> Example:
        """What is to be learnt of an example, from its windows' tokens."""

    def pack_windows(self, rows: list[list[Example]], sequences: int) -> dict[str, Tensor]:
        """The model's inputs but for targets; each window is a sequence, and knows its example where there are several.

        Beside them "index" (R, P), the number of each example, -1 for none: it is no input.
        """
        (length,) = self.row_lengths
        places = sequences if self.most_windows == 1 else min(sequences * self.most_windows, length // 2)
        windows = [
            [{"input_ids": np.empty(size)} for example in row for size in example["window_lengths"].tolist()]
            for row in rows
        ]
        index = np.full((len(rows), places), -1, dtype=np.int64)
        owners = np.zeros((len(rows), places), dtype=np.int64)
        for r, row in enumerate(rows):
            index[r, : len(row)] = [int(example["index"]) for example in row]
            counts = [len(example["window_lengths"]) for example in row]
            owners[r, : sum(counts)] = np.repeat(np.arange(1, len(row) + 1), counts)
        return {
            "input_ids": pack_tokens(rows, "input_ids", length, self.tokenizer.pad_token_id),
            "token_type_ids": pack_tokens(rows, "token_type_ids", length, 0),
            **layout(windows, "input_ids", length, places),
            "example_ids": torch.from_numpy(owners),
            "index": torch.from_numpy(index),
        }


AnyWindows = TypeVar("AnyWindows", bound=WindowExamples)


class FinetuneHead(TokenHead[AnyWindows]):
    """A body that is pretrained, or fresh, and a head that is fresh."""

    model_class: ClassVar[type[PreTrainedModel]]

    def configure(self, config: Any) -> None:
        """Completes the model's configuration by what the task and its labels say."""

    def build_model(self, config: Any) -> PreTrainedModel:
        examples = self.examples
        config.vocab_size = len(examples.tokenizer)
        config.pad_token_id = examples.tokenizer.pad_token_id
        examples.tokenizer.model_max_length = config.max_position_embeddings
        self.configure(config)
        return self.model_class(config)

    def adapt(self, model: PreTrainedModel) -> None:
        adapt(model, self.examples.settings)

    def merge(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return merge(weights, self.examples.settings)

    def to_model_inputs(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x for name, x in tensors.items() if name not in NO_INPUTS}

    def enter_phase(self, model: Any, before: Sequence[Examples]) -> None:
        """Phases have one model: nothing is to be done."""


class RecordScoring(Scoring[AnyWindows]):
    """Metrics of records: one of each held-out example, a few numbers, so that no logits are kept."""

    worst: list[Record] = []

    def sums(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def observe(self, model: nn.Module, inputs: dict[str, Tensor], batch: Batch) -> tuple[dict, list[Record]]:
        unlabelled = {name: x for name, x in inputs.items() if name not in batch.targets}
        out = model(**unlabelled)
        return {}, self.records(out, batch)

    @abstractmethod
    def records(self, out: Any, batch: Batch) -> list[Record]:
        """A record of each of the batch's examples."""

    @abstractmethod
    def score(self, records: list[Record], final: bool) -> dict[str, float]:
        """The metrics of records, one of each example; at the end also those of each class."""

    def rank(self, metrics: dict[str, float]) -> float:
        return rank(self.examples.metric, metrics[self.examples.metric])

    def score_records(self, records: list[Record], final: bool) -> dict[str, float]:
        records = sorted(records, key=lambda record: record["index"])
        metrics = {"loss": float(np.mean([record["loss"] for record in records]))}
        if final:
            by_loss = sorted(records, key=lambda record: -record["loss"])
            self.worst = by_loss[: self.examples.settings.worst]
        return metrics | self.score(records, final)

    def describe(self, record: Record) -> Record:
        """A record with the texts and names that it is about, for people."""
        table = self.examples.tables["validation"]
        row = table.dataset[record["index"]]
        texts = {name: row[name] for name in self.examples.shown}
        return {"place": row["name"], **texts, **self.explain(record, row), "loss": round(record["loss"], 4)}

    @abstractmethod
    def explain(self, record: Record, row: dict[str, Any]) -> Record:
        """What is true and what was predicted, in words."""

    def draw_pictures(self, folder: Path) -> list[Path]:
        path = folder / "worst.jsonl"
        lines = [json.dumps(self.describe(record), ensure_ascii=False) + "\n" for record in self.worst]
        files.write_text(path, "".join(lines))
        return [path] if lines else []

    def samples(self, model: Any, count: int) -> list[str]:
        """Some held-out examples, and what the model predicts."""
        examples = self.examples
        index = examples.index("validation", 0)[:count]
        if not len(index):
            return []
        rows = [[example] for example in examples.examples("validation", 0, index)]
        batch = examples.collate(rows, 1)
        device = next(model.parameters()).device
        tensors = {name: x.to(device) for name, x in batch.tensors.items() if name not in NO_INPUTS}
        with torch.no_grad():
            _, records = self.observe(model, tensors, batch)
        return [json.dumps(self.describe(record), ensure_ascii=False) for record in records]


def members(index: Tensor) -> list[tuple[int, int, int]]:
    """Row, column and number of each example of a batch's "index" (R, P)."""
    return [(int(r), int(e), int(index[r, e])) for r, e in torch.nonzero(index >= 0).tolist()]


def pack_labels(rows: list[list[Example]], places: int, shape: tuple[int, ...], kind: Any) -> Tensor:
    """The labels of each row's examples (R, P, ...), -100 where there is no example."""
    packed = np.full((len(rows), places, *shape), IGNORED, dtype=kind)
    for row, examples in zip(packed, rows, strict=True):
        for place, example in zip(row, examples, strict=False):
            place[...] = example["labels"]
    return torch.from_numpy(packed)
