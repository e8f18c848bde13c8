"""Prediction over files: equal to the model asked line by line, whatever is packed, windowed, killed or bad."""

import csv
import gzip
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ViTImageProcessorPil, pipeline

from finetuning.predict import main
from finetuning.prediction import output as output_module
from finetuning.prediction.base import Predictor
from finetuning.prediction.spans import entities, trimmed
from finetuning.prediction.windows import over_windows, pack_rows
from finetuning.prepared import PreparedTexts
from finetuning.settings import WindowSettings
from finetuning.windows import Windows, flatten
from modeling import (
    KeelBertConfig,
    KeelBertForMultipleChoice,
    KeelBertForPreTraining,
    KeelBertForQuestionAnswering,
    KeelBertForSequenceClassification,
    KeelBertForTokenClassification,
    KeelSeq2SeqConfig,
    KeelSeq2SeqForConditionalGeneration,
    KeelViTConfig,
    KeelViTForImageClassification,
)
from modeling.convert import to_native
from modeling.search import Search
from pretraining.data.packing import layout, pack_tokens
from pretraining.data.tokenise import CLEAN
from pretraining.data.tokenizer import BERT, SEQ2SEQ, _fast

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}
COMPUTE = ["--precision=fp32", "--kernel=sdpa", "--linear=torch", "--threads=1"]
BIO = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
TEXTS = [
    "The cat sat on the mat in Paris.",
    "서울에서 열린 회의, 그리고 부산!",
    "An emoji 👩‍👩‍👧 and a flag 🇰🇷 stand here",
    "Cafe\u0301 and Zu\u0308rich, e\u0301 decomposed",
    "a",
    "tabs\tand  several   spaces",
    "Anna and Bob Smith went to New York; they liked it, said [SEP] Anna.",
]
KIND = {"tokens": {"id2label": dict(enumerate(BIO)), "label2id": {name: n for n, name in enumerate(BIO)}}}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small lose by threads, and forks of the tokenizer's threads warn."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def wordpiece() -> PreTrainedTokenizerFast:
    """Every character of the texts, and a few words, as BERT's tokenizers have them."""
    letters = sorted(
        {letter for text in [*TEXTS, "abcdefghijklmnopqrstuvwxyz0123456789é ü"] for letter in text.lower()}
    )
    letters = sorted({*letters, "é", "ü"} - {" ", "\t"})
    words = ["the", "cat", "and", "new", "york", "anna", "##ing", "서울"]
    entries = [*BERT.first, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    lower = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=True)
    backend.normalizer = normalizers.Sequence([*CLEAN, lower])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _fast(backend, BERT, BERT.first)


def encode(*texts: Any, **options: Any) -> Any:
    """By the tokenizer itself, to which [SEP] is text."""
    return wordpiece()(*texts, return_tensors="pt", split_special_tokens=True, **options)


def drawn(model: PreTrainedModel) -> PreTrainedModel:
    """With weights that make a difference."""
    torch.manual_seed(0)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, PreTrainedModel]]:
    """`make_model(class, **fields)`: a tiny model in a folder, with its tokenizer."""

    def make(kind: type[PreTrainedModel], **fields: Any) -> tuple[Path, PreTrainedModel]:
        folder, tokenizer = tmp_path_factory.mktemp("model"), wordpiece()
        config = KeelBertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **(SIZES | fields))
        model = drawn(kind(config))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture(scope="session")
def classifier(make_model) -> tuple[Path, PreTrainedModel]:
    names = ["bad", "good", "so so"]
    return make_model(
        KeelBertForSequenceClassification, id2label=dict(enumerate(names)), problem_type="single_label_classification"
    )


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def predict(model: Path, file: Path, out: Path, *more: str) -> list[dict]:
    main([str(model), str(file), f"--out={out}", *COMPUTE, *more])
    return read_jsonl(out) if out.suffix == ".jsonl" else []


