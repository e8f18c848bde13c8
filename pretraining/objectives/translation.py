"""Translation of pairs with teacher forcing (Vaswani 2017): from the right target so far to its next token.

An example is a pair; it lies in one packed row on both sides.
"""

from pathlib import Path

import numpy as np
import torch

from pretraining.data import draws
from pretraining.data.packing import IGNORED, Example, layout, pack_tokens
from pretraining.data.pairs.corpus import Pairs, Side, load_pairs
from pretraining.data.pairs.prepared import LIBRARIES, prepare_pairs
from pretraining.data.shards import count_processes
from pretraining.data.split import require_held_out
from pretraining.data.tokenizer import TARGET, build_tokenizer, require_end, require_tokens
from pretraining.errors import UserError
from pretraining.objectives.base import Batch, Objective
from pretraining.objectives.seq2seq import Seq2SeqExamples, Seq2SeqHead, Seq2SeqScoring
from pretraining.settings import Settings


def one_each(points: np.ndarray, tokens: int, random: np.random.Generator) -> np.ndarray:
    """For each target token one of the source tokens that it is aligned with, each as likely; -100 for none: (T,).

    In the mean over epochs the loss is that of Garg 2019, 3.2, whose target is spread over all of them.

    Args:
        points: places of source and target tokens (P, 2).
    """
    labels = np.full(tokens, IGNORED, dtype=np.int64)
    shuffled = points[random.permutation(len(points))]
    labels[shuffled[:, 1]] = shuffled[:, 0]  # of several the last one stays
    return labels


