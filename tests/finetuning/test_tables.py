"""Labelled tables: every format gives the same examples, nothing leaks, each mistake gets one sentence with its row."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from finetuning.data import pydocs, tables
from finetuning.data.labels import MULTI, REGRESSION, SINGLE
from finetuning.data.pydocs import MISSING, PACKAGES
from finetuning.data.settings import (
    ChoiceTableSettings,
    SpanTableSettings,
    TextTableSettings,
    TokenTableSettings,
)
from finetuning.data.tables import Table, draw, load_tables
from pretraining.data import readers
from pretraining.data.stored import hash_text
from tests.pretraining.mistakes import one_sentence

SETTINGS = {
    "text": TextTableSettings,
    "tokens": TokenTableSettings,
    "spans": SpanTableSettings,
    "choice": ChoiceTableSettings,
}
TEXTS = [
    {"text": "A fine film.", "label": "good"},
    {"text": 'Two "stars", at most', "label": "bad"},
    {"text": "재미있네요 🙂", "label": "good"},
    {"text": "I slept, and I slept well.", "label": "bad"},
]
TOKENS = [
    {"tokens": ["Ada", "Lovelace", "wrote"], "tags": ["B-person", "I-person", "O"]},
    {"tokens": ["in", "London"], "tags": ["O", "B-place"]},
]
CONTEXT = "  Ada  was born in 1815,\r\nin Cafe\u0301 Street."  # offsets count every character of it
SPANS = [
    {
        "id": "a",
        "question": "When?",
        "context": CONTEXT,
        "answers": {"text": ["1815"], "answer_start": [CONTEXT.index("1815")]},
    },
    {
        "id": "b",
        "question": "Where?",
        "context": CONTEXT,
        "answers": {"text": ["Cafe\u0301"], "answer_start": [CONTEXT.index("Cafe")]},
    },
    {"id": "c", "question": "Why?", "context": "Nobody knows.", "answers": {"text": [], "answer_start": []}},
]
CHOICES = [
    {"premise": "It rained.", "choice1": "It got wet.", "choice2": "It got dry.", "label": 0},
    {"premise": "It burned.", "choice1": "It froze.", "choice2": "It got hot.", "label": 1},
]
ROWS = {"text": TEXTS, "tokens": TOKENS, "spans": SPANS, "choice": CHOICES}

pytestmark = pytest.mark.usefixtures("here")


def write(name: str, rows: list[dict[str, Any]]) -> str:
    """Rows as a file of the format that its name tells."""
    path = Path(name)
    bare = path.with_suffix("") if path.suffix == ".gz" else path
    if bare.suffix == ".jsonl":
        bare.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif bare.suffix == ".csv":
        with bare.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif bare.suffix == ".tsv":
        lines = [rows[0].keys(), *(map(str, row.values()) for row in rows)]
        bare.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), bare)
    if path != bare:
        path.write_bytes(gzip.compress(bare.read_bytes()))
        bare.unlink()
    return name


def load(kind: str, rows: list | str, held_out: list | None = None, **more: Any) -> dict[str, Table]:
    """The tables of training rows, and of held-out ones, by default the same in another file."""
    problem = more.pop("problem", None)
    known = more.pop("known", None)
    files = [write("train.jsonl", rows)] if isinstance(rows, list) else [rows]
    validation = [write("validation.jsonl", held_out if held_out is not None else ROWS[kind])]
    settings = SETTINGS[kind](**{"files": files, "validation_files": validation, **more})
    return load_tables(settings, kind, problem, known)


def content(table: Table, *columns: str) -> list[tuple]:
    return list(zip(*map(table.values, columns), strict=True))


# ---- formats and columns ----


@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "tsv.gz", "parquet"])
def test_every_format_gives_the_same_texts(end):
    rows = [{"n": number, **row} for number, row in enumerate(TEXTS)]
    train = load("text", write(f"a.{end}", rows))["train"]
    assert content(train, "text", "pair", "label") == [(row["text"], None, f'"{row["label"]}"') for row in TEXTS]
    first = 1 if end.startswith(("jsonl", "parquet")) else 2
    assert train.values("name") == [f"a.{end}:{first + number}" for number in range(4)]
    assert train.characters.tolist() == [len(row["text"]) for row in TEXTS]
    assert train.labels.names == ["bad", "good"]
    assert "text 'text', label 'label'" in train.notes[0]


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", ["tokens", "spans", "choice"])
def test_every_kind(kind, end):
    train = load(kind, write(f"a.{end}", ROWS[kind]))["train"]
    if kind == "tokens":
        assert content(train, "words", "tags") == [tuple(row.values()) for row in TOKENS]
        assert train.labels.names == ["B-person", "B-place", "I-person", "O"]
    elif kind == "spans":
        assert train.values("context") == [row["context"] for row in SPANS]
        answers = [tuple(row["answers"].values()) for row in SPANS]
        assert content(train, "answers", "starts") == answers
        assert train.values("id") == ["a", "b", "c"]
    else:
        expected = [(row["premise"], None, [row["choice1"], row["choice2"]], row["label"]) for row in CHOICES]
        assert content(train, "context", "question", "choices", "label") == expected


def test_a_file_without_a_header_has_its_columns_by_number():
    Path("a.tsv").write_text("7\tA film.\t1\n8\tA dog.\t0\n", encoding="utf-8")
    Path("v.csv").write_text("7,A film,1\n8,A dog,0\n", encoding="utf-8")
    loaded = load("text", "a.tsv", validation_files=["v.csv"], text_column=2, label_column=3)
    assert content(loaded["train"], "text", "label") == [("A film.", '"1"'), ("A dog.", '"0"')]
    assert loaded["validation"].values("text") == ["A film", "A dog"]


@pytest.mark.parametrize(
    ("names", "text", "pair"),
    [
        (["sentence", "idx"], "sentence", None),
        (["Text", "id"], "Text", None),
        (["premise", "hypothesis"], "premise", "hypothesis"),
        (["question1", "question2"], "question1", "question2"),
        (["question", "sentence"], "question", "sentence"),
        (["sentence1", "sentence2"], "sentence1", "sentence2"),
        (["question"], "question", None),
        (["title", "content"], "content", None),
    ],
)
def test_columns_are_found_where_their_names_are_usual(names, text, pair):
    rows = [{name: f"{name} {number}" for name in names} | {"label": number} for number in range(2)]
    train = load("text", rows, rows)["train"]
    assert train.values("text") == [row[text] for row in rows]
    assert train.values("pair") == [pair and row[pair] for row in rows]


def test_weak_names_count_only_where_there_is_no_label():
    rows = [{"text": f"t{number}", "label": number, "score": 0.5} for number in range(2)]
    assert load("text", rows, rows)["train"].values("label") == ["0", "1"]
    rows = [{"text": f"t{number}", "score": number + 0.5} for number in range(2)]
    assert load("text", rows, rows)["train"].labels.problem == REGRESSION


@pytest.mark.parametrize(
    ("kind", "row", "parts"),
    [
        ("text", {"body": "a", "label": 1}, ["no column", "text", "data.text_column", "body, label"]),
        ("text", {"text": "a", "n": 1}, ["no column", "label", "data.label_column", "text, n"]),
        ("text", {"text": "a", "review": "b", "label": 1}, ["several", "text, review", "data.text_column"]),
        ("text", {"text": "a", "label": 1, "labels": 1}, ["several", "label, labels", "data.label_column"]),
        ("tokens", {"tokens": ["a"], "ner_tags": ["O"], "pos_tags": ["X"]}, ["several", "data.tags_column"]),
        ("spans", {"question": "a", "answers": None}, ["no column", "context", "data.context_column"]),
        ("choice", {"premise": "a", "x": "b", "label": 1}, ["no column", "choices", "data.choice_columns"]),
        ("choice", {"choices": ["a"], "endings": ["b"], "label": 0}, ["several", "choices, endings"]),
    ],
)
def test_columns_that_are_not_found_are_asked_for(kind, row, parts):
    with one_sentence("train.jsonl", *parts):
        load(kind, [row])


def test_a_column_that_is_named_wrongly_is_told():
    for setting in ("text_column", "label_column"):
        with one_sentence("train.jsonl", "'lable'", f"data.{setting}", "did you mean 'label'"):
            load("text", TEXTS, **{setting: "lable"})
    with one_sentence("both", "label"):
        load("text", TEXTS, text_column="label", label_column="label")


def test_held_out_files_have_the_same_columns():
    with one_sentence("validation.jsonl", "'label'", "data.label_column"):
        load("text", TEXTS, [{"text": "a"}])


# ---- data sets ----


def test_class_numbers_with_names_become_names():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["up", "down"])})
    train = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features)
    train.to_parquet("a.parquet")
    DatasetDict({"train": train, "dev": train}).save_to_disk("saved")
    saved = load_tables(TextTableSettings(source="saved", validation_split="dev", test_split="dev"), "text")
    assert load("text", "a.parquet", [{"text": "d", "label": "up"}])["train"].labels.names == ["up", "down"]
    assert saved["train"].labels.names == ["up", "down"]
    assert saved["train"].values("label") == ['"down"', '"up"']
    assert any("1 examples have no label" in note for note in saved["train"].notes)
    assert saved["test"].values("label") == ['"down"', '"up"', None]


def test_tags_with_names_become_names():
    names = ["O", "B-x", "I-x"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    rows = {"tokens": [["a", "b"], ["c"]], "ner_tags": [[1, 0], [0]]}
    Dataset.from_dict(rows, features).to_parquet("a.parquet")
    loaded = load("tokens", "a.parquet", validation_files=[], validation_fraction=0.5)
    assert loaded["train"].labels.names == names  # I-x too, which occurs nowhere
    both = loaded["train"].values("tags") + loaded["validation"].values("tags")
    assert sorted(both) == [["B-x", "O"], ["O"]]
    rows = [{"tokens": ["a", "b"], "tags": [10, 2]}]
    assert load("tokens", rows, rows)["train"].labels.names == ["2", "10"]


def test_a_class_that_has_a_name_but_no_example_is_told():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c", "d"])})
    Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features).to_parquet("a.parquet")
    with one_sentence("'c'", "1 others", "no training example"):
        load("text", "a.parquet", [{"text": "x", "label": "a"}])


# ---- splits ----


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": number % 3} for number in range(count)]


def test_a_share_is_held_out_and_equal_texts_stay_together():
    rows = [*numbered(400), *numbered(400)]
    loaded = load("text", rows, validation_files=[], validation_fraction=0.2)
    train, validation = loaded["train"], loaded["validation"]
    assert len(train) + len(validation) == 800
    assert abs(len(validation) - 160) < 60
    assert not set(train.values("text")) & set(validation.values("text"))
    contexts = [{**SPANS[0], "context": f"{CONTEXT} {n // 4}", "question": f"q {n}"} for n in range(80)]
    loaded = load("spans", contexts, validation_files=[], validation_fraction=0.3)
    assert not set(loaded["train"].values("context")) & set(loaded["validation"].values("context"))


def test_each_side_gets_an_example_and_no_class_is_held_out_whole():
    rows = [{**SPANS[0], "context": f"{CONTEXT} {number}"} for number in range(2)]
    assert [len(table) for table in load("spans", rows, validation_files=[]).values()] == [1, 1]
    rows = [{"text": f"text {number}", "label": f"class {number // 2}"} for number in range(60)]
    loaded = load("text", rows, validation_files=[], validation_fraction=0.5)
    assert len(loaded["train"].labels.names) == 30
    assert len(loaded["validation"])
    with one_sentence("Nothing is held out", "validation_fraction"):
        load("text", numbered(20), validation_files=[], validation_fraction=0)


def test_a_test_split_needs_no_labels():
    for rows in ([{"text": "a"}], [{"text": "a", "label": None}], [{"text": "a", "label": -1}]):
        test = load("text", TEXTS, test_files=[write("test.jsonl", rows)])["test"]
        assert content(test, "text", "label") == [("a", None)]
    for kind, rows in {
        "tokens": [{"tokens": ["a"]}],
        "spans": [{"question": "a", "context": "b"}],
        "choice": [{"choice1": "a", "choice2": "b", "premise": "c"}],
    }.items():
        assert load(kind, ROWS[kind], test_files=[write("test.jsonl", rows)])["test"].targets == [None]
    unlabelled = [{"tokens": ["a", "b"], "tags": [-1, -1]}]
    assert load("tokens", TOKENS, test_files=[write("test.jsonl", unlabelled)])["test"].targets == [None]


@pytest.mark.parametrize("nothing", [None, "", " ", -1, "-1", float("nan")])
def test_examples_without_a_class_are_left_out_and_counted(nothing):
    train = load("text", [*TEXTS, {"text": "a", "label": nothing}])["train"]
    assert len(train) == 4
    assert any("1 examples have no label" in note for note in train.notes)
    with one_sentence("train.jsonl:1", "label", "has a label"):
        load("text", [{"text": "a", "label": nothing}], problem=SINGLE)


def test_a_number_of_minus_one_is_a_quantity():
    rows = [{"text": "a", "label": -1.0}, {"text": "b", "label": 0.5}]
    assert load("text", rows, rows)["train"].values("label") == ["-1.0", "0.5"]


def test_several_classes_at_once():
    rows = [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}, {"text": "c", "labels": ["z"]}]
    labels = load("text", rows, rows)["train"].labels
    assert (labels.problem, labels.names) == (MULTI, ["x", "y", "z"])


def test_a_checkpoints_order_is_kept():
    assert load("text", TEXTS, known=["good", "bad"])["train"].labels.names == ["good", "bad"]


# ---- fewer examples ----


def test_a_smaller_choice_is_part_of_a_larger_one_and_even_over_the_classes():
    rows = [{"text": f"t {number}", "label": "rare" if number % 10 == 0 else "common"} for number in range(200)]
    smaller: set[str] = set()
    for number in (2, 10, 40, 100):
        train = load("text", rows, rows[:20], examples=number)["train"]
        counts = Counter(train.values("label"))
        assert counts['"rare"'] == min(number // 2, 20)
        texts = train.values("text")
        assert len(texts) == number
        assert smaller < set(texts)
        assert texts == [row["text"] for row in rows if row["text"] in set(texts)]  # their order is the file's
        smaller = set(texts)
    with one_sentence("data.examples is 1", "2 classes"):
        load("text", rows, rows[:20], examples=1)
    with one_sentence("data.examples is 201", "200"):
        load("text", rows, rows[:20], examples=201)


def test_a_choice_depends_on_the_content_alone():
    hashes = np.array([hash_text(str(number)) for number in range(100)], dtype=np.uint64)
    shuffled = np.random.default_rng(0).permutation(100)
    assert set(hashes[draw(hashes, 30)]) == set(hashes[shuffled][draw(hashes[shuffled], 30)])


# ---- answers and choices ----


def test_answers_in_flat_columns():
    rows = [
        {"question": "q", "context": "It was 1815.", "answer": "1815", "answer_start": 7},
        {"question": "r", "context": "It was 1816.", "answer": "", "answer_start": ""},
    ]
    for end in ("csv", "tsv"):
        train = load("spans", write(f"a.{end}", rows), rows)["train"]
        assert content(train, "answers", "starts") == [(["1815"], [7]), ([], [])]
        assert train.values("id") == train.values("name")


@pytest.mark.parametrize(
    ("row", "choices", "label"),
    [
        ({"sentence1": "a", "sentence2": "b", "label": 1}, ["a", "b"], 1),
        ({"sent1": "c", "ending0": "a", "ending1": "b", "ending2": "d", "label": 2}, ["a", "b", "d"], 2),
        ({"ctx": "c", "endings": ["a", "b"], "label": "1"}, ["a", "b"], 1),
        ({"question": "c", "choices": ["a", "b"], "answer": 0}, ["a", "b"], 0),
        ({"article": "c", "question": "q", "options": ["a", "b"], "answer": "B"}, ["a", "b"], 1),
    ],
)
def test_choices_are_found_where_their_names_are_usual(row, choices, label):
    rows = [row, {**row, next(iter(row)): "other"}]
    train = load("choice", rows, rows)["train"]
    assert (train.values("choices")[1 if "sentence1" not in row else 0], train.targets[0]) == (choices, label)


# ---- mistakes ----

LONG = {"text": ["1816"], "answer_start": [0]}


@pytest.mark.parametrize(
    ("kind", "row", "parts"),
    [
        ("text", {"text": " ", "label": "good"}, ["text", "no text"]),
        ("text", {"text": 5, "label": "good"}, ["5 instead of text", "data.text_column"]),
        ("text", {"text": "a", "label": {"a": 1}}, ["label", "no label"]),
        ("text", {"text": "a", "label": [["a"]]}, ["label", "list of classes"]),
        ("text", {"text": "a", "label": ["good", None]}, ["label", "list of classes"]),
        ("text", {"text": "a", "label": float("inf")}, ["label", "no class"]),
        ("tokens", {"tokens": ["a", "b"], "tags": ["O"]}, ["tags", "1 tags but 2 words"]),
        ("tokens", {"tokens": ["a", "b"], "tags": ["O", None]}, ["tags, word 2", "no tag"]),
        ("tokens", {"tokens": "a b", "tags": ["O", "O"]}, ["tokens", "list of tokens"]),
        ("tokens", {"tokens": ["a", 1], "tags": ["O", "O"]}, ["tokens, word 2", "instead of text"]),
        ("tokens", {"tokens": ["a"], "tags": [0.5]}, ["tags, word 1", "no tag"]),
        ("tokens", {"tokens": [" "], "tags": ["O"]}, ["tokens", "no text"]),
        ("spans", SPANS[0] | {"answers": LONG}, ["answers", "'1816'", "character 0", "nor anywhere else"]),
        (
            "spans",
            SPANS[0] | {"answers": {"text": ["1815"], "answer_start": [3]}},
            ["answers", f"character {CONTEXT.index('1815')}"],
        ),
        ("spans", SPANS[0] | {"answers": {"text": ["1815"], "answer_start": []}}, ["1 texts but 0 starts"]),
        ("spans", SPANS[0] | {"answers": {"text": ["1815"]}}, ["answers", "write"]),
        ("spans", SPANS[0] | {"answers": "1815"}, ["answers", "data.start_column"]),
        ("spans", SPANS[0] | {"answers": {"text": ["1815"], "answer_start": ["x"]}}, ["answers", "whole number"]),
        ("spans", SPANS[0] | {"answers": {"text": ["1815"], "answer_start": ["--5"]}}, ["answers", "whole number"]),
        ("spans", SPANS[0] | {"id": "\ud800"}, ["id", "half a character"]),
        ("spans", SPANS[0] | {"answers": {"text": [" "], "answer_start": [0]}}, ["answers", "empty answer"]),
        ("spans", SPANS[0] | {"context": " "}, ["context", "no context"]),
        ("spans", SPANS[0] | {"question": None}, ["question", "no question"]),
        ("choice", CHOICES[0] | {"choice2": " "}, ["choice1, choice2", "choice 1 of 2", "empty"]),
        ("choice", CHOICES[0] | {"choice2": None}, ["choice 1 of 2", "empty"]),
        ("choice", CHOICES[0] | {"label": 2}, ["label", "0 to 1"]),
        ("choice", CHOICES[0] | {"label": "one"}, ["label", "whole number"]),
        ("choice", CHOICES[0] | {"label": 0.5}, ["label", "whole number"]),
    ],
)
def test_a_malformed_row_is_told_with_its_place(kind, row, parts):
    with one_sentence("train.jsonl:2", *parts):
        load(kind, [ROWS[kind][0], row])


@pytest.mark.parametrize("value", ["high", -100, float("nan"), float("inf"), True])
def test_what_a_regression_cannot_learn_is_told(value):
    rows = [{"text": "a", "score": 0.5}, {"text": "b", "score": 2}, {"text": "c", "score": value}]
    with one_sentence("train.jsonl:3", "score"):
        load("text", rows, rows[:2], problem=REGRESSION)
    with one_sentence("validation.jsonl:3", "score"):
        load("text", rows[:2], rows, problem=REGRESSION)
    with one_sentence("train.jsonl:3", "score"):  # the problem is guessed
        load("text", rows, rows[:2])


@pytest.mark.parametrize("value", [-100.0000001, "-100.000001", 1e39, 10**400])
def test_a_number_that_32_bits_change_is_told(value):
    """As -100, which losses pass over, or as infinity."""
    rows = [{"text": "a", "score": 0.5}, {"text": "b", "score": 2}, {"text": "c", "score": value}]
    with one_sentence("train.jsonl:3", "score"):
        load("text", rows, rows[:2], problem=REGRESSION)


def labels_of(*values: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": value} for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ((1, 0, "1.0", "0.0"), ["'0' and '0.0'", "two spellings"]),
        ((True, False, "True", "False"), ["'False' and 'false'", "two spellings"]),
        ((True, False, 1, 0), ["two spellings"]),
        (("+1", "1", "0", "2"), ["'+1' and '1'"]),
        (([0, 1], [1, 0], [0, 1], [1, 0]), ["lists all classes (0, 1)", "no zero or one"]),
        ((["x", float("nan")], ["y"], ["x"], []), ["train.jsonl:1, label lists nan"]),
        ((["x"], [-1], ["y"], []), ["train.jsonl:2, label lists -1", "empty list"]),
        (("['x']", "['x', 'y']", "['y']", "[]"), ["no list as", "objective.problem"]),
        ((*range(60), "N/A"), ["60 different numbers", "objective.problem"]),
        (("0,5", "1,25", "0,5", "2,0"), ["train.jsonl:1, label", "decimal points"]),
        ((1, 0.5, True, 2), ["train.jsonl:3, label holds True"]),
    ],
)
def test_labels_of_several_makers_are_told(values, parts):
    with one_sentence(*parts):
        load("text", labels_of(*values), labels_of(*values))


def test_codes_are_names():
    assert load("text", labels_of("01", "1", "007"), labels_of("1"))["train"].labels.names == ["01", "1", "007"]


def test_lists_in_cells_are_several_classes():
    rows = labels_of('["x", "y"]', '["x"]', "[]", '["y"]')
    assert load("text", rows, rows)["train"].labels.problem == MULTI


@pytest.mark.parametrize("none", [-1, "-1", -1.0, "-1.0", -100, "-100", None])
def test_what_is_no_class_anywhere(none):
    rows = labels_of("x", "y", none)
    assert load("text", rows, rows)["train"].labels.names == ["x", "y"]
    with one_sentence("train.jsonl:1, tags, word 2 has no tag"):
        load("tokens", [{"tokens": ["a", "b"], "tags": ["x", none]}])


def test_numbers_in_one_file_and_names_in_another_are_told():
    named = Dataset.from_list(labels_of(0, 1)).cast_column("label", ClassLabel(names=["n", "p"]))
    named.to_parquet("a.parquet")
    numbered = write("b.jsonl", labels_of(0, 1))
    with one_sentence("numbers as 0", "names as 'n'"):
        load_tables(
            TextTableSettings(files=["a.parquet", numbered], validation_files=[write("c.jsonl", TEXTS)]), "text"
        )


@pytest.mark.parametrize(
    ("values", "number", "parts"),
    [((*[["x"]] * 30, ["y"]), 1, ["data.examples is 1", "class"]), ((*[1.5] * 30, 2.5), 1, ["have one label"])],
)
def test_a_choice_without_a_class_is_told(values, number, parts):
    problem = None if isinstance(values[0], list) else REGRESSION
    with one_sentence(*parts):
        load("text", labels_of(*values), labels_of(*values), problem=problem, examples=number)


def test_classes_of_one_example_each_cannot_be_held_out():
    with one_sentence("only ones of their class", "data.validation_files"):
        load("text", labels_of(*"abcdefghijklmnopqrstuvwxyz"), validation_files=[])


def test_a_header_is_no_example():
    Path("a.tsv").write_text("text\tlabel\na\tx\nb\ty\n", encoding="utf-8")
    with one_sentence("a.tsv", "names of columns"):
        load("text", "a.tsv", text_column=1, label_column=2)


def test_damaged_parquet_files_are_told():
    twice = pa.table([["a", "b"], [0, 1], [1, 0]], names=["text", "label", "label"])
    pq.write_table(twice, "twice.parquet")
    with one_sentence("twice.parquet", "2 columns 'label'"):
        load("text", "twice.parquet", validation_fraction=0.5)
    for metadata in (b"{bad", b"\xff"):
        table = pa.table({"text": ["a", "b"], "label": [0, 1]}).replace_schema_metadata({b"huggingface": metadata})
        pq.write_table(table, "bad.parquet")
        with one_sentence("bad.parquet", "damaged metadata"):
            load("text", "bad.parquet", validation_fraction=0.5)


def test_a_label_that_training_does_not_have_is_told():
    with one_sentence("validation.jsonl:1, label", "'goood'", "did you mean 'good'", "bad, good"):
        load("text", TEXTS, [{"text": "a", "label": "goood"}])
    with one_sentence("validation.jsonl:1, tags, word 2", "'I-pers'"):
        load("tokens", TOKENS, [{"tokens": ["a", "b"], "tags": ["O", "I-pers"]}])
    with one_sentence("test.jsonl:1, label", "'x'"):
        load("text", TEXTS, test_files=[write("test.jsonl", [{"text": "a", "label": "x"}])])


def test_empty_files_are_told():
    for end in ("jsonl", "csv", "tsv"):
        Path(f"a.{end}").write_text("", encoding="utf-8")
        with one_sentence(f"a.{end}", "no rows"):
            load("text", f"a.{end}")
    Path("a.csv").write_text("text,label\n", encoding="utf-8")
    with one_sentence("a.csv", "no rows"):
        load("text", "a.csv")


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array(["a", "b"], pa.string_view()),
        pa.array([b"a", b"b"]),
        pa.array([["a"], ["b"]], pa.large_list(pa.string())),
    ],
)
def test_every_way_to_store_names_is_read(labels):
    pq.write_table(pa.table({"text": ["x", "y"], "label": labels}), "a.parquet")
    held_out = [{"text": "z", "label": ["a"] if pa.types.is_large_list(labels.type) else "a"}]
    assert load("text", "a.parquet", held_out)["train"].labels.names == ["a", "b"]


@pytest.mark.parametrize(
    "labels", [pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), pa.array([0], pa.timestamp("s"))]
)
def test_columns_that_cannot_be_labels_are_told(labels):
    pq.write_table(pa.table({"text": ["x"], "label": labels}), "a.parquet")
    with one_sentence("a.parquet:1, label", "no label"):
        load("text", "a.parquet")


def test_a_class_number_beyond_the_names_is_told():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    table = pa.table({"text": ["x", "y"], "label": pa.array([0, 2])}, Features(features).arrow_schema)
    pq.write_table(table, "a.parquet")
    with one_sentence("a.parquet:2", "holds 2", "0 to 1"):
        load("text", "a.parquet")


@pytest.mark.parametrize(
    ("kind", "settings", "parts"),
    [
        ("text", {}, ["data.files is empty"]),
        ("text", {"source": "x/y", "files": ["a"]}, ["data.files", "set data.source to files"]),
        ("text", {"source": "pydocs", "text_column": "a"}, ["data.text_column", "pydocs"]),
        ("text", {"files": ["a"], "test_split": "test"}, ["data.test_split"]),
        ("text", {"source": "x/y", "split": "a", "validation_split": "a"}, ["data.split"]),
        ("text", {"files": ["a"], "examples": -1}, ["data.examples"]),
        ("text", {"files": ["a"], "pair_column": "a"}, ["data.pair_column", "data.text_column"]),
    ],
)
def test_settings_that_do_not_fit(kind, settings, parts):
    with one_sentence(*parts):
        SETTINGS[kind](**settings)


def test_pydocs_have_texts_alone():
    with one_sentence("pydocs"):
        load_tables(TokenTableSettings(source="pydocs"), "tokens")


def test_a_file_in_two_splits_is_told():
    write("a.jsonl", TEXTS)
    for setting in ("validation_files", "test_files"):
        with one_sentence("a.jsonl", f"data.{setting}"):
            load("text", "a.jsonl", **{setting: ["a.jsonl"]})


# ---- the cache ----


def test_files_are_read_again_only_if_they_changed(monkeypatch):
    loaded = load("text", write("a.jsonl", TEXTS))["train"]
    monkeypatch.setattr(tables, "canonical", None)
    settings = TextTableSettings(files=["a.jsonl"], validation_files=["validation.jsonl"])
    assert load_tables(settings, "text")["train"].fingerprint == loaded.fingerprint
    monkeypatch.undo()


def test_the_fingerprint_is_of_texts_and_labels():
    first = load("text", write("a.jsonl", TEXTS))["train"].fingerprint
    assert load("text", write("b.jsonl", TEXTS))["train"].fingerprint == first
    other = [TEXTS[0] | {"label": "bad"}, *TEXTS[1:]]
    assert load("text", write("c.jsonl", other))["train"].fingerprint != first


# ---- docstrings ----


def test_pydocs(monkeypatch, tmp_path):
    for package, count in {"ast": 3, "json": 5, "tkinter": 9, "_private": 9, "mine": 9, "re": 1}.items():
        folder = tmp_path / "lib" / package
        folder.mkdir(parents=True)
        lines = [f'def f{n}():\n    """Function {n} of the package {package}."""\n' for n in range(count)]
        (folder / "__init__.py").write_text('"""Short."""\n' + "".join(lines), encoding="utf-8")
    monkeypatch.setattr(pydocs, "PACKAGES", 2)
    rows = pydocs.read_pydocs(tmp_path / "lib")
    assert Counter(package for *_, package in rows) == {"json": 5, "ast": 3}
    assert rows[0] == ("ast:0", "Function 0 of the package ast.", "ast")


def test_the_librarys_own_docstrings():
    loaded = load_tables(TextTableSettings(source="pydocs"), "text")
    names = loaded["train"].labels.names
    assert len(names) == PACKAGES
    assert not MISSING & set(names)
    assert len(loaded["train"]) > 5 * len(loaded["validation"]) > 500
    assert not set(loaded["train"].values("text")) & set(loaded["validation"].values("text"))


def test_column_names_are_those_of_every_format():
    rows = [{"text": "a; b", "label": "x"}, {"text": "c", "label": "y"}]
    for end in ("jsonl", "csv", "tsv", "parquet"):
        assert readers.column_names(write(f"n.{end}", rows)) == ["text", "label"]
    Path("s.csv").write_text("sep=;\ntext;label\na,b;x\n", encoding="utf-8")
    assert readers.column_names("s.csv") == ["text", "label"]
