"""Which words are added to an existing tokenizer, and how it comes to know them."""

import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from transformers import PreTrainedTokenizerBase

from pretraining.data.settings import TokenizerSettings
from pretraining.errors import UserError

Reader = Callable[[], Iterator[str]]  # the training text, from its beginning at each call


def read_words(settings: TokenizerSettings) -> list[str]:
    """The words of the file that the settings name, one a line."""
    if settings.words is None:
        return []
    try:
        lines = Path(settings.words).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"tokenizer.words: {settings.words} cannot be read as UTF-8 text ({error}): name another, or convert it."
        ) from error
    return [line.strip() for line in lines if line.strip()]


def choose_words(tokenizer: PreTrainedTokenizerBase, settings: TokenizerSettings, read: Reader) -> list[str]:
    """The words to add, as the tokenizer's model gets to see them: lower-cased, say, or with the space before them.

    Raises:
        UserError: the tokenizer cannot keep a word whole, a listed word is none, or the text has too few.
    """
    backend = tokenizer.backend_tokenizer
    known = set(tokenizer.get_vocab())
    byte_level = "ByteLevel" in json.dumps(json.loads(backend.to_str())["pre_tokenizer"])
    kind = type(backend.model).__name__
    if kind not in ("WordPiece", "BPE"):
        raise UserError(
            f"tokenizer.new_words and tokenizer.words need a WordPiece or BPE tokenizer, and {settings.path!r} is "
            f"{kind}, which would use a new entry inside other words too: leave them out."
        )

    def is_word(piece: str) -> bool:
        text = decoders.ByteLevel().decode([piece]) if byte_level else piece
        spaced = text[:1] in " ▁"
        letters = text[spaced:]
        return spaced == (kind == "BPE") and bool(letters) and all(unicodedata.category(c)[0] in "LM" for c in letters)

    new: dict[str, None] = {}  # a set that keeps its order
    for word in read_words(settings):
        text = f" {word}"
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        if len(pieces) != 1:
            raise UserError(
                f"tokenizer.words: {word!r} in {settings.words} is no single word to the tokenizer, which reads "
                f"{' and '.join(map(repr, pieces)) or 'nothing'}: give words without spaces and punctuation."
            )
        new |= {piece: None for piece in pieces if piece not in known}
    if settings.new_words:
        # The trainer of whole words counts them as this tokenizer cuts them, and numbers them by frequency, then name.
        counter = Tokenizer(models.WordLevel())
        counter.normalizer, counter.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        trainer = trainers.WordLevelTrainer(vocab_size=2**31, min_frequency=2, show_progress=False)
        counter.train_from_iterator(read(), trainer)
        rank = counter.get_vocab()
        frequent = [
            word
            for word in sorted(rank, key=lambda word: rank[word])
            if word not in known and word not in new and is_word(word) and len(backend.model.tokenize(word)) > 1
        ]
        if len(frequent) < settings.new_words:
            raise UserError(
                f"tokenizer.new_words is {settings.new_words} but this text has {len(frequent)} words that occur twice "
                f"and that the tokenizer splits: set it to {len(frequent)} or less."
            )
        new |= dict.fromkeys(frequent[: settings.new_words])
    return list(new)


def add_words(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> None:
    """Makes words entries that stand for whole words alone: every other word keeps its pieces, which the model knows.

    In a WordPiece vocabulary a word would be the first piece of longer words too, so it is found before WordPiece is
    asked. BPE with `ignore_merges` looks a whole word up before it merges; whatever it had learnt to merge is found
    either way.
    """
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.model, models.WordPiece):
        tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
        return
    setup = json.loads(backend.to_str())
    setup["model"]["vocab"] |= {word: len(tokenizer) + i for i, word in enumerate(words)}
    setup["model"]["ignore_merges"] = True
    backend.model = Tokenizer.from_str(json.dumps(setup)).model