def error_of(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one sentence that a command ends with."""
    with pytest.raises(SystemExit):
        main([*map(str, arguments), *COMPUTE])
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("python -m finetuning.predict: error: ")
    return line


# ---- windows and rows ----


def test_windows_as_fine_tuning_cuts_them():
    """And in rows as `layout` lays them out."""
    random = np.random.default_rng(0)
    for pairs in (False, True):
        sides = 1 + pairs
        lengths = random.integers(0, 60, (50, sides))
        bounds = np.concatenate([[0], lengths.ravel().cumsum()])
        data = PreparedTexts("", random.integers(10, 99, int(bounds[-1])), bounds, sides, 0.0, None)
        both = lengths if pairs else np.pad(lengths, ((0, 0), (0, 1)))
        windows = Windows.of(both, pairs, WindowSettings(sequence_length=16, stride=3, windows=10**6))
        flat = flatten(data, windows, np.arange(len(lengths)), 1, 2)
        expected: list[list[int]] = []
        for example in range(50):
            texts = [data.tokens[data.span(example, side)].tolist() for side in range(sides)]
            for parts in windows.cut(example):
                pieces = [text[part] for text, part in zip(texts, parts, strict=False)]
                expected.append([1, *(token for piece in pieces for token in (*piece, 2))])
        split = np.split(flat.input_ids, np.cumsum(flat.sizes)[:-1])
        assert [window.tolist() for window in split] == expected
        assert (flat.sizes <= 16).all()
        assert np.array_equal(flat.owners, np.repeat(np.arange(50), windows.counts))
        types = np.split(flat.token_type_ids, np.cumsum(flat.sizes)[:-1])
        assert all(
            kind.sum() == (len(kind) - ids.tolist().index(2) - 1) * pairs
            for kind, ids in zip(types, split, strict=True)
        )
        seen: list[int] = []
        for rows in pack_rows(flat, 4, 0):
            members: list[list[dict]] = [[] for _ in range(len(rows.tensors["input_ids"]))]
            for window, row in zip(rows.windows, rows.row, strict=True):
                members[row].append({"input_ids": split[window]})
            length, most = rows.tensors["input_ids"].shape[1], rows.tensors["sequence_starts"].shape[1]
            expected_rows = {"input_ids": pack_tokens(members, "input_ids", length, 0)}
            expected_rows |= layout(members, "input_ids", length, most)
            for name in ("input_ids", "sequence_ids", "position_ids", "sequence_starts"):
                assert torch.equal(rows.tensors[name], expected_rows[name]), name
            seen += rows.windows.tolist()
        assert sorted(seen) == list(range(len(expected)))


def test_windows_brought_together():
    values, owners = np.random.default_rng(0).normal(size=(6, 2)), np.array([0, 0, 1, 2, 2, 2])
    parts = [values[owners == owner] for owner in range(3)]
    assert np.allclose(over_windows(values, owners, "mean"), [part.mean(0) for part in parts])
    assert np.allclose(over_windows(values, owners, "max"), [part.max(0) for part in parts])


# ---- equal to the model asked line by line ----


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_classes_equal_a_pipeline(classifier, tmp_path: Path, pairs: bool, native: bool):
    folder, model = classifier
    converted = to_native(model)
    if native:
        folder = tmp_path / "native"
        converted.save_pretrained(folder)
        wordpiece().save_pretrained(folder)
    rows = [{"text": text, **({"text_pair": TEXTS[-1 - n][:20]} if pairs else {})} for n, text in enumerate(TEXTS)]
    rows = [row for row in rows if "[SEP]" not in "".join(row.values())]  # to a pipeline that is no text
    found = predict(folder, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", "--rows=2")
    ask = pipeline("text-classification", model=converted, tokenizer=wordpiece())
    for row, line in zip(rows, found, strict=True):
        expected = ask(row if pairs else row["text"], top_k=None)
        assert line["label"] == expected[0]["label"]
        assert line["score"] == pytest.approx(expected[0]["score"], abs=2e-6)
        assert list(line["probabilities"]) == [each["label"] for each in expected]
        assert list(line["probabilities"].values()) == pytest.approx([each["score"] for each in expected], abs=2e-6)
    assert [line["line"] for line in found] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_any_number_of_windows(classifier, tmp_path: Path, pooling: str):
    folder, model = classifier
    texts = [" ".join(TEXTS[:2] * count) for count in (1, 4, 30)]
    more = ["--sequence_length=16", "--stride=4", f"--window_pooling={pooling}", "--rows=3"]
    found = predict(
        folder, write_jsonl(tmp_path / "in.jsonl", [{"text": t} for t in texts]), tmp_path / "out.jsonl", *more
    )
    tokenizer = wordpiece()
    for text, line in zip(texts, found, strict=True):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        starts = range(0, max(1, len(ids) - 4), 10)  # 14 tokens of text in a window, 4 of them again
        windows = [[tokenizer.cls_token_id, *ids[start : start + 14], tokenizer.sep_token_id] for start in starts]
        with torch.no_grad():
            logits = torch.cat([model(torch.tensor([window])).logits for window in windows])
        together = logits.mean(0) if pooling == "mean" else logits.amax(0)
        expected = {model.config.id2label[n]: p for n, p in enumerate(together.softmax(0).tolist())}
        assert line["probabilities"] == pytest.approx(expected, abs=2e-6)


def test_several_classes_and_numbers(make_model, tmp_path: Path):
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS[:3]])
    folder, model = make_model(
        KeelBertForSequenceClassification, num_labels=3, problem_type="multi_label_classification", pooling="mean"
    )
    with torch.no_grad():
        logits = [model(**wordpiece()(text, return_tensors="pt")).logits[0] for text in TEXTS[:3]]
    for line, scores in zip(predict(folder, file, tmp_path / "several.jsonl"), logits, strict=True):
        expected = {f"LABEL_{n}": p for n, p in enumerate(scores.sigmoid().tolist())}
        assert line["probabilities"] == pytest.approx(expected, abs=2e-6)
        assert line["labels"] == [name for name, p in expected.items() if p > 0.5]
    folder, model = make_model(KeelBertForSequenceClassification, num_labels=1)
    with torch.no_grad():
        numbers = [float(model(**wordpiece()(text, return_tensors="pt")).logits) for text in TEXTS[:3]]
    assert [line["value"] for line in predict(folder, file, tmp_path / "n.jsonl")] == pytest.approx(numbers, abs=2e-6)


def tag_words(model: PreTrainedModel, text: str) -> list[tuple[int, int, str, float]]:
    """Each word's place, tag and score by a plain forward."""
    encoded = wordpiece()(text, return_tensors="pt", return_offsets_mapping=True)
    places = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        probabilities = model(**encoded).logits[0].softmax(-1)
    pieces = wordpiece().convert_ids_to_tokens(encoded["input_ids"][0])
    words: list[tuple[int, int, str, float]] = []
    for (start, end), piece, scores in list(zip(places, pieces, probabilities, strict=True))[1:-1]:
        if piece.startswith("##") and words:
            words[-1] = (words[-1][0], end, *words[-1][2:])
        else:
            words.append((start, end, BIO[int(scores.argmax())], float(scores.max())))
    return words


@pytest.fixture(scope="session")
def tagger(make_model) -> tuple[Path, PreTrainedModel]:
    return make_model(KeelBertForTokenClassification, **KIND["tokens"])


def test_tags_of_texts(tagger, tmp_path: Path):
    folder, model = tagger
    texts = [text for text in TEXTS if "[SEP]" not in text]
    found = predict(folder, write_jsonl(tmp_path / "in.jsonl", [{"text": t} for t in texts]), tmp_path / "out.jsonl")
    ask = pipeline("token-classification", model=to_native(model), tokenizer=wordpiece(), aggregation_strategy="first")
    count = 0
    for text, line in zip(texts, found, strict=True):
        words = tag_words(model, text)
        expected = entities(text, np.array([word[:2] for word in words]), [w[2] for w in words], [w[3] for w in words])
        assert [dict(each, score=0) for each in line["entities"]] == [dict(each, score=0) for each in expected]
        scores = [each["score"] for each in expected]
        assert [each["score"] for each in line["entities"]] == pytest.approx(scores, abs=3e-6)
        for each in line["entities"]:
            assert each["text"] == text[each["start"] : each["end"]] == each["text"].strip() != ""
        count += len(expected)
        if "\u0301" in text:  # of composed characters the pipeline takes whole words for parts
            continue
        theirs = [(each["start"], each["end"], each["entity_group"]) for each in ask(text)]
        assert [(each["start"], each["end"], each["tag"]) for each in line["entities"]] == theirs
    assert count > 10


def test_tags_of_words(tagger, tmp_path: Path):
    """Windows of few tokens, too: every word is read in the windows that have its first token."""
    folder, model = tagger
    words = [["Anna", "went", "to", "New", "York"], ["서울", "👩‍👩‍👧", "cafe\u0301"], ["the"]]
    file = write_jsonl(tmp_path / "in.jsonl", [{"tokens": each} for each in words])
    found = predict(folder, file, tmp_path / "out.jsonl")
    for sentence, line in zip(words, found, strict=True):
        text = " ".join(sentence)
        starts = {start: tag for start, _, tag, _ in tag_words(model, text)}
        places = np.cumsum([0, *(len(word) + 1 for word in sentence)])[:-1]
        assert line["tags"] == [starts[place] for place in places.tolist()]
        assert all(each["text"] == text[each["start"] : each["end"]] for each in line["entities"])
    found = predict(folder, file, tmp_path / "windows.jsonl", "--sequence_length=9", "--stride=2")
    assert [len(line["tags"]) for line in found] == [len(each) for each in words]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-A", "I-A", "O", "I-A"], [(0, 3, "A"), (6, 7, "A")]),
        (["B-A", "B-A", "I-B", "I-B"], [(0, 1, "A"), (2, 3, "A"), (4, 7, "B")]),
        (["N", "N", None, "B-"], [(0, 1, "N"), (2, 3, "N"), (6, 7, "")]),
    ],
)
def test_entities(tags: list[str | None], expected: list[tuple]):
    words = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    found = entities("a b c d", words, tags, [0.5] * 4)
    assert [(each["start"], each["end"], each["tag"]) for each in found] == expected