class TranslationExamples(Seq2SeqExamples):
    """A pair each."""

    libraries = LIBRARIES

    def prepare(self, is_builder: bool) -> list[str]:
        cache, options = Path(self.run.cache).expanduser(), self.run.data
        pairs, self.repeated = load_pairs(options)
        self.validation_pairs = pairs["validation"].dataset
        require_held_out(pairs, "pairs", "set data.validation_fraction")
        self.build_tokenizers(pairs["train"], cache, is_builder)
        tokenizers, processes = list(self.tokenizers.values()), count_processes(options.processes)
        self.data = {
            split: prepare_pairs(part, tokenizers, processes, cache, is_builder) for split, part in pairs.items()
        }
        self.check_alignments()
        self.fingerprint = f"{self.data['train'].name} {self.data['validation'].name}"
        self.index_examples()
        return [
            f"pairs {options.source}, fingerprint {pairs['train'].fingerprint}",
            *[self.describe(split) for split in self.data],
            *self.describe_unknown({split: data.unknown for split, data in self.data.items()}),
            *self.describe_case([options.source_language, options.target_language]),
            *self.describe_bleu(),
        ]

    def build_tokenizers(self, pairs: Pairs, cache: Path, is_builder: bool) -> None:
        """Loads or trains one tokenizer for both sides of the training pairs, or one for each; raises as `prepare`."""
        options = self.run.tokenizer
        if options.separate:
            self.tokenizer = build_tokenizer(options, Side(pairs, "source"), cache, is_builder, "seq2seq")
            self.target_tokenizer = build_tokenizer(
                options, Side(pairs, "target"), cache, is_builder, "seq2seq", TARGET
            )
        else:
            self.tokenizer = build_tokenizer(options, pairs, cache, is_builder, "seq2seq")
        source, target = self.tokenizers.values()
        for tokenizer in (source, target):
            require_tokens(tokenizer, ("pad_token", "eos_token"))
        numbers = [(len(each), each.eos_token_id, each.pad_token_id) for each in (source, target)]
        if numbers[0] != numbers[1]:
            raise UserError(
                "tokenizer.separate: the numbers of entries, the ids of the end and of padding are {} of the sources' "
                "tokenizer and {} of the targets': both must have the same.".format(*numbers)
            )
        for tokenizer in (source, target):
            require_end(tokenizer)

    @property
    def aligned(self) -> bool:
        """Whether an example bears word alignments to learn."""
        return self.run.model.alignment_layer is not None  # type: ignore[attr-defined]

    def check_alignments(self) -> None:
        """Raises UserError where word alignments are to be learnt and there are none, or none can be seen."""
        model = self.run.model
        if not self.aligned:
            return
        if not len(self.data["train"].points):
            raise UserError(
                f"model.alignment_layer is {model.alignment_layer}, but no pair has a word alignment: name "
                "data.alignment_files or data.alignment_column, or leave model.alignment_layer out."
            )
        if self.run.train.kernel != "eager":
            raise UserError(
                f"model.alignment_layer is {model.alignment_layer}, which needs attention weights, and train.kernel is "
                f"{self.run.train.kernel}: set train.kernel to eager."
            )

    def index_examples(self) -> None:
        chosen = {split: self.choose(split) for split in self.data}
        self.kept = {split: kept for split, (kept, _) in chosen.items()}
        self.left_out = {split: self.repeated[split] | left_out for split, (_, left_out) in chosen.items()}
        super().index_examples()

    def choose(self, split: str) -> tuple[np.ndarray, dict[str, int]]:
        """The pairs of a split that are neither too long nor too unlike in length, and how many others there are.

        Raises:
            UserError: none is left.
        """
        lengths = self.data[split].lengths
        long = lengths.max(1) >= self.settings.sequence_length  # and an end token
        without = (lengths.min(1) == 0) & ~long
        unlike = lengths.max(1) > self.settings.max_ratio * np.maximum(lengths.min(1), 1)
        unlike &= ~long & ~without & bool(self.settings.max_ratio)
        if split == "validation" and self.run.data.names_held_out:  # as it is, so that scores on it compare
            unlike[:] = False
        reasons = {
            f"longer than {self.settings.sequence_length} tokens": long,
            "of no token on a side": without,
            f"more than {self.settings.max_ratio:g} times as long as their other side": unlike,
        }
        kept = np.flatnonzero(~np.any(list(reasons.values()), axis=0))
        if not len(kept):
            why = " and ".join(f"{found.sum():,} are {reason}" for reason, found in reasons.items() if found.any())
            mends = {
                "set objective.sequence_length higher": long,
                "take another tokenizer": without,
                "set objective.max_ratio higher": unlike,
            }
            mend = " or ".join(mend for mend, found in mends.items() if found.any())
            raise UserError(f"Nothing of the {split} split is left, of whose {len(lengths):,} pairs {why}: {mend}.")
        return kept, {reason: int(found.sum()) for reason, found in reasons.items()}

    def describe(self, split: str) -> str:
        """What the split has, how long its sides are, and what was left out and why."""
        kept, lengths = self.kept[split], self.data[split].lengths[self.kept[split]]
        (source, target), most = lengths.mean(0), lengths.max(0)
        line = (
            f"{split}: {len(kept):,} pairs, {lengths.sum():,} tokens, {source:.1f} in a source (at most {most[0]}), "
            f"{target:.1f} in a target ({most[1]})"
        )
        if found := [f"{count:,} {reason}" for reason, count in self.left_out[split].items() if count]:
            line += f"; pairs left out: {', '.join(found)}"
        return line

    def index(self, split: str, epoch: int) -> np.ndarray:
        """The pairs of the split (N,); held-out ones in a drawn order, so that the first are from everywhere."""
        kept = self.kept[split]
        if split == "train":
            return kept
        return kept[np.argsort(draws.hash_key(self.seed(split), epoch, draws.SUBSET, kept), kind="stable")]

    def all_examples(self, split: str) -> np.ndarray:
        return self.kept[split]

    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        return self.data[split].lengths[index] + 1

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Pairs `index`, each side with its end token."""
        data, end = self.data[split], [self.tokenizer.eos_token_id]
        examples = [
            {
                "input_ids": np.concatenate([data.source(pair), end]).astype(np.int64),
                "labels": np.concatenate([data.target(pair), end]).astype(np.int64),
            }
            for pair in index.tolist()
        ]
        if self.aligned:
            for pair, example in zip(index.tolist(), examples, strict=True):
                random = draws.generator(self.seed(split), epoch, draws.ALIGN, pair)
                example["alignment_labels"] = one_each(data.alignment(pair), len(example["labels"]), random)
        return examples

    def collate(self, rows: list[list[Example]], sequences: int) -> Batch:
        batch = super().collate(rows, sequences)
        if self.aligned:
            source, target = self.row_lengths
            labels = pack_tokens(rows, "alignment_labels", target, IGNORED)  # (rows, target): places in the example
            starts = layout(rows, "input_ids", source, sequences)["sequence_starts"]
            first = starts.gather(1, (batch.tensors["decoder_sequence_ids"] - 1).clamp(min=0))
            batch.tensors["alignment_labels"] = torch.where(labels == IGNORED, labels, labels + first)  # in the row
            batch.targets["alignment_labels"] = int((labels != IGNORED).sum())
        return batch

    def references(self, index: np.ndarray, examples: list[Example]) -> list[str]:
        """The targets themselves: what a tokenizer makes of them may be lower-case, or lack what it does not know."""
        return self.validation_pairs.select(index)["target"][:]

    def group(self, number: int) -> str:
        data = self.data["validation"]
        return data.group_names[data.groups[number]]


def objective(settings: Settings) -> Objective:
    return Objective.of(TranslationExamples(settings), Seq2SeqHead, Seq2SeqScoring)
