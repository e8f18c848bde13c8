"""What the settings of all data share: ranges, and the tokenizer."""

from dataclasses import dataclass
from typing import Literal

from pretraining.errors import UserError


def between(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raises UserError where a setting is out of its range."""
    if not low <= value <= high or value == float("inf"):
        bound = f"a number of at least {low}" if high == float("inf") else f"between {low} and {high}"
        raise UserError(f"{name} is {value}: it must be {bound}.")


def check_fraction(fraction: float) -> None:
    """Raises UserError where `data.validation_fraction` is none."""
    if not 0 <= fraction < 1:
        raise UserError(f"data.validation_fraction is {fraction}: it must be at least 0 and less than 1.")


@dataclass(frozen=True)
class TokenizerSettings:
    """An existing tokenizer, or how to train one on the run's own text."""

    path: str | None = None
    """Folder or Hub name of an existing tokenizer. If it is null, one is trained."""
    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """The subword model that is trained. All read text in its composed form (NFC), and white space and control
    characters as one space. What they write is what they read, but wordpiece forgets the spaces beside punctuation and
    Chinese characters, and unigram takes ▁ for a space."""
    separate: bool = False
    """The sources of pairs have one vocabulary and the targets another, of the same size. The targets' tokenizer of
    `path` is in its folder target/."""
    vocab_size: int = 8192
    """Entries of the vocabulary, special tokens included."""
    cased: bool = False
    """Upper and lower case are kept apart. Accents and Hangul are kept whole either way."""
    sample_characters: int = 200_000_000
    """Characters of text, sampled evenly over the documents, on which the tokenizer is trained or words are counted."""
    new_words: int = 0
    """Number of words that become entries of the tokenizer at `path`: the most frequent words of the run's training
    text that it splits."""
    words: str | None = None
    """A file with a word on each line. Those that the tokenizer at `path` splits become entries too."""

    def __post_init__(self) -> None:
        between("tokenizer.new_words", self.new_words, 0)
        between("tokenizer.sample_characters", self.sample_characters, 1)
        if self.path is None and (self.new_words or self.words):
            name = "new_words" if self.new_words else "words"
            raise UserError(
                f"tokenizer.{name} adds to a tokenizer that is there, and one that is trained here fits the text as it "
                f"is: leave tokenizer.{name} out, or set init_from or tokenizer.path."
            )
