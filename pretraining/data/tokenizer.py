"""The tokenizer: an existing one, or one trained on the run's text; and what masking asks of it."""

import dataclasses
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pretraining.data import new_words
from pretraining.data.cache import build_cached
from pretraining.data.new_words import Reader
from pretraining.data.settings import TokenizerSettings
from pretraining.data.tokenise import CLEAN
from pretraining.errors import UserError, one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpecialTokens:
    """A family's special tokens, and where its tokenizer puts them around a text."""

    first: list[str]
    """The first ids."""
    last: list[str]
    """The last ids."""
    roles: dict[str, str]
    """transformers' name of each."""
    single: str
    """Around one text; `$A` is the text."""
    pair: str | None
    """Around two."""
    inputs: list[str]
    """The tensors that the tokenizer returns."""


# Devlin 2018, released code.
BERT = SpecialTokens(
    first=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    last=[],
    roles={
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    inputs=["input_ids", "token_type_ids", "attention_mask"],
)
# As Marian has it, whose padding starts the target too: tools that know Marian want it last.
SEQ2SEQ = SpecialTokens(
    first=["</s>", "<unk>", "<mask>"],
    last=["<pad>"],
    roles={"eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>", "pad_token": "<pad>"},
    single="$A </s>",
    pair=None,
    inputs=["input_ids", "attention_mask"],
)
SPECIAL = {"bert": BERT, "seq2seq": SEQ2SEQ}
RUN = 100  # characters without a space that WordPiece sees at a time
UNCOVERED = 0.0005  # share of the text that may be rare characters, as in SentencePiece
TARGET = "target"  # the folder, in a model's own, of the tokenizer of targets that have a vocabulary of their own


class Corpus(Protocol):
    """What a tokenizer is trained on: documents, or pairs."""

    @property
    def characters(self) -> np.ndarray:
        """Length of each item."""

    @property
    def fingerprint(self) -> str: ...

    def texts(self) -> Iterator[str]: ...


def sample_lines(corpus: Corpus, characters: int) -> Iterator[str]:
    """Lines spread evenly over the corpus, at most `characters` in all."""
    total = int(corpus.characters.sum())
    seen = taken = 0
    for text in corpus.texts():
        for line in text.split("\n"):
            seen += len(line) + 1
            if taken < characters and taken * total < seen * characters:  # behind the even pace
                piece = line[: characters - taken]
                taken += len(piece)
                yield piece


def _clean_spaced(settings: TokenizerSettings) -> normalizers.Normalizer:
    """`CLEAN` for the kinds that keep a space with the word behind it: behind the last word it would be a token."""
    lower = [] if settings.cased else [normalizers.Lowercase()]
    return normalizers.Sequence([*CLEAN, *lower, normalizers.Strip(left=False, right=True)])


def _without(read: Reader, characters: list[str]) -> Reader:
    """The text with these characters blanked out."""
    blank = re.compile("[" + re.escape("".join(characters)) + "]")
    return lambda: (blank.sub(" ", text) for text in read())


def _train_on_frequent(
    settings: TokenizerSettings,
    read: Reader,
    special: SpecialTokens,
    alphabet: Callable[[Iterable[str], bool], set[str]],
    train: Callable[[Reader, set[str]], PreTrainedTokenizerBase],
) -> PreTrainedTokenizerBase:
    """Trains on the text without its rare characters, of which a crawl holds thousands: they become [UNK].

    Of a vocabulary of N the most frequent characters get N / 4 entries, or more up to N / 2 until they are 99.95 % of
    the text; at least 1000 are kept. Where words leave entries over, as in Chinese, as many are kept as fit.

    Args:
        alphabet: the entries that some characters take; a bool says whether the text has no others.
        train: the tokenizer of a text with this alphabet.

    Raises:
        UserError: the vocabulary has no room for the alphabet.
    """
    size = settings.vocab_size
    counts: Counter[str] = Counter()
    for text in read():
        counts.update(text)
    folded: Counter[str] = Counter()  # what the tokenizer's model sees of them
    for c, count in counts.items():
        folded.update(dict.fromkeys(c if settings.cased else c.lower(), count))
    ranked = sorted(folded, key=lambda c: (-folded[c], c))
    entries = len(special.roles) + np.cumsum([len(alphabet(c, False)) for c in ranked])
    rest = 1 - np.cumsum([0, *(folded[c] for c in ranked[:-1])]) / folded.total()  # share of the text before each
    wanted = max(1000, size // 4, int(((entries <= size // 2) & (rest > UNCOVERED)).sum()))
    fit = int((entries <= size).sum())
    if len(special.roles) + len(alphabet(ranked, True)) <= size:
        fit = len(ranked)
    for limit in (wanted, max(wanted, fit)):
        kept, whole = set(ranked[:limit]), limit >= len(ranked)
        letters = alphabet(kept, whole)
        _check_alphabet(len(special.roles) + len(letters), settings)
        rare = [c for c in counts if not kept.issuperset(c if settings.cased else c.lower())]
        tokenizer = train(read if whole else _without(read, rare), letters)
        if len(tokenizer) >= size:
            break
    if rare:
        share = sum(counts[c] for c in rare) / counts.total()
        logger.warning("%d rare characters (%.2g of the text) read as %s", len(rare), share, tokenizer.unk_token)
    return tokenizer


def _check_alphabet(needed: int, settings: TokenizerSettings) -> None:
    if settings.vocab_size < needed:
        raise UserError(
            f"tokenizer.vocab_size {settings.vocab_size} is too small for special tokens and the characters of this "
            f"text with tokenizer.kind {settings.kind!r}: set it to at least {needed}."
        )


def _wordpiece(settings: TokenizerSettings, read: Reader, special: SpecialTokens) -> PreTrainedTokenizerBase:
    """Pieces of words (Wu 2016, 4.1), of which those inside a word begin with ##."""
    if special is not BERT:
        raise UserError(
            "tokenizer.kind: wordpiece marks no spaces, so that text cannot be written: choose bpe or unigram."
        )

    def backend(vocabulary: dict[str, int]) -> Tokenizer:
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=RUN))
        lower = not settings.cased
        bert = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=lower)
        backend.normalizer = normalizers.Sequence([*CLEAN, bert])
        # A longer run without a space would be [UNK], and a line of Thai is one; WordPiece is quadratic in its length.
        cut = pre_tokenizers.FixedLength(RUN)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), cut])
        backend.decoder = decoders.WordPiece()
        return backend

    def entries(read: Reader, size: int, first: list[str]) -> dict[str, int]:
        trained = backend({})
        trainer = trainers.WordPieceTrainer(vocab_size=size, min_frequency=2, special_tokens=first, show_progress=False)
        trained.train_from_iterator(read(), trainer)
        return trained.get_vocab()

    # The trainer numbers the ## characters in the order of a hash map, which differs between processes, and breaks ties
    # between merges by number. A first pass, without merges, finds them; the next is told the order.
    pieces = set(entries(read, 0, []))

    def alphabet(characters: Iterable[str], whole: bool) -> set[str]:
        inside = {c for c in characters if f"##{c}" in pieces}
        # Behind a character that is blanked out a word begins, and where a run is cut: there is no other place for a
        # mark to be the first.
        first = {c for c in inside if not whole or unicodedata.category(c)[0] == "M"}
        return {c for c in characters if c in pieces} | {f"##{c}" for c in inside} | first

    def train(read: Reader, letters: set[str]) -> PreTrainedTokenizerBase:
        ordered = sorted(letters, key=lambda token: (token.startswith("##"), token))
        vocabulary = entries(read, settings.vocab_size, special.first + ordered)
        return _fast(backend(dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))), special, special.first)

    return _train_on_frequent(settings, read, special, alphabet, train)