def test_answers(make_model, tmp_path: Path):
    folder, model = make_model(KeelBertForQuestionAnswering)
    contexts = [*TEXTS[:3], TEXTS[6]]
    file = write_jsonl(tmp_path / "in.jsonl", [{"question": "the cat?", "context": text} for text in contexts])
    found = predict(folder, file, tmp_path / "out.jsonl", "--answer_length=5")
    for text, line in zip(contexts, found, strict=True):
        encoded = wordpiece()(
            "the cat?", text, return_tensors="pt", return_offsets_mapping=True, split_special_tokens=True
        )
        places = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            outputs = model(**encoded)
        start, end = (scores[0].softmax(0) for scores in (outputs.start_logits, outputs.end_logits))
        second = np.flatnonzero(encoded["token_type_ids"][0])[:-1].tolist()
        spans = [(float(start[s] * end[e]), s, e) for s in second for e in second if s <= e < s + 5]
        score, s, e = max(spans)
        assert (line["start"], line["end"]) == (places[s][0], places[e][1])
        assert line["answer"] == text[line["start"] : line["end"]]
        assert line["score"] == pytest.approx(score, abs=2e-6)
        assert line["no_answer"] == pytest.approx(float(start[0] * end[0]), abs=2e-6)
    windows = predict(folder, file, tmp_path / "windows.jsonl", "--sequence_length=20", "--stride=2")
    assert all(
        line["answer"] == text[line["start"] : line["end"]] for line, text in zip(windows, contexts, strict=True)
    )


