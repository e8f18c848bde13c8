"""The tokenizer: texts survive it, plain transformers opens it, the same text gives the same one."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    pipeline,
)

from pretraining.data.settings import TokenizerSettings
from pretraining.data.text.documents import Documents
from pretraining.data.text.sources import FEATURES, as_documents
from pretraining.data.tokenizer import (
    TRAINERS,
    build_tokenizer,
    load_tokenizer,
    regular_ids,
    require_tokens,
    sample_lines,
    word_starts,
)

KOREAN = (
    "대한민국은 민주공화국이다. 대한민국의 주권은 국민에게 있고, 모든 권력은 국민으로부터 나온다.\n"
    "모든 국민은 법 앞에 평등하다. 누구든지 성별·종교에 의하여 차별을 받지 아니한다.\n"
) * 3
ACCENTS = "Café ÉCOLE naïve Ångström Šimon, (déjà vu) «où»?\n" * 3
TOPICS = list(topics.values())[:12]
TEXT = [*TOPICS, KOREAN, ACCENTS]
KINDS = [(kind, cased) for kind in TRAINERS for cased in (True, False)]


def corpus(*texts: str) -> Documents:
    rows = as_documents(((str(number), text) for number, text in enumerate(texts or TEXT)), "the test")
    return Documents.of(Dataset(pa.Table.from_pylist(list(rows), FEATURES.arrow_schema)), 0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=KINDS, ids=lambda p: f"{p[0]}-{'cased' if p[1] else 'uncased'}")
def settings(request: pytest.FixtureRequest) -> TokenizerSettings:
    return TokenizerSettings(kind=request.param[0], cased=request.param[1], vocab_size=900)


@pytest.fixture
def tokenizer(settings: TokenizerSettings, cache: Path) -> PreTrainedTokenizerBase:
    return build_tokenizer(settings, corpus(), cache)


def squeeze(text: str) -> str:
    return "".join(text.split())


# ---- what comes out ----


def test_it_has_the_size_and_the_tokens_asked_for(tokenizer: PreTrainedTokenizerBase):
    assert len(tokenizer) == 900
    assert sorted(tokenizer.get_vocab().values()) == list(range(900))
    special = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token]
    assert [*special, tokenizer.mask_token] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids([*special, "[MASK]"]) == [0, 1, 2, 3, 4]


def test_it_makes_berts_pairs(tokenizer: PreTrainedTokenizerBase):
    pair = tokenizer("the statement", "an object")
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the statement", "an object"))
    assert pair["input_ids"] == [2, *a, 3, *b, 3]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


@pytest.mark.parametrize("text", [KOREAN, ACCENTS, TEXT[0], "국민 café  [x]\tÉCOLE\nend"])
def test_text_survives(settings: TokenizerSettings, tokenizer: PreTrainedTokenizerBase, text: str):
    assert set(squeeze(text)) <= set("".join(TEXT))  # else [UNK] would be right
    back = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert squeeze(back) == squeeze(text if settings.cased else text.lower())


def test_plain_transformers_opens_it(settings, tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(plain, PreTrainedTokenizerFast)
    assert plain.get_vocab() == tokenizer.get_vocab()
    for text in TEXT:
        assert plain(text, "a [MASK].") == tokenizer(text, "a [MASK].")


def test_fill_mask_uses_it(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=900, **sizes)).save_pretrained(tmp_path)
    (best, *_) = pipeline("fill-mask", str(tmp_path))("The [MASK] is an object.", top_k=2)
    assert best["token"] in range(900)


def test_a_mask_stands_for_a_word_with_its_space(tokenizer: PreTrainedTokenizerBase):
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    whole, masked = ids("an object."), ids("an [MASK].")
    assert masked[: len(ids("an"))] == ids("an") and masked[-2:] == [4, whole[-1]]


# ---- how it is trained ----

SCRIPT = """
import sys
from pathlib import Path
import pyarrow as pa
from datasets import Dataset
from pydoc_data.topics import topics
from pretraining.data.text.documents import Documents
from pretraining.data.text.sources import FEATURES, as_documents
from pretraining.data.tokenizer import TRAINERS, build_tokenizer
from pretraining.data.settings import TokenizerSettings
rows = as_documents(((str(number), text) for number, text in enumerate(list(topics.values())[:12])), "the test")
documents = Documents.of(Dataset(pa.Table.from_pylist(list(rows), FEATURES.arrow_schema)), 0)
for kind in TRAINERS:
    build_tokenizer(TokenizerSettings(kind=kind, vocab_size=900), documents, Path(sys.argv[1]))