def _spaced(special: SpecialTokens) -> list[str | AddedToken]:
    """The first special tokens, for kinds that keep the space with the word behind it: so does the mask."""
    mask = special.roles["mask_token"]
    spaced = AddedToken(mask, lstrip=True, normalized=False, special=True)
    return [spaced if token == mask else token for token in special.first]


def _fast(backend: Tokenizer, special: SpecialTokens, first: Sequence[str | AddedToken]) -> PreTrainedTokenizerBase:
    """The tokenizer of transformers, with the first special tokens as `first` has them."""
    backend.add_special_tokens(special.last)
    ids = [(token, backend.token_to_id(token)) for token in special.roles.values() if token in special.single]
    backend.post_processor = TemplateProcessing(special.single, special.pair, ids)
    tokens = dict(zip(special.first, first, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=special.inputs,
        # A text that says </s> is text, as in training. But [MASK] is how BERT is asked, fill-mask has no other way.
        split_special_tokens=special is not BERT,
        **{role: tokens.get(token, token) for role, token in special.roles.items()},
    )


def _bpe(settings: TokenizerSettings, read: Reader, special: SpecialTokens) -> PreTrainedTokenizerBase:
    """Pairs of pieces that are merged, the most frequent first (Sennrich 2015), of bytes."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_alphabet(len(special.roles) + len(alphabet), settings)
    backend = Tokenizer(models.BPE())
    backend.normalizer = _clean_spaced(settings)
    # Metaspace puts a space before the text, which makes its first word a word like any other. ByteLevel
    # could do that too, but would do it behind each [MASK] as well.
    space = pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([space, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])  # that first space again
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - len(special.last), min_frequency=2, special_tokens=_spaced(special),
        initial_alphabet=alphabet, show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(read(), trainer)
    return _fast(backend, special, _spaced(special))


def _unigram(settings: TokenizerSettings, read: Reader, special: SpecialTokens) -> PreTrainedTokenizerBase:
    """Pieces with probabilities, of which a text gets the likeliest (Kudo 2018)."""

    def alphabet(characters: Iterable[str], whole: bool) -> set[str]:
        return {"▁" if c.isspace() or unicodedata.category(c) == "Cc" else c for c in characters}

    def train(read: Reader, letters: set[str]) -> PreTrainedTokenizerBase:
        backend = Tokenizer(models.Unigram())
        backend.normalizer = _clean_spaced(settings)
        # Punctuation stands alone, as in BERT, or "end." and "end," would be entries of their own.
        split = pre_tokenizers.Split(Regex(r"▁?(?:[^▁\p{P}\p{S}]+|[^▁])|▁"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"), split])
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        unknown, size = special.roles["unk_token"], settings.vocab_size - len(special.last)
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=_spaced(special), unk_token=unknown, show_progress=False
        )
        backend.train_from_iterator(read(), trainer)
        # The trainer adds up in the order of a hash map, which differs between processes, and gives the characters that
        # it had dropped scores from the lowest up, in steps of 1e-4, in that order. Rounding, and one score for all of
        # these, leave the text alone to decide. It also overshoots a small vocab_size.
        pieces = dict(json.loads(backend.to_str())["model"]["vocab"][len(special.first) :])
        lowest, single = min(pieces.values()), sum(len(piece) == 1 for piece in pieces)
        for piece, score in pieces.items():
            dropped = len(piece) == 1 and score < lowest + 1e-4 * single
            pieces[piece] = round(lowest if dropped else score, 6)
        ranked = sorted(pieces, key=lambda piece: (len(piece) > 1, -pieces[piece], piece))
        chosen = sorted(ranked[: size - len(special.first)], key=lambda piece: (-pieces[piece], piece))
        scored = [(token, 0.0) for token in special.first] + [(piece, pieces[piece]) for piece in chosen]
        backend.model = models.Unigram(scored, special.first.index(unknown))
        return _fast(backend, special, _spaced(special))

    return _train_on_frequent(settings, read, special, alphabet, train)


TRAINERS = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}


def cased(path: Path) -> dict[str, bool]:
    """What must be told of the vocabulary in a folder, where no file beside it tells: that it has capital letters.

    transformers lower-cases whatever a BERT reads unless it is told. An uncased vocabulary has no capitals but those of
    its special tokens.
    """
    told = any((path / name).exists() for name in ("tokenizer_config.json", "tokenizer.json"))
    if told or not (path / "vocab.txt").exists():
        return {}
    entries = (path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    capitals = sum(entry != entry.lower() and not entry.startswith("[") for entry in entries)
    return {"do_lower_case": False} if capitals > 0.01 * len(entries) else {}


def load_tokenizer(path: str, subfolder: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub name, or of a folder in it; a UserError where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, subfolder=subfolder, **cased(Path(path, subfolder)))
        if not tokenizer.is_fast:
            raise UserError(f"a {type(tokenizer).__name__} is none of the library tokenizers, whose processes read it")
        if not len(regular_ids(tokenizer)):  # what transformers makes of a BERT model's folder without a vocabulary
            raise UserError("it has no vocabulary")
        if len(tokenizer) <= (last := max(tokenizer.get_vocab().values())):
            raise UserError(f"it has {len(tokenizer)} entries, but numbers up to {last}")
        return tokenizer
    except Exception as error:  # there are dozens, from missing files to a missing network
        raise UserError(
            f"no tokenizer can be loaded from {path!r} ({one_line(error)}): it must be a folder with "
            f"{Path(subfolder, 'tokenizer.json')}, or a Hub name."
        ) from error


def build_tokenizer(
    settings: TokenizerSettings,
    corpus: Corpus,
    cache: Path,
    is_builder: bool = True,
    family: str = "bert",
    subfolder: str = "",
) -> PreTrainedTokenizerBase:
    """Load the tokenizer at `settings.path`, with new words if there shall be any, or train one on the corpus' text.

    Args:
        corpus: that of the training split alone, or validation would not be held out.
        family: of the model, which decides the special tokens.
        cache, is_builder: as in `build_cached`.
        subfolder: the folder at `settings.path` that the tokenizer is in.

    Raises:
        UserError: if nothing can be loaded from the path, if the vocabulary or the new words asked for are more than
            the text gives, or if the vocabulary is smaller than the text's alphabet.
    """
    existing = None if settings.path is None else load_tokenizer(settings.path, subfolder)
    if existing is not None and not settings.new_words and settings.words is None:
        return existing
    code = [Path(file).read_text(encoding="utf-8") for file in (__file__, new_words.__file__)]
    content = [dataclasses.asdict(settings), family, corpus.fingerprint, tokenizers.__version__, code]
    if existing is not None:
        content += [existing.backend_tokenizer.to_str(), new_words.read_words(settings)]

    def make(folder: Path) -> dict[str, Any]:
        def read() -> Iterator[str]:
            return sample_lines(corpus, settings.sample_characters)

        if existing is not None:
            tokenizer = existing
            new_words.add_words(existing, new_words.choose_words(existing, settings, read))
        else:
            tokenizer = TRAINERS[settings.kind](settings, read, SPECIAL[family])
            if len(tokenizer) < settings.vocab_size:
                raise UserError(
                    f"tokenizer.vocab_size is {settings.vocab_size} but this text gives {len(tokenizer)} entries: set "
                    f"it to {len(tokenizer)} or less, or give more text."
                )
        tokenizer.save_pretrained(folder)
        return {}

    return AutoTokenizer.from_pretrained(build_cached(cache, "tokenizer", content, make, is_builder))


def require_tokens(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> None:
    """Raise a UserError unless the tokenizer has all these special tokens, e.g. "mask_token"."""
    missing = [name for name in names if getattr(tokenizer, name) is None]
    if missing:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no {' and no '.join(missing)}: give it one with "
            f"add_special_tokens({{{missing[0]!r}: ...}}) and save it, or leave tokenizer.path out to train one."
        )


def require_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a UserError unless the tokenizer puts its end behind a text and nothing else around it, as `SEQ2SEQ`."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end == pad:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has {tokenizer.pad_token!r} for padding and for the end: give "
            "it a pad_token of its own and save it, or leave tokenizer.path out to train one."
        )
    ids = tokenizer("a").input_ids
    if ids != [*tokenizer("a", add_special_tokens=False).input_ids, end]:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} makes {tokenizer.convert_ids_to_tokens(ids)} of 'a', but an "
            f"encoder-decoder reads a text and then its end, {tokenizer.eos_token!r}: set its post_processor to "
            "TemplateProcessing of '$A' and the end and save it, or leave tokenizer.path out to train one."
        )


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return {*tokenizer.all_special_ids, *added}


def regular_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The ids of all entries but the special tokens, ascending."""
    return np.array(sorted(set(tokenizer.get_vocab().values()) - _special_ids(tokenizer)))


def _alone(character: str) -> bool:
    """Whether the character is a word by itself, as for BERT: punctuation, symbols and Chinese characters."""
    return unicodedata.category(character)[0] in "PS" or "\u3400" <= character <= "\u9fff"


def word_starts(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Which vocabulary entries begin a word, for whole-word masking: bool, one for each id.

    An entry begins a word if it has no ## (WordPiece); or if it begins with a space, or with a character that
    is a word by itself (byte-level and metaspace; "word" in "(word" then counts as a part of that). Special
    tokens do.

    Raises:
        UserError: if the tokenizer marks words in none of these ways.
    """
    vocabulary = tokenizer.get_vocab()
    setup = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {}}
    steps = json.dumps([setup.get("pre_tokenizer"), setup.get("decoder")], ensure_ascii=False)
    if setup["model"].get("type") == "WordPiece":
        prefix = setup["model"]["continuing_subword_prefix"]
        begins = {token: not token.startswith(prefix) for token in vocabulary}
    elif "ByteLevel" in steps or "▁" in steps:
        decode = decoders.ByteLevel().decode if "ByteLevel" in steps else "".join
        first = {token: decode([token])[:1] for token in vocabulary}
        # U+FFFD: a byte from within a character.
        begins = {token: c in " ▁" or (c != "\ufffd" and _alone(c)) for token, c in first.items()}
    else:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} does not show where words begin (by ##, Ġ or ▁): turn "
            "off whole-word masking (objective.whole_words)."
        )
    starts = np.ones(max(vocabulary.values()) + 1, dtype=bool)
    for token, number in vocabulary.items():
        starts[number] = begins[token]
    starts[sorted(_special_ids(tokenizer))] = True
    return starts
