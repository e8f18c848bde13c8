"""The text of a run, prepared: what is cut into examples, and which of them an epoch has."""

import math
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
class Text:
    """Both splits as tokens, cut into chunks."""

    settings: TextSettings
    tokenizer: PreTrainedTokenizerBase
    splits: dict[str, PreparedText]
    left_out: dict[str, dict[str, int]]
    """Documents of each split that are left out, by reason."""
    documents: str
    """The fingerprint of the training documents."""

    def cut(self, limit: int, short_rate: float) -> "Text":
        """The same text in chunks of at most `limit` tokens, a share `short_rate` of them shorter by design."""
        return replace(self, splits={split: data.cut(limit, short_rate) for split, data in self.splits.items()})

    @property
    def weights(self) -> list[float]:
        return [source.weight for source in self.settings.sources]

    @property
    def fingerprint(self) -> str:
        """A hash of the chunks of both splits, and of how often an epoch has them."""
        return f"{self.splits['train'].name} {self.splits['validation'].name} weights {self.weights}"

    def source(self, split: str) -> np.ndarray:
        """The source of each chunk of the split."""
        data = self.splits[split]
        return data.sources[data.chunk_document]

    def index(self, split: str, epoch: int, seed: int) -> np.ndarray:
        """The examples that the split has in this epoch: (N,). Example c + p * C is chunk c of C in its pass p.

        A source of weight 2.5 gives two passes and a half of its chunks, drawn from (seed, epoch). Held-out text
        gives each chunk once, in an order that is drawn, so that the first few are from everywhere.
        """
        chunks = np.arange(len(self.splits[split]))
        drawn = draws.hash_key(seed, epoch, draws.SUBSET, chunks)
        if split != "train":
            return np.argsort(drawn, kind="stable")
        source = self.source(split)
        passes: list[np.ndarray] = []
        for number, weight in enumerate(self.weights):
            own = chunks[source == number]
            whole = int(weight)
            passes += [own + turn * len(chunks) for turn in range(whole)]
            part = np.argsort(drawn[own], kind="stable")[: math.ceil((weight - whole) * len(own))]
            passes.append(np.sort(own[part]) + whole * len(chunks))
        return np.concatenate(passes)

    def describe(self, limit: int, seed: int) -> list[str]:
        """What each split has, how long its chunks are, what was left out and why, and each source's share."""
        sources = self.settings.sources
        lines = [f"text {' + '.join(source.source for source in sources)}, fingerprint {self.documents}"]
        for split, data in self.splits.items():
            sizes = np.diff(data.chunks)
            line = (
                f"{split}: {len(data.documents) - 1:,} documents, {len(data.sentences) - 1:,} sentences, "
                f"{len(data.tokens):,} tokens, {len(data):,} examples (median {np.median(sizes):.0f} tokens of text, "
                f"{(sizes == limit).mean():.0%} of full length)"
            )
            left_out = self.left_out[split] | {"empty": data.dropped}
            if found := [f"{count:,} {reason}" for reason, count in left_out.items() if count]:
                line += f"; documents left out: {', '.join(found)}"
            if len(sources) > 1:
                source = self.source(split)
                held = np.bincount(source, minlength=len(sources)) / len(data)
                index = self.index(split, 0, seed)
                seen = np.bincount(source[index % len(data)], minlength=len(sources)) / len(index)
                parts = [
                    f"{part.source} {share:.0%} of the examples" for part, share in zip(sources, held, strict=True)
                ]
                if split == "train":
                    parts = [f"{part}, {turn:.0%} of an epoch" for part, turn in zip(parts, seen, strict=True)]
                line += "; " + ", ".join(parts)
            lines.append(line)
        return lines


def prepare(
    settings: TextSettings,
    tokenizer_settings: TokenizerSettings,
    limit: int,
    short_rate: float,
    cache: Path,
    is_builder: bool,
    family: str = "bert",
) -> Text:
    """Reads, filters and tokenises the text, in so far as the cache does not have it.

    Args:
        limit, short_rate: as in `Text.cut`.
        cache, is_builder: as in `cache.build_cached`.
        family: of the model, which decides the tokenizer's special tokens.

    Raises:
        UserError: whatever is wrong with the files, the text or the tokenizer.
    """
    documents = load_text(settings)
    require_held_out(documents, "documents", "cut the text into more documents (data.document: blank_line)")
    documents, left_out = filter_text(documents, settings, cache, is_builder)
    tokenizer = build_tokenizer(tokenizer_settings, documents["train"], cache, is_builder, family)
    languages = [source.language for source in settings.sources]
    processes = count_processes(settings.processes)
    splits = {
        split: prepare_text(documents[split], tokenizer, languages, limit, short_rate, processes, cache, is_builder)
        for split in ("train", "validation")
    }
    return Text(settings, tokenizer, splits, left_out, documents["train"].fingerprint)
