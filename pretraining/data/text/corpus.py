"""The text of a run, prepared: what is cut into examples, and which of them an epoch has."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from pretraining.data import draws
from pretraining.data.settings import TokenizerSettings
from pretraining.data.shards import count_processes
from pretraining.data.split import require_held_out
from pretraining.data.text.documents import load_text
from pretraining.data.text.filters import filter_text
from pretraining.data.text.prepared import PreparedText, prepare_text
from pretraining.data.text.settings import TextSettings
from pretraining.data.tokenizer import build_tokenizer


@dataclass(frozen=True)
class TextCorpus:
    """Both splits as tokens, cut into chunks."""

    settings: TextSettings
    tokenizer: PreTrainedTokenizerBase
    splits: dict[str, PreparedText]
    left_out: dict[str, dict[str, int]]
    """Documents of each split that are left out, by reason."""
    documents_fingerprint: str
    """That of the training documents."""

    def rechunk(self, limit: int, short_rate: float) -> "TextCorpus":
        """The same text, cut as `PreparedText.rechunk` does."""
        return replace(self, splits={split: data.rechunk(limit, short_rate) for split, data in self.splits.items()})

    @property
    def weights(self) -> list[float]:
        return [source.weight for source in self.settings.sources]

    @property
    def fingerprint(self) -> str:
        """A hash of the chunks of both splits, and of how often an epoch has them."""
        return f"{self.splits['train'].name} {self.splits['validation'].name} weights {self.weights}"

    def chunk_source(self, split: str) -> np.ndarray:
        """The source of each chunk of the split."""
        data = self.splits[split]
        return data.sources[data.chunk_document]

    def index(self, split: str, epoch: int, seed: int) -> np.ndarray:
        """The examples that the split has in this epoch: (N,). Example c + p * C is chunk c of C in its pass p.

        A source of weight 2.5 gives two passes and a half of its chunks, drawn from (seed, epoch). Held-out text
        gives each chunk once, in an order that is drawn, so that the first few are from everywhere.
        """
        count = len(self.splits[split])
        order = draws.hash_key(seed, epoch, draws.SUBSET, np.arange(count))
        if split != "train":
            return np.argsort(order, kind="stable")
        sources = self.chunk_source(split)
        passes: list[np.ndarray] = []
        for source, weight in enumerate(self.weights):
            chunks = np.flatnonzero(sources == source)
            whole = int(weight)
            passes += [chunks + number * count for number in range(whole)]
            part = np.argsort(order[chunks], kind="stable")[: math.ceil((weight - whole) * len(chunks))]
            passes.append(np.sort(chunks[part]) + whole * count)
        return np.concatenate(passes)

    def describe(self, limit: int, seed: int) -> list[str]:
        """What each split has, how long its chunks are, what was left out and why, and each source's share."""
        names = [source.source for source in self.settings.sources]
        lines = [f"text {' + '.join(names)}, fingerprint {self.documents_fingerprint}"]
        for split, data in self.splits.items():
            sizes = np.diff(data.chunks)
            line = (
                f"{split}: {len(data.documents) - 1:,} documents, {len(data.sentences) - 1:,} sentences, "
                f"{len(data.tokens):,} tokens, {len(data):,} examples (median {np.median(sizes):.0f} tokens of text, "
                f"{(sizes == limit).mean():.0%} of full length)"
            )
            left_out = self.left_out[split] | {"empty": data.dropped}
            if reasons := [f"{count:,} {reason}" for reason, count in left_out.items() if count]:
                line += f"; documents left out: {', '.join(reasons)}"
            if len(names) > 1:
                line += "; " + ", ".join(self._describe_sources(split, names, seed))
            lines.append(line)
        return lines

    def _describe_sources(self, split: str, names: list[str], seed: int) -> list[str]:
        """Each source's share of a split's examples, and of an epoch where its weight changes that."""
        sources, index = self.chunk_source(split), self.index(split, 0, seed)
        of_examples = np.bincount(sources, minlength=len(names)) / len(sources)
        of_epoch = np.bincount(sources[index % len(sources)], minlength=len(names)) / len(index)
        lines = [f"{name} {share:.0%} of the examples" for name, share in zip(names, of_examples, strict=True)]
        if split == "train":
            lines = [f"{line}, {share:.0%} of an epoch" for line, share in zip(lines, of_epoch, strict=True)]
        return lines


def prepare_corpus(
    settings: TextSettings,
    tokenizer_settings: TokenizerSettings,
    limit: int,
    short_rate: float,
    cache: Path,
    is_builder: bool,
    check_documents: Callable[[dict[str, int]], None],
    check_tokenizer: Callable[[PreTrainedTokenizerBase], None],
    family: str = "bert",
) -> TextCorpus:
    """Reads, filters and tokenises the text, in so far as the cache does not have it.

    Args:
        limit, short_rate: as in `PreparedText.rechunk`.
        cache, is_builder: as in `cache.build_cached`.
        check_documents, check_tokenizer: raise UserError where each split's number of documents or the tokenizer will
            not do, before hours of tokenising.
        family: of the model, which decides the tokenizer's special tokens.

    Raises:
        UserError: whatever is wrong with the files, the text or the tokenizer.
    """
    documents = load_text(settings)
    require_held_out(documents, "documents", "cut the text into more documents (data.document: blank_line)")
    documents, left_out = filter_text(documents, settings, cache, is_builder)
    check_documents({split: len(remaining) for split, remaining in documents.items()})
    tokenizer = build_tokenizer(tokenizer_settings, documents["train"], cache, is_builder, family)
    check_tokenizer(tokenizer)
    languages = [source.language for source in settings.sources]
    processes = count_processes(settings.processes)
    splits = {
        split: prepare_text(documents[split], tokenizer, languages, limit, short_rate, processes, cache, is_builder)
        for split in ("train", "validation")
    }
    return TextCorpus(settings, tokenizer, splits, left_out, documents["train"].fingerprint)
