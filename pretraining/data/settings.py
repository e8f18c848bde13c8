"""What the settings of all data share: ranges, and the tokenizer."""

from dataclasses import dataclass
from typing import Literal

from pretraining.errors import UserError


def between(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raises UserError where a setting is out of its range."""
    if not low <= value <= high:
        bound = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
        raise UserError(f"{name} is {value}: it must be {bound}.")


@dataclass(frozen=True)
class TokenizerSettings:
    """An existing tokenizer, or how to train one on the run's own text."""

    path: str | None = None
    """A folder or Hub name of an existing tokenizer; none: train one."""
    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """The subword model to train."""
    separate: bool = False
    """Of pairs: a vocabulary for the sources and another for the targets, of one size; at `path` the latter is in
    target/."""
    vocab_size: int = 8192
    """Number of entries, special tokens included."""
    cased: bool = False
    """Keep upper and lower case apart. Accents and Hangul are kept whole either way."""
    sample_characters: int = 200_000_000
    """Train, or count words, on at most this many characters, sampled evenly over the documents."""
    new_words: int = 0
    """So many words become entries of the tokenizer at `path`: the most frequent ones of the run's training text that
    it splits."""
    words: str | None = None
    """A file of one word a line; those that the tokenizer at `path` splits become entries too."""

    def __post_init__(self) -> None:
        between("tokenizer.new_words", self.new_words, 0)
        between("tokenizer.sample_characters", self.sample_characters, 1)
        if self.path is None and (self.new_words or self.words):
            name = "new_words" if self.new_words else "words"
            raise UserError(
                f"tokenizer.{name} adds to a tokenizer that is there, and one that is trained here fits the text as it "
                f"is: leave tokenizer.{name} out, or set init_from or tokenizer.path."
            )
