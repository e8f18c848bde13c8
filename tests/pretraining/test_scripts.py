"""Every script: text survives the tokenizer, a user's raw text gets the ids of training, what is lost is told."""

import json
import math
import unicodedata
from collections import defaultdict
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretraining import evaluate
from pretraining.cli import parse
from pretraining.data.readers import normalise
from pretraining.data.settings import TokenizerSettings
from pretraining.data.text import corpus as text_corpus
from pretraining.data.text.sentences import sentences
from pretraining.data.tokenise import CLEAN, _is_clean, encode, unknown_share
from pretraining.data.tokenizer import TRAINERS, build_tokenizer
from pretraining.objectives import make_objective

THAI = "ประเทศไทยมีกรุงเทพมหานครเป็นเมืองหลวงและมีประชากรมากกว่าหกสิบล้านคนซึ่งส่วนใหญ่นับถือศาสนาพุทธ"
HINDI = "भारत एक विशाल देश है। यहाँ हिन्दी बोली जाती है।"
CHINESE = "你好。再见！他说：“好。”然后走了。 明天见。"
PERSIAN = "می\u200cخواهم نامه\u200cها را بخوانم."
SINHALA = "ශ්\u200dරී ලංකා"
EMOJI = "👩\u200d👩\u200d👧 🇰🇷 👍🏽 ->"
KOREAN = "모든 국민은 법 앞에 평등하다. 누구든지 차별을 받지 아니한다."
NATURAL = [THAI, THAI * 5, HINDI, CHINESE, PERSIAN, SINHALA, EMOJI, KOREAN, "Ça va? Ελλάς ΣΟΦΟΣ, déjà-vu (x)."]


