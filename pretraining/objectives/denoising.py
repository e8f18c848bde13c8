"""Denoising of plain text: spans infilled and sentences put in order (BART, Lewis 2019; T5, Raffel 2019).

An example is a chunk of text, damaged as `data/text/noise.py` draws it from (seed, epoch, index).
"""

from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from pretraining.data import draws
from pretraining.data.packing import Example
from pretraining.data.text.corpus import TextCorpus, prepare_corpus
from pretraining.data.text.noise import count_spans, hide_spans, permute
from pretraining.data.text.prepared import LIBRARIES
from pretraining.data.tokenizer import require_end, require_tokens
from pretraining.objectives.base import Objective
from pretraining.objectives.seq2seq import Seq2SeqExamples, Seq2SeqHead, Seq2SeqScoring
from pretraining.settings import Settings


class DenoisingExamples(Seq2SeqExamples):
    """A damaged chunk of text each."""

    libraries = LIBRARIES
    corpus: TextCorpus

    def prepare(self, is_builder: bool) -> list[str]:
        cache, options = Path(self.run.cache).expanduser(), self.settings
        limit, short_rate = options.sequence_length - 1, options.short_sequence_rate
        self.corpus = prepare_corpus(
            self.run.data,
            self.run.tokenizer,
            limit,
            short_rate,
            cache,
            is_builder,
            lambda counts: None,  # one document is enough
            self.check_tokenizer,
            "seq2seq",
        )
        self.tokenizer = self.corpus.tokenizer
        self.index_examples()
        return [
            *self.corpus.describe(limit, self.run.seed),
            *self.describe_unknown({split: data.unknown for split, data in self.corpus.splits.items()}),
            *self.describe_case(source.language for source in self.run.data.sources),
            *self.describe_bleu(),
        ]

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError where a token is missing that examples are made with."""
        require_tokens(tokenizer, ("pad_token", "eos_token", "mask_token"))
        require_end(tokenizer)

    def index_examples(self) -> None:
        self.corpus = self.corpus.rechunk(self.settings.sequence_length - 1, self.settings.short_sequence_rate)
        self.fingerprint = self.corpus.fingerprint
        super().index_examples()

    def index(self, split: str, epoch: int) -> np.ndarray:
        return self.corpus.index(split, epoch, self.seed(split))

    def all_examples(self, split: str) -> np.ndarray:
        return np.arange(len(self.corpus.splits[split]))

    def lengths(self, split: str, epoch: int, index: np.ndarray) -> np.ndarray:
        data = self.corpus.splits[split]
        tokens = np.diff(data.chunks)[index % len(data)]
        hidden, spans = count_spans(tokens, self.settings.noise_rate, self.settings.mean_span)
        target = tokens if self.settings.target == "text" else hidden + spans
        return np.stack([tokens - hidden + spans, target], 1) + 1

    def examples(self, split: str, epoch: int, index: np.ndarray, progress: float = 0.0) -> list[Example]:
        """Examples `index` as this epoch damages them, each side with its end token."""
        data, options = self.corpus.splits[split], self.settings
        end = [self.tokenizer.eos_token_id]
        examples: list[Example] = []
        mask = self.tokenizer.mask_token_id
        for number in index.tolist():
            start, stop = data.chunks[number % len(data)], data.chunks[number % len(data) + 1]
            ids = np.array(data.tokens[start:stop], dtype=np.int64)
            random = draws.generator(self.seed(split), epoch, draws.MASK, number)
            damaged = ids
            if options.permute_sentences:
                first, last = np.searchsorted(data.sentences, (start, stop), side="left")
                starts = data.sentences[first:last] - start
                damaged = permute(ids, starts[starts > 0], random)
            damaged, spans = hide_spans(damaged, options.noise_rate, options.mean_span, mask, random)
            target = ids if options.target == "text" else spans
            examples.append({"input_ids": np.concatenate([damaged, end]), "labels": np.concatenate([target, end])})
        return examples


def objective(settings: Settings) -> Objective:
    return Objective.of(DenoisingExamples(settings), Seq2SeqHead, Seq2SeqScoring)
