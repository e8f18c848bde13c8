"""Short documents and near-duplicates: the estimate against exact sets, who goes, what is told."""

import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from pretraining.data import stored
from pretraining.data.text import filters
from pretraining.data.text.documents import Documents
from pretraining.data.text.filters import HASHES, RECALL, band_rows, filter_text, near_duplicates, shingles, sign, words
from pretraining.data.text.settings import TextSettings

WORDS = [f"word{number}" for number in range(2000)]


def page(seed: int, length: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def edited(text: str, changes: int, seed: int = 0) -> str:
    """The text with some words replaced."""
    words = text.split()
    for at in random.Random(seed).sample(range(len(words)), changes):
        words[at] = "other"
    return " ".join(words)


def exact(a: str, b: str) -> float:
    """Jaccard similarity of the sets of five words."""
    one, other = (
        {tuple(found[i : i + 5]) for i in range(max(1, len(found) - 4))} for found in (words(text) for text in (a, b))
    )
    return len(one & other) / len(one | other)


def signatures(documents: Documents) -> np.ndarray:
    return np.concatenate([sign(documents, shard) for shard in documents.shards()], axis=1)


@pytest.fixture
def keep(make_documents, tmp_path: Path):
    """What is left of two splits, as texts, and what was left out."""

    def filtered(train: list[str], validation: list[str], **settings):
        splits = {"train": make_documents(train), "validation": make_documents(validation)}
        kept, left_out = filter_text(splits, TextSettings(**settings), tmp_path, True)
        return {split: list(documents.texts()) for split, documents in kept.items()}, left_out

    return filtered


# ---- the estimate ----


def test_shingles_are_the_sets_of_five_words():
    texts = ["Only three words", page(0), "One, two; THREE four five six!", "...", "밥을 먹었다 中文字符 한"]
    values, starts, counts = shingles(texts)
    assert counts.tolist() == [len(words(text)) for text in texts]
    for text, found in zip(texts, np.split(values, starts[1:]), strict=True):
        size = len(words(text))
        assert len(found) == max(1, size - 4)
    assert np.array_equal(shingles([texts[2]])[0], shingles(["one TWO three, four - five (six)"])[0])
    assert words("中文字 ab-c 밥을") == ["中", "文", "字", "ab", "c", "밥을"]
    assert words("हिन्दी ไทย 𠮷") == ["हिन्दी", *"ไทย", "𠮷"]


def test_the_estimate_is_that_of_exact_sets(make_documents):
    """Its error has mean zero and the standard std of K draws, for long texts and for short ones."""
    pairs = []
    for number in range(300):
        text = page(number, 6 + number)
        pairs += [text, edited(text, number % 6, number)]
    found = signatures(make_documents(pairs))
    truth = np.array([exact(*pairs[i : i + 2]) for i in range(0, len(pairs), 2)])
    estimate = (found[:, ::2] == found[:, 1::2]).mean(axis=0)
    std = np.sqrt(truth * (1 - truth) / HASHES)
    assert (np.abs(estimate - truth) <= 5 * std + 1e-9).all()
    assert abs((estimate - truth).mean()) < 3 * std.mean() / len(truth) ** 0.5
    assert 0.7 < (np.square(estimate - truth).sum() / np.square(std).sum()) ** 0.5 < 1.3


def test_long_texts_are_signed_in_pieces(make_documents, monkeypatch: pytest.MonkeyPatch):
    documents = make_documents([page(0, 5000), page(1, 10), page(2, 3000)])
    whole = signatures(documents)
    monkeypatch.setattr(filters, "BLOCK", 2000)
    assert (signatures(documents) == whole).mean() > 0.95  # a few runs across the cuts are left out
    assert np.array_equal(signatures(documents)[:, 1], whole[:, 1])


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_find_what_is_asked_for(threshold: float):
    rows = band_rows(threshold)
    found = 1 - (1 - threshold**rows) ** (HASHES // rows)
    assert found >= RECALL or rows == 1
    assert rows == HASHES or 1 - (1 - threshold ** (rows + 1)) ** (HASHES // (rows + 1)) < RECALL


def test_similar_documents_are_found_wherever_they_are():
    """Of 400 documents, 100 resemble an earlier one in 90 % of their entries, 100 in 60 %."""
    random = np.random.default_rng(0)
    first = random.integers(0, 2**16, (HASHES, 200), dtype=np.uint16)
    near, far = first[:, :100].copy(), first[:, 100:].copy()
    near[:13] = random.integers(0, 2**16, (13, 100))
    far[:51] = random.integers(0, 2**16, (51, 100))
    order = random.permutation(200)
    found = near_duplicates(np.concatenate([first, np.concatenate([near, far], axis=1)[:, order]], axis=1), 0.8)
    assert not found[:200].any()
    assert np.array_equal(found[200:], order < 100)


# ---- who goes ----


def test_the_later_of_two_goes():
    original = page(0)
    assert exact(original, edited(original, 2)) > 0.85 and exact(original, edited(original, 40)) < 0.4


def test_of_near_duplicates_one_is_kept(keep):
    original = page(0)
    texts = [original, page(1), edited(original, 2), edited(original, 40), original.upper(), original]
    kept, left_out = keep(texts, [page(2)])
    assert kept == {"train": [texts[0], texts[1], texts[3]], "validation": [page(2)]}
    assert left_out["train"] == {"too short": 0, "near-duplicates": 3}
    assert keep(texts, [page(2)], near_duplicates=0)[0]["train"] == texts
    assert keep(texts, [page(2)], near_duplicates=1)[0]["train"] == texts[:5]  # equal and nothing else


def test_held_out_text_never_leaks(keep):
    held = page(0)
    kept, left_out = keep([edited(held, 2), page(1)], [page(3), held])
    assert kept == {"train": [page(1)], "validation": [page(3), held]}
    assert left_out == {
        "train": {"too short": 0, "near-duplicates": 1},
        "validation": {"too short": 0, "near-duplicates": 0},
    }


@pytest.mark.parametrize("threshold", [0.05, 0.8, 1])
def test_texts_of_a_few_words_are_compared_exactly(keep, threshold: float):
    texts = ["One two.", "one, TWO", "C++", "C#", "->", "...", "😀", "😀" * 300, "🇰🇷", "하나", "ไทย", "中"]
    texts += ["हिन्दी", "हिन्दू"]
    texts += [f"word{number} of five words here" for number in range(3000)]  # unlike in one word each
    texts += ["किताब पढ़ो और सो जाओ अभी", "क तब पढ और स ज अभ"]  # unlike in every vowel
    kept, left_out = keep([*texts, *texts[:10]], ["x"], near_duplicates=threshold)
    assert kept["train"] == texts and left_out["train"]["near-duplicates"] == 10


def test_a_copy_in_another_normal_form_is_a_copy(keep):
    text = "Ça été élevé " + page(0, 30)
    assert keep([unicodedata.normalize("NFD", text), page(1)], [text])[0]["train"] == [page(1)]


def test_short_documents_go_first(keep):
    """One that is left out for its length is no original of a longer one."""
    texts = [page(0) + "!", page(0) + "...", page(1, 5)]
    kept, left_out = keep(texts, [page(2, 400)], min_characters=len(texts[1]))
    assert kept["train"] == [texts[1]]
    assert left_out["train"] == {"too short": 2, "near-duplicates": 0}


def test_sources_are_told_apart_afterwards(make_documents, tmp_path: Path):
    several = Documents.concatenate([make_documents([page(0), page(1)]), make_documents([page(1), page(2)])])
    several = Documents(several.dataset, several.hash, several.characters, np.array([0, 0, 1, 1]))
    kept, _ = filter_text({"train": several, "validation": make_documents([page(9)])}, TextSettings(), tmp_path, True)
    assert list(kept["train"].texts()) == [page(0), page(1), page(2)]
    assert kept["train"].source.tolist() == [0, 0, 1]
    assert np.array_equal(kept["train"].hash, several.hash[[0, 1, 3]])


def test_processes_find_the_same_and_only_once(make_documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [edited(page(number // 2), number % 2 * 3) for number in range(60)]
    splits = {"train": make_documents(texts), "validation": make_documents([page(99)])}
    one = filter_text(splits, TextSettings(processes=1), tmp_path / "one", True)
    monkeypatch.setattr(stored, "CHARACTERS", 10_000)
    three = filter_text(splits, TextSettings(processes=3), tmp_path / "three", True)
    assert one[1] == three[1] and one[1]["train"]["near-duplicates"] == 30
    assert one[0]["train"].fingerprint == three[0]["train"].fingerprint
    monkeypatch.setattr(filters, "sign", None)
    again = filter_text(splits, TextSettings(), tmp_path / "one", True)
    assert again[0]["train"].fingerprint == one[0]["train"].fingerprint


def test_nothing_left_is_one_sentence(keep):
    with pytest.raises(ValueError, match=r"train split is left, of whose 2 documents 2 are too short: set.*lower\.$"):
        keep(["ab", "cd"], [page(0)], min_characters=3)
    with pytest.raises(ValueError, match=r"train split .* 1 documents 1 are near-duplicates"):
        keep([page(0)], [page(0)])