def test_choices(make_model, tmp_path: Path):
    folder, model = make_model(KeelBertForMultipleChoice)
    rows = [{"context": TEXTS[n][:20], "choices": TEXTS[n + 1 : n + 3 + n]} for n in (0, 1, 2)]
    found = predict(folder, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    for row, line in zip(rows, found, strict=True):
        encoded = encode([row["context"]] * len(row["choices"]), row["choices"], padding=True)
        with torch.no_grad():
            scores = model(**{name: values[None] for name, values in encoded.items()}).logits[0].softmax(-1)
        assert line["choice"] == int(scores.argmax())
        assert line["probabilities"] == pytest.approx(scores.tolist(), abs=2e-6)


def test_translations(tmp_path: Path):
    letters = sorted({letter for text in TEXTS for letter in text} - {" "})
    vocabulary = {entry: n for n, entry in enumerate([*SEQ2SEQ.first, *letters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SEQ2SEQ.roles["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = _fast(backend, SEQ2SEQ, SEQ2SEQ.first)
    config = KeelSeq2SeqConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2, intermediate_size=24, encoder_layers=1,
        decoder_layers=1, max_position_embeddings=80, pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = drawn(KeelSeq2SeqForConditionalGeneration(config))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in [*TEXTS, "x" * 90]])
    more = ["--rows=3", "--beams=2", "--max_length=12", "--skip_bad"]
    found = predict(tmp_path / "model", file, tmp_path / "out.jsonl", *more)
    search = Search(model)
    for text, line in zip(TEXTS, found, strict=False):
        ids = tokenizer(text, split_special_tokens=True).input_ids
        (target,) = search(torch.tensor([ids]), max_length=13, num_beams=2)
        assert line["translation"] == tokenizer.decode(target, skip_special_tokens=True).strip()
    assert "tokens" in found[-1]["error"]


def test_images(tmp_path: Path):
    names = ["cat", "dog"]
    config = KeelViTConfig(
        image_size=8, patch_size=4, id2label=dict(enumerate(names)), hidden_size=16, num_attention_heads=2,
        intermediate_size=24, num_hidden_layers=1,
    )  # fmt: skip
    model = drawn(KeelViTForImageClassification(config))
    model.save_pretrained(tmp_path / "model")
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, do_convert_rgb=True)
    processor.save_pretrained(tmp_path / "model")
    random, folder = np.random.default_rng(0), tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.png", "below/c.png"]):
        Image.fromarray(random.integers(0, 255, (9 + number, 12, 3), dtype=np.uint8)).save(folder / name)
    ask = pipeline("image-classification", model=to_native(model), image_processor=processor)
    found = predict(tmp_path / "model", folder, tmp_path / "out.jsonl", "--rows=2", "--keep_columns", "image")
    assert [line["image"] for line in found] == ["a.png", "b.png", "below/c.png"]
    for line in found:
        expected = ask(str(folder / line["image"]))
        assert line["label"] == expected[0]["label"]
        assert line["score"] == pytest.approx(expected[0]["score"], abs=2e-6)
    images = [{"bytes": (folder / line["image"]).read_bytes(), "path": None} for line in found]
    pq.write_table(pa.table({"image": images}), tmp_path / "in.parquet")
    assert [line["label"] for line in predict(tmp_path / "model", tmp_path / "in.parquet", tmp_path / "p.jsonl")] == [
        line["label"] for line in found
    ]
    (folder / "in.jsonl").write_text(
        "".join(json.dumps({"path": path}) + "\n" for path in ("a.png", "gone.png", "in.jsonl", "a\0b", "\ud83d"))
    )
    file = folder / "in.jsonl"
    bad = predict(tmp_path / "model", file, tmp_path / "bad.jsonl", "--skip_bad")
    assert [line.get("label", "") != "" for line in bad] == [True, False, False, False, False]
    assert "No such file" in bad[1]["error"] and "no image" in bad[2]["error"]
    assert "is no path" in bad[3]["error"] and "is no path" in bad[4]["error"]


# ---- files ----


def rows_of(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [row | {"line": int(row["line"]), "score": float(row["score"])} for row in rows]
    return pq.read_table(path).to_pylist()


def test_formats(classifier, tmp_path: Path):
    """What a line holds is the same from every format and in every format, in the file's order."""
    texts = [text for text in TEXTS if "\t" not in text]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text, "id": n} for n, text in enumerate(texts)])
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    (tmp_path / "a.tsv").write_text(
        "".join(f"{text}\n" for text in ["text\tid", *(f"{t}\t{n}" for n, t in enumerate(texts))])
    )
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "id"], *((text, n) for n, text in enumerate(texts))])
    pq.write_table(pa.table({"text": texts, "id": range(len(texts))}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
            file.write((tmp_path / name).read_bytes())
    expected = predict(classifier[0], tmp_path / "a.jsonl", tmp_path / "expected.jsonl")
    for path in sorted(tmp_path.glob("a.*")):
        found = predict(classifier[0], path, tmp_path / f"{path.name}.out.jsonl")
        assert [line["label"] for line in found] == [line["label"] for line in expected], path
        assert [line["score"] for line in found] == [line["score"] for line in expected], path
    for end in (".csv", ".parquet"):
        predict(classifier[0], tmp_path / "a.jsonl", tmp_path / f"out{end}", "--keep_columns", "id")
        found = rows_of(tmp_path / f"out{end}")
        assert list(found[0]) == ["line", "id", "label", "score", "probabilities", "error"]
        assert [(row["line"], row["label"], row["score"]) for row in found] == [
            (row["line"], row["label"], row["score"]) for row in expected
        ]
        assert [row["id"] for row in found] == [str(n) for n in range(len(texts))]


def test_columns_by_number(classifier, tmp_path: Path):
    (tmp_path / "a.csv").write_text('1,the cat\n2,"a, b"\n')
    (tmp_path / "a.txt").write_text("the cat\na, b\n")
    found = predict(classifier[0], tmp_path / "a.csv", tmp_path / "out.jsonl", "--text_column=2")
    expected = predict(classifier[0], tmp_path / "a.txt", tmp_path / "expected.jsonl")
    assert [line["score"] for line in found] == [line["score"] for line in expected]


BAD = {
    "no JSON": ('{"text": "the', "not JSON"),
    "no object": ("[1, 2]", "no object"),
    "no key": ('{"txt": "the cat"}', "'text'"),
    "no text": ('{"text": 7}', "instead of text"),
    "empty": ('{"text": "  "}', "there is no text"),
    "null": ('{"text": null}', "there is no text"),
    "half a character": ('{"text": "\\ud83d"}', "half a character"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_lines(classifier, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str):
    """One ends the run, which goes on behind it where that is asked for: every line has its line."""
    line, reason = BAD[kind]
    good = json.dumps({"text": "the cat"})
    (tmp_path / "in.jsonl").write_text(f"{good}\n\n{line}\n{good}\n")
    out = tmp_path / "out.jsonl"
    message = error_of(capsys, classifier[0], tmp_path / "in.jsonl", "--out", out)
    assert "line 3" in message and reason in message and "--skip_bad" in message
    found = predict(classifier[0], tmp_path / "in.jsonl", out, "--skip_bad")
    assert [line["line"] for line in found] == [1, 3, 4]
    assert reason in found[1]["error"] and set(found[1]) == {"line", "error"}
    assert found[0]["score"] == found[2]["score"]
    assert "1 of them bad" in capsys.readouterr().out


def test_bad_cells(classifier, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "in.csv").write_text('id,text\n1,the cat\n2\n3,"a"b\n4,and\n')
    assert "row" not in error_of(capsys, classifier[0], tmp_path / "in.csv", "--out", tmp_path / "out.csv")
    predict(classifier[0], tmp_path / "in.csv", tmp_path / "out.csv", "--skip_bad", "--keep_columns", "id")
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["line"] for row in found] == ["2", "3", "4", "5"]
    assert [bool(row["error"]) for row in found] == [False, True, True, False]
    assert "1 cells instead of 2" in found[1]["error"] and "not CSV" in found[2]["error"]


def test_a_header_holds_names(classifier, tmp_path: Path):
    """A cell that is equal to the number of a column makes no header of its row."""
    (tmp_path / "in.csv").write_text("the cat,1\nand,2\n")
    found = predict(classifier[0], tmp_path / "in.csv", tmp_path / "out.jsonl", "--text_column=1")
    assert [line["line"] for line in found] == [1, 2]


def test_a_row_is_named_by_the_line_it_begins_at(classifier, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "in.csv").write_text('text,k\n"the\ncat",1\nx,2,3\n')
    assert "line 4: it has 3 cells" in error_of(capsys, classifier[0], tmp_path / "in.csv", "--out", tmp_path / "o.csv")


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_any_kept_text_comes_back(classifier, tmp_path: Path, end: str):
    """Carriage returns stay within their cell, half a character is spelt out; nested too deep is a bad line."""
    odd = ["x\ry", "\ud83dz", {"k": "\ud83d"}]
    rows = [*({"text": "the", "k": value} for value in odd), {"text": "a", "k": 1}]
    file = write_jsonl(tmp_path / "in.jsonl", [])
    deep = '{"text": "a", "k": ' + "[" * 900 + "]" * 900 + "}\n"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + deep)
    out = tmp_path / f"out.{end}"
    main([str(classifier[0]), str(file), f"--out={out}", "--keep_columns", "k", "--skip_bad", *COMPUTE])
    if end == "csv":
        with out.open(newline="", encoding="utf-8") as opened:
            found = list(csv.DictReader(opened))
    else:
        found = pq.read_table(out).to_pylist()
    assert [row["k"] for row in found][:2] == ["x\ry", "\\ud83dz"] and len(found) == 5
    assert "cannot be written" in found[-1]["error"]


@pytest.mark.parametrize("content", ["", "{", "{}", "null", '"x"'])
def test_a_damaged_progress_is_told(classifier, tmp_path: Path, content: str, capsys: pytest.CaptureFixture):
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": "the cat"}])
    (tmp_path / "out.csv.progress.json").write_text(content)
    message = error_of(capsys, classifier[0], file, "--out", tmp_path / "out.csv")
    assert "out.csv.progress.json is damaged" in message and "delete it" in message


def test_a_file_that_has_gone_is_written_again(classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The run was killed when the file had its name, and the progress was not deleted yet."""
    file, out = write_jsonl(tmp_path / "in.jsonl", [{"text": "the cat"}]), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict(classifier[0], file, out)
    out.rename(tmp_path / "elsewhere.jsonl")
    predict(classifier[0], file, out)
    assert out.read_bytes() == (tmp_path / "elsewhere.jsonl").read_bytes()


@pytest.mark.parametrize(("content", "reason"), [("", "no lines"), ("nothing\n", "is not JSON")])
def test_a_file_without_a_whole_line(classifier, tmp_path: Path, capsys, content: str, reason: str):
    (tmp_path / "in.jsonl").write_text(content)
    assert reason in error_of(capsys, classifier[0], tmp_path / "in.jsonl", "--out", tmp_path / "o.csv", "--skip_bad")


def test_columns_of_one_name_are_told(classifier, tmp_path: Path, capsys: pytest.CaptureFixture):
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "in.parquet")
    assert "2 columns 'text'" in error_of(capsys, classifier[0], tmp_path / "in.parquet", "--out", tmp_path / "o.csv")


def test_marks_belong_to_their_word():
    text = "in Cafe\u0301 Rome\u0301\u0301"
    assert trimmed(text, np.array([2, 8]), np.array([7, 13])).tolist() == [[3, 8], [9, 15]]


def test_the_number_of_threads_changes_no_digit(classifier, tmp_path: Path):
    write_jsonl(tmp_path / "in.jsonl", [{"text": " ".join(TEXTS[: n % 9 + 1])} for n in range(90)])
    for threads in (1, 3):
        predict(classifier[0], tmp_path / "in.jsonl", tmp_path / f"{threads}.jsonl", f"--threads={threads}", "--rows=1")
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "3.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["in.jsonl", "in.txt", "in.csv", "in.tsv"])
@pytest.mark.parametrize(
    ("bytes_", "reason"), [(b"caf\xe9", "byte 0xe9"), (b"a\0b", "NUL"), (b"\x1b$B", "ISO 2022")], ids=repr
)
def test_lines_that_are_no_text(
    classifier, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, bytes_: bytes, reason: str
):
    texts = [b"the cat", bytes_, b"and"]
    lines = [b'{"text": "%s"}' % text for text in texts] if name == "in.jsonl" else texts
    header = [b"text"] if name in ("in.csv", "in.tsv") else []
    (tmp_path / name).write_bytes(b"\n".join([*header, *lines, b""]))
    number = 2 + len(header)
    message = error_of(capsys, classifier[0], tmp_path / name, "--out", tmp_path / "out.jsonl")
    assert f"line {number}" in message and reason in message
    found = predict(classifier[0], tmp_path / name, tmp_path / "out.jsonl", "--skip_bad")
    assert [line["line"] for line in found] == [number - 1, number, number + 1]
    assert reason in found[1]["error"] and "label" in found[0] and "label" in found[2]


# ---- kills ----


def killed(run: Callable[[], object], at: int) -> int:
    """The exit code of a fork that dies when it waits for the disk for the `at`th time; 0: it came to its end."""
    process = os.fork()
    if not process:
        calls = 0

        def fsync(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                os._exit(9)

        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.fsync = fsync
            run()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "block", 8)
    monkeypatch.setattr(output_module, "GROUP", 16)


@pytest.mark.parametrize("end", [".jsonl", ".csv", ".parquet"])
def test_killed_anywhere(classifier, tmp_path: Path, small_blocks: None, end: str):
    """The bytes are those of a run that nobody killed, and nothing lies beside them."""
    rows = [{"text": f"{TEXTS[n % 6]} {n}"} if n % 7 else {"text": ""} for n in range(29)]
    file = write_jsonl(tmp_path / "in.jsonl", rows)
    whole = tmp_path / f"whole{end}"
    predict(classifier[0], file, whole, "--skip_bad")
    assert [row["line"] for row in rows_of_lines(whole)] == list(range(1, 30))
    for at in (1, 4, 6) if end == ".jsonl" else (5,):
        out = tmp_path / f"out{at}{end}"
        codes = []
        while not codes or codes[-1]:
            codes.append(killed(partial(predict, classifier[0], file, out, "--skip_bad"), at + 2 * len(codes)))
            assert codes[-1] in (0, 9) and len(codes) < 40
        assert len(codes) > 1
        assert out.read_bytes() == whole.read_bytes()
        assert sorted(tmp_path.glob(f"{out.name}*")) == [out]


def rows_of_lines(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [{"line": int(row["line"])} for row in csv.DictReader(file)]
    return rows_of(path)


def test_cut_off_lines_are_written_again(classifier, tmp_path: Path, small_blocks: None):
    """What was written behind the last whole block, as a power cut may leave it, is no part of the file."""
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": f"{TEXTS[n % 6]} {n}"} for n in range(30)])
    predict(classifier[0], file, tmp_path / "whole.jsonl")
    out = tmp_path / "out.jsonl"
    assert killed(partial(predict, classifier[0], file, out), 9) == 9
    with Path(f"{out}.unfinished").open("a") as unfinished:
        unfinished.write('{"line": 99, "lab')
    predict(classifier[0], file, out)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_processes_write_no_file_together(classifier, tmp_path: Path, capsys: pytest.CaptureFixture):
    file, out = write_jsonl(tmp_path / "in.jsonl", [{"text": "the cat"}]), tmp_path / "out.jsonl"
    with FileLock(f"{out}.lock"):
        assert "another process" in error_of(capsys, classifier[0], file, "--out", out)
    predict(classifier[0], file, out)


@pytest.mark.parametrize("changed", ["input", "model", "setting", "output"])
def test_another_run_is_not_continued(
    classifier, make_model, tmp_path: Path, small_blocks: None, capsys: pytest.CaptureFixture, changed: str
):
    folder, out = classifier[0], tmp_path / "out.jsonl"
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": f"{TEXTS[n % 6]} {n}"} for n in range(30)])
    assert killed(partial(predict, folder, file, out), 9) == 9
    more: list[str] = []
    if changed == "input":
        write_jsonl(file, [{"text": "another"}])
    elif changed == "model":
        folder, _ = make_model(KeelBertForSequenceClassification, num_labels=3)
    elif changed == "output":
        Path(f"{out}.unfinished").unlink()
    else:
        more = ["--stride=3"]
    message = error_of(capsys, folder, file, "--out", out, *more)
    assert "progress.json" in message
    assert ("bytes" if changed == "output" else f"another {changed}") in message
    if changed == "setting":
        assert "stride was 29, and is 3" in message


# ---- mistakes ----


def test_mistakes(classifier, make_model, tmp_path: Path, capsys: pytest.CaptureFixture):
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": "the cat", "label": 1}])
    out, folder = tmp_path / "out.jsonl", classifier[0]
    plain, _ = make_model(KeelBertForPreTraining)
    (tmp_path / "empty.jsonl").write_text("")
    cases: list[tuple[list[object], str]] = [
        ([folder, tmp_path / "on.jsonl", "--out", out], "did you mean 'in.jsonl'"),
        ([folder, file, "--out", tmp_path / "out.txt"], "unknown extension"),
        ([folder, file, "--out", file], "is there already"),
        ([tmp_path, file, "--out", out], "no model"),
        ([plain, file, "--out", out], "fine-tune it"),
        ([folder, file, "--out", out, "--text_column=txt"], "no column 'txt'"),
        ([folder, file, "--out", out, "--sequence_length=100"], "at most 64"),
        ([folder, file, "--out", out, "--keep_columns", "label"], "is a column of the predictions"),
        ([folder, file, "--out", out, "--keep_columns", "id"], "no column 'id'"),
        ([folder, file, "--out", out, "--rows=0"], "at least 1"),
        ([folder, file, "--out", out, "--colum=x"], "there is no setting"),
        ([folder, tmp_path / "empty.jsonl", "--out", out], "no "),
    ]
    for arguments, expected in cases:
        assert expected in error_of(capsys, *arguments), arguments
    predict(folder, file, out)
    assert "is there already" in error_of(capsys, folder, file, "--out", out)


def test_help(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in ("--out", "--skip_bad", "--text_column", "--sequence_length", "--precision"):
        assert option in text


def test_a_head_that_was_never_learnt(make_model, tmp_path: Path, capsys: pytest.CaptureFixture):
    """A body without its classifier would predict by chance."""
    folder, _ = make_model(KeelBertForPreTraining)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["KeelBertForSequenceClassification"]}))
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": "the cat"}])
    assert "by chance" in error_of(capsys, folder, file, "--out", tmp_path / "out.jsonl")


def test_windows_of_fine_tuning(classifier, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Where the run's config.yaml lies above the model, its windows hold."""
    shutil.copytree(classifier[0], tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text("objective: {sequence_length: 16, stride: 4, windows: 2}")
    file = write_jsonl(tmp_path / "in.jsonl", [{"text": " ".join(TEXTS)}])
    found = predict(tmp_path / "run" / "model", file, tmp_path / "out.jsonl")
    assert "windows of 16 tokens, 4 in common with the one before as it was fine-tuned" in capsys.readouterr().out
    assert found == predict(classifier[0], file, tmp_path / "same.jsonl", "--sequence_length=16", "--stride=4")
    assert found != predict(classifier[0], file, tmp_path / "other.jsonl")