def scripts() -> list[str]:
    """A line of each script that Unicode names: some of its letters, and no two marks on one, whose order would be
    another in the tables of Python than in those of tokenizers for the newest scripts."""
    letters, marks = defaultdict(list), defaultdict(list)
    for c in map(chr, chain(range(0xA1, 0xD7FF), range(0xF900, 0x1F000))):
        kind = unicodedata.category(c)
        if kind[0] in "LMN":
            (marks if kind[0] == "M" else letters)[unicodedata.name(c, "IDEOGRAPH").split()[0]].append(c)
    lines = []
    for name, found in letters.items():
        some = found[:: max(1, len(found) // 8)][:8]
        lines.append(("".join(some[:3] + marks[name][:1]) + " " + "".join(some[3:] + marks[name][1:2])).strip())
    return lines


LINES = [*scripts(), *NATURAL]


def fitted(settings: TokenizerSettings, corpus, cache: Path, family: str = "bert"):
    """The tokenizer at the size asked for, or at the one that the message advises: that works the first time."""
    try:
        return build_tokenizer(settings, corpus, cache, family=family)
    except ValueError as error:
        size = int("".join(filter(str.isdigit, str(error).split("set it to")[1])))
        tokenizer = build_tokenizer(replace(settings, vocab_size=size), corpus, cache, family=family)
        assert len(tokenizer) == size
        return tokenizer


@pytest.fixture(scope="module", params=[(kind, cased) for kind in TRAINERS for cased in (True, False)], ids=str)
def tokenizer(request: pytest.FixtureRequest, make_documents, tmp_path_factory: pytest.TempPathFactory):
    kind, cased = request.param
    settings = TokenizerSettings(kind=kind, cased=cased, vocab_size=20_000)
    found = fitted(settings, make_documents(["\n".join(LINES)] * 2), tmp_path_factory.mktemp("cache"))
    found.settings = settings
    return found


def test_every_script_survives(tokenizer):
    """Up to the normal form, white space and small letters; WordPiece forgets where spaces stood."""
    for line in LINES:
        ids = tokenizer(line, add_special_tokens=False).input_ids
        expected = unicodedata.normalize("NFC", line)
        expected = expected if tokenizer.settings.cased else "".join(c.lower() for c in expected)
        back = tokenizer.decode(ids)
        if tokenizer.settings.kind == "wordpiece":
            back, expected = "".join(back.split()), "".join(expected.split())
        assert back == expected
        assert tokenizer.unk_token_id not in ids, line


def test_raw_text_gets_the_ids_of_training(tokenizer):
    odd = ["a b.\nC d.", "  x \t\u00a0y\u3000z\x1c w\x00v\x7fu\x9ft\ufeffs\x85r\n\n", "ends\n", "[ab] " + "é" * 200]
    pairs = [unicodedata.normalize("NFD", text) for text in LINES] + odd
    for raw in [*LINES, *pairs]:
        runs = sentences(normalise(raw), "zh" if raw == CHINESE else "en")
        found = encode(runs, tokenizer.backend_tokenizer, "int32", tokenizer.unk_token_id)
        assert found.tokens.tolist() == tokenizer(raw, add_special_tokens=False).input_ids, raw
        assert found.lengths.sum() == len(found.tokens) and len(found.lengths) == sum(map(len, runs))


def test_clean_text_is_what_cleaning_leaves_as_it_is():
    for text in ["a b", "a  b", "a\u00a0b", "e\u0301", "é", "a\x00b", "a\ufeffb", " a", *LINES]:
        cleaned = text
        for step in CLEAN:
            cleaned = step.normalize_str(cleaned)
        assert cleaned == text or not _is_clean(text)


def test_sentences_of_a_run_have_the_tokens_of_their_text(tokenizer):
    (first, *_) = runs = sentences(CHINESE, "zh")
    found = encode(runs, tokenizer.backend_tokenizer, "int32", None)
    assert len(first) > 1
    parts = np.split(found.tokens, found.lengths.cumsum()[:-1])
    texts = ["".join(tokenizer.decode(part.tolist()).split()) for part in parts]
    assert texts == ["".join(sentence.split()) for run in runs for sentence in run]


def test_special_tokens_in_a_pair_are_text(make_documents, tmp_path: Path):
    text = "say </s> or <unk> or <mask> or <pad> now"
    settings = TokenizerSettings(kind="bpe", vocab_size=300)
    tokenizer = fitted(settings, make_documents([text] * 5), tmp_path, "seq2seq")
    tokenizer.save_pretrained(tmp_path / "saved")
    opened = type(tokenizer).from_pretrained(tmp_path / "saved")
    ids = opened(text).input_ids
    assert not set(ids[:-1]) & set(opened.all_special_ids) and opened.decode(ids, skip_special_tokens=True) == text


# ---- vocabularies ----


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("size", [300, 1000, 1005, 1010, 1999, 2000, 3000])
def test_whatever_a_message_advises_works_the_first_time(kind: str, size: int, make_documents, tmp_path: Path):
    characters = "".join(chr(0x4E00 + n) for n in range(1495)) + "".join(chr(0xAC00 + n) for n in range(500))
    texts = [characters[i : i + 50] for i in range(0, len(characters), 50)] * 2
    tokenizer = fitted(TokenizerSettings(kind=kind, vocab_size=size), make_documents(texts), tmp_path)
    assert len(tokenizer) <= max(size, 1700)


def test_a_wordpiece_of_nothing_but_chinese_has_every_character(make_documents, tmp_path: Path):
    characters = "".join(chr(0x4E00 + n) for n in range(1995))
    tokenizer = build_tokenizer(TokenizerSettings(vocab_size=2000), make_documents([characters] * 2), tmp_path)
    ids = tokenizer(characters, add_special_tokens=False).input_ids
    assert len(set(ids)) == 1995 and tokenizer.unk_token_id not in ids


def test_the_share_of_unknown_text_is_of_characters(make_documents, tmp_path: Path):
    for kind in ("wordpiece", "unigram"):
        settings = TokenizerSettings(kind=kind, vocab_size=45)
        tokenizer = fitted(settings, make_documents(["the cat sat on a mat. " * 20, "a dog ran by"] * 3), tmp_path)
        found = encode([["the cat ЖЖЖЖ"], ["Ж"]], tokenizer.backend_tokenizer, "int32", tokenizer.unk_token_id)
        assert found.unknown in (5, 6)  # with the space before a word, or without
    assert unknown_share({}, np.array([1, 2, 1, 3]), 1) == 0.5  # of a cache that older code wrote


# ---- what a run says ----


def run(tmp_path: Path, documents: list[str], held_out: list[str], *more: str):
    for name, texts in (("train", documents), ("held_out", held_out)):
        rows = (json.dumps({"text": text}) for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    files = [f"--data.files=[{tmp_path}/train.jsonl]", f"--data.validation_files=[{tmp_path}/held_out.jsonl]"]
    options = [f"--cache={tmp_path}/cache", "--train.steps=1", "--data.source=files", "--tokenizer.vocab_size=60"]
    options += ["--objective.next_sentence=none", "--data.near_duplicates=0"]
    return make_objective(parse([*options, *files, *more])).examples


ENGLISH = [f"the cat sat on mat {n}. the dog ran to the door {n}." for n in range(30)]


def test_unknown_text_is_a_warning_with_its_mend(here: Path, tmp_path: Path):
    examples = run(tmp_path, ENGLISH, ["the cat sat Жуть."])
    said = "\n".join(examples.prepare(is_builder=True))
    assert "0.00% of the train and 23.53% of the validation text is [UNK]\nwarning: " in said
    assert "set tokenizer.kind to bpe" in said
    assert examples.results["unknown"]["validation"] == pytest.approx(4 / 17)
    assert "warning" not in "\n".join(run(tmp_path, ENGLISH, ["the cat sat."]).prepare(is_builder=True))


def test_a_split_without_a_token_to_mask_is_refused(here: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"No token of the validation split can be masked.*tokenizer\.kind to bpe"):
        run(tmp_path, ENGLISH, ["Жуть жуть"]).prepare(is_builder=True)


def test_too_few_documents_and_a_wrong_tokenizer_are_refused_before_tokenising(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(text_corpus, "prepare_text", None)
    with pytest.raises(ValueError, match="validation split has 1 document, and NSP needs two"):
        run(tmp_path, ENGLISH, ["one"], "--objective.next_sentence=nsp").prepare(is_builder=True)
    examples = run(tmp_path, ENGLISH, ["one"])
    tokenizer = build_tokenizer(examples.run.tokenizer, SimpleNamespace(**corpus_of(ENGLISH)), tmp_path / "t")
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "maskless")
    with pytest.raises(ValueError, match="no mask_token"):
        run(tmp_path, ENGLISH, ["one"], f"--tokenizer.path={tmp_path}/maskless").prepare(is_builder=True)


def corpus_of(texts: list[str]) -> dict:
    return {"characters": np.array(list(map(len, texts))), "fingerprint": "", "texts": lambda: iter(texts)}


@pytest.mark.parametrize(
    ("texts", "more", "told"),
    [
        (["Iğdır ılık."] * 9, ["--data.language=tr"], "tokenizer.cased is false, and small letters make i of the Turk"),
        (["Iğdır ılık."] * 9, ["--data.language=tr", "--tokenizer.cased=true"], None),
        (["你好再见。"] * 9, ["--objective.whole_words=true"], "single tokens are masked"),
        ([THAI[:50]] * 9, ["--objective.whole_words=true", "--tokenizer.kind=bpe"], "whole_words: a word has"),
        (ENGLISH, ["--objective.whole_words=true"], None),
    ],
)
def test_small_letters_and_whole_words(here: Path, tmp_path: Path, texts: list[str], more: list[str], told: str | None):
    size = "--tokenizer.vocab_size=300" if "--tokenizer.kind=bpe" in more else "--tokenizer.vocab_size=20"
    try:
        lines = run(tmp_path, texts, texts[:1], size, *more).prepare(is_builder=True)
    except ValueError as error:
        number = "".join(filter(str.isdigit, str(error).split("set it to")[1]))
        lines = run(tmp_path, texts, texts[:1], f"--tokenizer.vocab_size={number}", *more).prepare(is_builder=True)
    said = "\n".join(lines)
    if told is None:
        assert "tokenizer.cased" not in said and "whole_words" not in said
    else:
        assert told in said


@pytest.mark.parametrize(
    ("target", "tokenize", "told"), [("你好。", "13a", True), ("你好。", "zh", False), ("Hallo", "13a", False)]
)
def test_bleu_of_targets_without_spaces(here: Path, tmp_path: Path, target: str, tokenize: str, told: bool):
    (tmp_path / "pairs.tsv").write_text("".join(f"hello {n}\t{target} {n}\n" for n in range(40)))
    options = ["--model.family=seq2seq", "--objective.name=translation", "--data.source=files", "--train.steps=1"]
    options += [f"--data.files=[{tmp_path}/pairs.tsv]", "--data.validation_fraction=0.2", f"--cache={tmp_path}/cache"]
    options += ["--tokenizer.kind=bpe", "--tokenizer.vocab_size=270", f"--objective.bleu_tokenize={tokenize}"]
    said = "\n".join(make_objective(parse(options)).examples.prepare(is_builder=True))
    assert ("bleu: objective.bleu_tokenize is 13a" in said) == told and "0.00% of the validation text" in said


def test_the_mean_of_nothing_is_no_number(monkeypatch: pytest.MonkeyPatch):
    nothing = {"mlm_loss": (torch.zeros(()), torch.zeros(()))}
    batch = SimpleNamespace(tensors={})
    monkeypatch.setattr(evaluate, "Steps", lambda *_: SimpleNamespace(since=lambda *_: [[batch]]))
    head = SimpleNamespace(to_model_inputs=lambda tensors: tensors)
    scoring = SimpleNamespace(
        observe=lambda *_: (nothing, []), score_outputs=lambda *_: {}, score_records=lambda *_: {}
    )
    objective = SimpleNamespace(examples=None, head=head, scoring=scoring)
    options, plan = SimpleNamespace(micro_batch=1, workers=0), SimpleNamespace(examples=None)
    found = evaluate.evaluate(torch.nn.Identity(), objective, plan, options, evaluate.Accelerator(cpu=True))
    assert math.isnan(found["mlm_loss"])