"""


def test_the_same_text_gives_the_same_tokenizer(tmp_path: Path):
    """In another process, with another hash seed and another number of threads."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"PYTHONHASHSEED": "1", "TOKENIZERS_PARALLELISM": "false"}
    there = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "there")], env=environment)
    for kind in TRAINERS:
        build_tokenizer(TokenizerSettings(kind=kind, vocab_size=900), corpus(*TOPICS), tmp_path / "here")
    assert there.wait() == 0
    files = [
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.json")}
        for folder in (tmp_path / "here", tmp_path / "there")
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 3 * len(TRAINERS)  # tokenizer, settings, and the mark of what is whole


def test_it_is_trained_once(settings: TokenizerSettings, cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = build_tokenizer(settings, corpus(), cache)
    monkeypatch.setitem(TRAINERS, settings.kind, None)
    assert build_tokenizer(settings, corpus(), cache).get_vocab() == first.get_vocab()
    with pytest.raises(TypeError):
        build_tokenizer(settings, corpus("other text"), cache)
    assert {path.name.split("-")[0] for path in cache.iterdir()} == {"tokenizer"}


def test_the_others_wait_for_the_writer(tmp_path: Path):
    settings, found = TokenizerSettings(vocab_size=500), []

    def read() -> None:
        found.append(build_tokenizer(settings, corpus(), tmp_path, is_builder=False))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(0.3)
    assert not found
    written = build_tokenizer(settings, corpus(), tmp_path)
    reader.join(30)
    assert found[0].get_vocab() == written.get_vocab()


@pytest.mark.parametrize("characters", [1, 500, 4000, 10**9])
def test_the_sample_is_even_and_bounded(characters: int):
    documents = [f"{letter * 60}\n{letter * 35}\n\n{letter}\n" * 40 for letter in "abcdefgh"]
    taken = "".join(sample_lines(corpus(*documents), characters))
    everything = "".join(documents).replace("\n", "")
    assert len(taken) == min(characters, len(everything))
    if characters >= 4000:
        assert max(taken.count(c) for c in "abcdefgh") - min(taken.count(c) for c in "abcdefgh") <= 120


def test_one_long_line_is_sampled_too():
    assert list(sample_lines(corpus("ab" * 5000), 10)) == ["ab" * 5]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_rare_characters_leave_room_for_words(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A crawl holds thousands of characters; those beyond the most frequent become [UNK]."""
    rare = "".join(chr(0x4E00 + n) for n in range(3000))
    settings = TokenizerSettings(kind=kind, vocab_size=1500)
    tokenizer = build_tokenizer(settings, corpus(*TEXT, rare), tmp_path)
    assert len(tokenizer) == 1500
    assert sum(token in rare for token in tokenizer.get_vocab()) < 1000
    assert "rare characters" in caplog.text
    assert tokenizer.unk_token_id not in tokenizer(KOREAN)["input_ids"]
    assert tokenizer.unk_token_id in tokenizer(rare[-1])["input_ids"]


# ---- what masking asks ----


def words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The text cut where `word_starts` says."""
    starts, cut = word_starts(tokenizer), []
    for number in tokenizer(text, add_special_tokens=False)["input_ids"]:
        cut += [[]] if starts[number] else []
        cut[-1].append(number)
    return [tokenizer.decode(word).strip() for word in cut]


def test_words_start_where_they_do(tokenizer: PreTrainedTokenizerBase):
    assert words(tokenizer, "대한민국은 법 앞에 평등하다.") == ["대한민국은", "법", "앞에", "평등하다", "."]
    assert words(tokenizer, "unstatement objects, or") == ["unstatement", "objects", ",", "or"]
    starts = word_starts(tokenizer)
    assert starts.dtype == bool and starts.shape == (len(tokenizer),)
    assert starts[:5].all() and not starts.all()


def test_wordpiece_words_are_those_of_berts_pre_tokenizer(cache: Path):
    tokenizer = build_tokenizer(TokenizerSettings(vocab_size=900), corpus(), cache)
    backend = tokenizer.backend_tokenizer
    for text in TEXT:
        pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
        starts = word_starts(tokenizer)[tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert starts.sum() == len(pieces)


def test_words_need_a_mark(tmp_path: Path):
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"where words begin.*turn off whole-word masking"):
        word_starts(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_regular_ids_are_all_but_the_special(tokenizer: PreTrainedTokenizerBase):
    assert np.array_equal(regular_ids(tokenizer), np.arange(5, 900))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[X]"]})
    tokenizer.add_tokens(["ordinary"])
    assert np.array_equal(regular_ids(tokenizer), [*range(5, 900), 901])


# ---- mistakes ----


@pytest.mark.parametrize("text", [TEXT[0], KOREAN * 3])
def test_the_number_in_the_message_works(settings: TokenizerSettings, text: str, tmp_path: Path):
    for asked, wording in ((100_000, "this text gives"), (20, "too small")):
        settings = replace(settings, vocab_size=asked)
        with pytest.raises(ValueError, match=f"vocab_size.*{asked}.*{wording}.*set it to") as error:
            build_tokenizer(settings, corpus(text), tmp_path)
        assert not list(tmp_path.glob("*/*")) or asked == 20
        number = int("".join(filter(str.isdigit, str(error.value).split("set it to")[1])))
        settings = replace(settings, vocab_size=number)
        assert len(build_tokenizer(settings, corpus(text), tmp_path)) == number


def test_an_existing_tokenizer_is_loaded(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    loaded = build_tokenizer(TokenizerSettings(path=str(tmp_path)), corpus("unused"), tmp_path / "cache")
    assert loaded.get_vocab() == tokenizer.get_vocab() and not (tmp_path / "cache").exists()


def test_a_folder_without_a_tokenizer(tmp_path: Path):
    with pytest.raises(ValueError, match="no tokenizer can be loaded") as error:
        build_tokenizer(TokenizerSettings(path=str(tmp_path)), corpus("unused"), tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message and "tokenizer.json" in message and "\n" not in message


def test_tokenizers_that_cannot_be_used(tmp_path: Path):
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "a": 1}')
    (tmp_path / "merges.txt").write_text("#version\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    BertTokenizer({word: i for i, word in enumerate(words)} | {"far": 50}).save_pretrained(tmp_path / "gap")
    for folder, told in (("", "a CTRLTokenizer is none of the library"), ("gap", "6 entries, but numbers up to 50")):
        with pytest.raises(ValueError, match=told):
            load_tokenizer(str(tmp_path / folder))


def test_missing_special_tokens_are_named(tokenizer: PreTrainedTokenizerBase):
    require_tokens(tokenizer, ("pad_token", "mask_token", "cls_token", "sep_token"))
    tokenizer.mask_token = tokenizer.cls_token = None
    with pytest.raises(ValueError, match=r"no mask_token and no cls_token: .*add_special_tokens.*train one"):
        require_tokens(tokenizer, ("mask_token", "pad_token", "cls_token"))


def test_on_a_corpus_of_novels(tmp_path: Path):
    """Real text, where it lies beside the checkout."""
    file = Path(__file__).parents[3] / "shared" / "data" / "english_novels" / "validation.parquet"
    if not file.exists():
        pytest.skip("no novels here")
    documents = corpus(*pq.read_table(file)["text"].to_pylist())
    settings = TokenizerSettings(vocab_size=4000, sample_characters=300_000)
    tokenizer = build_tokenizer(settings, documents, tmp_path)
    ids = tokenizer(next(documents.texts())[:100_000])["input_ids"]
    assert ids.count(tokenizer.unk_token_id) < len(ids) / 1000
