"""What the fine-tuning tasks of texts share: examples of one or more windows in packed rows, and heads.

N examples, R rows of the plan, E examples of a batch.
"""

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from finetuning.adapt import adapt, merge
from finetuning.data.rows import Kind
from finetuning.data.tables import Table, load_tables
from finetuning.prepared import LIBRARIES, PreparedTexts, Reader, prepare_texts
from finetuning.tasks.lines import Lines, lay_out
from finetuning.windows import Windows, flatten
from pretraining.data import draws
from pretraining.data.packing import Example
from pretraining.data.plan import choose_row_lengths
from pretraining.data.shards import count_processes
from pretraining.data.tokenizer import load_tokenizer, require_tokens
from pretraining.errors import UserError
from pretraining.objectives.base import Examples
from pretraining.objectives.text import TokenExamples, TokenHead
from pretraining.settings import Settings


def has_labels(table: Table) -> bool:
    """Whether the examples of a table have labels.

    Raises:
        UserError: only some have.
    """
    known = [target is not None for target in table.targets]
    if any(known) and not all(known):
        row = known.index(False)
        raise UserError(
            f"{table.place(row)} is empty, and other examples of the test split have labels: label all of them, or "
            "none, if they are to be predicted alone."
        )
    return all(known)


class WindowExamples(TokenExamples):
    """Rows of a table, each one or more windows of tokens, which lie one behind the other in one packed row."""

    libraries = LIBRARIES
    kind: ClassVar[Kind]
    """Of the table."""
    places: ClassVar[bool] = False
    """Whether it is kept where in its text each token stands."""
    cut_second: ClassVar[bool] = False
    """Whether it is always the second text that is cut into windows."""
    classes: list[str]
    """The names of the labels, where these are classes."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.tables: dict[str, Table] = {}

    def prepare(self, is_builder: bool) -> list[str]:
        self.tokenizer = load_tokenizer(self.run.tokenizer.path)
        require_tokens(self.tokenizer, ("cls_token", "sep_token", "pad_token"))
        self.tables = self.load()
        self.test = self.tables.pop("test", None)
        self.scores_test = self.test is not None and has_labels(self.test)
        lines = self.read_labels()
        if self.metric not in self.metric_names:
            raise UserError(
                f"objective.metric is {self.metric!r}, and what this task can be judged by is: "
                f"{', '.join(self.metric_names)}."
            )
        self.data = {split: self.prepare_table(table, is_builder) for split, table in self.tables.items()}
        self.index_examples()
        return [
            *self.describe_table(),
            *lines,
            *self.describe_windows(),
            *self.describe_unknown({split: data.unknown for split, data in self.data.items()}),
        ]

    def prepare_table(self, table: Table, is_builder: bool) -> PreparedTexts:
        return prepare_texts(
            table,
            self.reader,
            self.sides,
            self.tokenizer,
            self.places,
            count_processes(self.run.data.processes),
            Path(self.run.cache).expanduser(),
            is_builder,
        )

    def of_test(self) -> Self:
        """The same with the test split in the place of the held-out one; each of its examples has a label."""
        assert self.test is not None
        other = copy(self)
        other.tables = {"train": self.tables["train"], "validation": self.test}
        other.read_labels()
        # Both anew: how they are read may depend on both, as on the most choices of a question.
        other.data = {split: other.prepare_table(table, is_builder=True) for split, table in other.tables.items()}
        other.index_examples()
        return other

    def load(self) -> dict[str, Table]:
        """The tables of all splits; raises UserError where they, or their labels, are wrong."""
        return load_tables(self.run.data, self.kind)

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
        return [*notes, f"{counts}; fingerprint {self.tables['train'].fingerprint}"]

    @abstractmethod
    def read_labels(self) -> list[str]:
        """Makes numbers of the tables' labels, which are checked; returns lines that describe them."""

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
        sizes = {split: self.window_lengths(split) for split in self.data}
        longest = max(lengths.max() for lengths in sizes.values())
        (length,) = choose_row_lengths(sizes["train"][:, None], np.array([longest]), self.settings.row_length)
        self.row_lengths = (length,)
        names = [data.name for data in self.data.values()]
        self.fingerprint = " ".join([*names, self.labels_name])

    def count_tokens(self, split: str) -> np.ndarray:
        """Tokens of each example of a split, special ones included: (N,)."""
        return self.windows[split].lengths

    def window_lengths(self, split: str) -> np.ndarray:
        """Tokens of the longest window of each example of a split, special ones included: (N,)."""
        windows = self.windows[split]
        return windows.whole + np.minimum(windows.space, windows.covered) + (3 if windows.pairs else 2)

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
        """Tokens of examples `index` (N,) in a row of the plan. One with more than a row holds has it to itself."""
        return np.minimum(self.example_lengths[split][index], self.row_lengths[0])

    def tokens_of(self, data: PreparedTexts, windows: Windows, numbers: np.ndarray) -> list[Example]:
        """All windows of the texts of each of some rows (E,): ids, segments, and the tokens of each window."""
        flat = flatten(data, windows, numbers, self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        window_ends = windows.counts[numbers].cumsum()
        windows_of = [slice(*pair) for pair in pairwise([0, *window_ends.tolist()])]
        tokens_of = [slice(*pair) for pair in pairwise([0, *flat.sizes.cumsum()[window_ends - 1].tolist()])]
        return [
            {
                "input_ids": flat.input_ids[part],
                "token_type_ids": flat.token_type_ids[part],
                "window_lengths": flat.sizes[of_windows],
            }
            for part, of_windows in zip(tokens_of, windows_of, strict=True)
        ]

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        if not len(index):
            return []
        found = self.tokens_of(self.data[split], self.windows[split], index)
        for number, example in zip(index.tolist(), found, strict=True):
            example |= {"index": np.array(number), **self.targets_of(split, number)}
        return found

    @abstractmethod
    def targets_of(self, split: str, number: int) -> Example:
        """What is to be learnt of an example."""

    def lay_out(self, rows: list[list[Example]]) -> tuple[Lines, dict[str, Tensor]]:
        """The windows of R rows of the plan in lines as long as a row, and the model's inputs but for targets."""
        (length,) = self.row_lengths
        lines = lay_out(rows, length)
        return lines, lines.pack(length, self.tokenizer.pad_token_id)


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

    def enter_phase(self, model: Any, before: Sequence[Examples]) -> None:
        """Phases have one model: nothing is to be done."""
