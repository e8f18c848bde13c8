"""Sentence pairs: every format gives the same pairs, nothing leaks, each mistake gets one sentence."""

import csv
import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mistakes import one_sentence

from pretraining.data import readers, stored
from pretraining.data.pairs import sources
from pretraining.data.pairs.corpus import Pairs, load_pairs
from pretraining.data.pairs.settings import PairSettings

PAIRS = [
    ("A dog.", "Ein Hund."),
    ('Two "men", talking', 'Zwei "Männer", sprechend'),
    ("A ship on the sea.", "바다 위의 배."),
    ("Ünïcödé 🙂", "中文"),
]
LANGUAGES = {"source_language": "en", "target_language": "de"}
COLUMNS = {"columns": ["en", "de"]}
ALIGNED = {"source_files": ["a.en"], "target_files": ["a.de"]}


pytestmark = pytest.mark.usefixtures("here")


def write(name: str, pairs: list, plain: bool = False, **more: list) -> str:
    """Pairs as a file of the format that its name tells: dictionaries, or plain columns; and further columns."""
    path = Path(name)
    bare = path.with_suffix("") if path.suffix == ".gz" else path
    rows: list[dict] = []
    for number, sides in enumerate(pairs):
        pair = dict(zip(("en", "de"), sides, strict=True))
        extra = {column: values[number] for column, values in more.items()}
        rows.append({"id": str(number), **(pair if plain else {"translation": pair}), **extra})
    if bare.suffix == ".jsonl":
        bare.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif bare.suffix == ".csv":
        with bare.open("w", encoding="utf-8", newline="") as file:
            is_builder = csv.DictWriter(file, list(rows[0]))
            is_builder.writeheader()
            is_builder.writerows(rows)
    elif bare.suffix == ".tsv":
        lines = [rows[0].keys(), *(row.values() for row in rows)] if plain else pairs
        bare.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    elif bare.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), bare)
    if path != bare:
        path.write_bytes(gzip.compress(bare.read_bytes()))
        bare.unlink()
    return name


def write_lines(name: str, lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def write_aligned(pairs: list[tuple[str, str]], name: str = "a", gz: str = "") -> None:
    for side, language in enumerate(("en", "de")):
        write_lines(f"{name}.{language}{gz}", [pair[side] for pair in pairs])


def load(*files: str, **settings) -> tuple[dict[str, Pairs], dict[str, dict[str, int]]]:
    return load_pairs(PairSettings(**{"source": "files", "files": list(files), **settings}))


def sides(pairs: Pairs) -> list[tuple[str, str]]:
    return [pair for shard in pairs.shards() for pair in pairs.sides(shard)]


def everything(*files: str, **settings) -> Pairs:
    return load(*files, validation_fraction=0, **settings)[0]["train"]


# ---- what is read ----


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_dictionary_of_languages(name: str):
    write(name, PAIRS)
    assert sides(everything(name, **LANGUAGES)) == PAIRS
    other_way = everything(name, source_language="de", target_language="en")
    assert sides(other_way) == [(german, english) for english, german in PAIRS]


@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "tsv.gz", "parquet"])
def test_two_columns(end: str):
    assert sides(everything(write(f"a.{end}", PAIRS, plain=True), **COLUMNS)) == PAIRS


def test_a_tsv_without_a_header():
    assert sides(everything(write("a.tsv", PAIRS))) == PAIRS
    Path("b.tsv").write_text("one\teins\tCC-BY\n\ntwo\tzwei\tCC-BY\n")
    assert sides(everything("b.tsv", columns=[1, "2"])) == [("one", "eins"), ("two", "zwei")]
    assert sides(everything(write("c.tsv", [("1", "2"), ("2", "3")]))) == [("1", "2"), ("2", "3")]


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_line_aligned_files(gz: str):
    write_aligned(PAIRS[:3], "a", gz)
    write_aligned(PAIRS[3:], "b", gz)
    files = {"source_files": [f"*.en{gz}"], "target_files": [f"a.de{gz}", f"b.de{gz}"]}
    pairs = everything(**files)
    assert sides(pairs) == PAIRS
    assert pairs.dataset["name"][:] == [f"a.en{gz}:1", f"a.en{gz}:2", f"a.en{gz}:3", f"b.en{gz}:1"]


def test_every_format_has_one_fingerprint():
    write_aligned(PAIRS)
    found = {
        everything(write("a.jsonl", PAIRS), **LANGUAGES).fingerprint,
        everything(write("a.csv", PAIRS, plain=True), **COLUMNS).fingerprint,
        everything(**ALIGNED).fingerprint,
    }
    assert len(found) == 1
    for other in (PAIRS[::-1], PAIRS[1:], [(german, english) for english, german in PAIRS]):
        found.add(everything(write("a.tsv", other)).fingerprint)
    found.add(everything(write("a.tsv", [("ab", "c")])).fingerprint)
    found.add(everything(write("a.tsv", [("a", "bc")])).fingerprint)
    assert len(found) == 6


def test_pairs_tell_their_texts_and_sizes(monkeypatch: pytest.MonkeyPatch):
    pairs = everything(write("a.jsonl", PAIRS), **LANGUAGES)
    assert list(pairs.texts()) == [text for pair in PAIRS for text in pair]
    assert pairs.characters.tolist() == [len(source) + len(target) for source, target in PAIRS]
    monkeypatch.setattr(stored, "CHARACTERS", 150)
    assert len(pairs.shards()) > 1 and sides(pairs) == PAIRS
    some = pairs.select(np.array([False, True, False, True]))
    assert len(some) == 2 and sides(some) == PAIRS[1::2] and list(some.texts()) == [*PAIRS[1], *PAIRS[3]]


def test_a_hub_data_set_equals_its_files(here: Path):
    """Hub names cannot be reached from here; `load_dataset` takes a folder of the same layout."""
    Path("hub").mkdir()
    write("hub/train.parquet", PAIRS)
    write("hub/validation.parquet", PAIRS[:1])
    hub, left_out = load_pairs(PairSettings(source=str(here / "hub"), validation_split="validation", **LANGUAGES))
    assert sides(hub["train"]) == PAIRS[1:] and sides(hub["validation"]) == PAIRS[:1]
    assert left_out["train"] == {"duplicates": 0, "also held out": 1}


def test_the_hubs_translation_feature(monkeypatch: pytest.MonkeyPatch):
    """WMT14 has a column of type Translation, Multi30k has two of text."""
    asked = []

    def wmt(*arguments, **more):
        asked.append((arguments, more))
        rows = [{"translation": dict(zip(("en", "de"), pair, strict=True))} for pair in PAIRS]
        features = datasets.Features(translation=datasets.Translation(["de", "en"]))
        return datasets.Dataset.from_list(rows, features=features)

    monkeypatch.setattr(readers, "load_dataset", wmt)
    pairs, _ = load_pairs(PairSettings(source="wmt/wmt14", subset="de-en", validation_fraction=0, **LANGUAGES))
    assert sides(pairs["train"]) == PAIRS and asked == [(("wmt/wmt14", "de-en"), {"split": "train"})]
    assert pairs["train"].dataset["name"][0] == "wmt/wmt14:train:0"

    def multi30k(*_, **__):
        return datasets.Dataset.from_list([dict(zip(("en", "de"), pair, strict=True)) for pair in PAIRS])

    monkeypatch.setattr(readers, "load_dataset", multi30k)
    pairs, _ = load_pairs(PairSettings(source="bentrevett/multi30k", validation_fraction=0, **COLUMNS))
    assert sides(pairs["train"]) == PAIRS


def test_a_changed_file_is_read_again():
    assert sides(everything(write("a.tsv", PAIRS))) == PAIRS
    assert sides(everything(write("a.tsv", PAIRS[:2]))) == PAIRS[:2]


def test_the_settings_decide_what_is_read_again(monkeypatch: pytest.MonkeyPatch):
    write("a.jsonl", PAIRS)
    first = everything("a.jsonl", **LANGUAGES)
    monkeypatch.setattr(sources, "as_pairs", None)
    assert everything("a.jsonl", **LANGUAGES).fingerprint == first.fingerprint
    with pytest.raises(TypeError):
        everything("a.jsonl", source_language="de", target_language="en")


# ---- word alignments ----


def test_alignments_come_along():
    points = ["0-0 1-1", "", "0-2 1-1 2-0", "0-0"]
    write_aligned(PAIRS)
    write_lines("a.align", points)
    for pairs in (
        everything(**ALIGNED, alignment_files=["a.align"]),
        everything(write("a.jsonl", PAIRS, align=points), **LANGUAGES, alignment_column="align"),
        everything(write("a.tsv", PAIRS, plain=True, align=points), **COLUMNS, alignment_column="align"),
    ):
        assert pairs.dataset["alignment"][:] == points and sides(pairs) == PAIRS
        without = everything(**ALIGNED)
        assert np.array_equal(pairs.hash, without.hash) and pairs.fingerprint != without.fingerprint
        assert without.dataset["alignment"][:] == [""] * len(PAIRS)


# ---- what is held out, and what is left out ----


def test_equal_sources_never_straddle_the_split():
    pairs = [(f"Sentence {n % 300}.", f"Satz {n}.") for n in range(1000)]
    splits, left_out = load(write("a.tsv", pairs), validation_fraction=0.1)
    train, held = sides(splits["train"]), sides(splits["validation"])
    assert sorted(train + held) == sorted(pairs)
    assert not {source for source, _ in train} & {source for source, _ in held}
    assert 0.04 < len(held) / 1000 < 0.16
    assert left_out["train"] == left_out["validation"] == {"duplicates": 0, "also held out": 0}


def test_repeated_pairs_are_left_out_and_counted():
    pairs = [*PAIRS, PAIRS[1], (PAIRS[1][0], "Anders."), PAIRS[1], PAIRS[0]]
    splits, left_out = load(write("a.tsv", pairs), validation_fraction=0)
    assert sides(splits["train"]) == [*PAIRS, pairs[5]]
    assert left_out["train"] == {"duplicates": 3, "also held out": 0}
    splits, left_out = load("a.tsv", validation_fraction=0, duplicates=True)
    assert sides(splits["train"]) == pairs and left_out["train"] == {"duplicates": 0, "also held out": 0}
    splits, left_out = load("a.tsv", validation_fraction=0.5)
    assert sorted(sides(splits["train"]) + sides(splits["validation"])) == sorted([*PAIRS, pairs[5]])
    assert sum(counts["duplicates"] for counts in left_out.values()) == 3


@pytest.mark.parametrize("duplicates", [False, True])
def test_held_out_pairs_never_leak(duplicates: bool):
    """A held-out split that is named stays whole, or scores on it would not compare."""
    write("a.tsv", [*PAIRS, PAIRS[0]])
    write("b.tsv", [PAIRS[0], ("New.", "Neu."), PAIRS[0]])
    splits, left_out = load("a.tsv", validation_files=["b.tsv"], duplicates=duplicates)
    assert sides(splits["train"]) == PAIRS[1:]
    assert sides(splits["validation"]) == [PAIRS[0], ("New.", "Neu."), PAIRS[0]]
    assert left_out == {
        "train": {"duplicates": 0, "also held out": 2},
        "validation": {"duplicates": 0, "also held out": 0},
    }


def test_held_out_files_may_be_line_aligned():
    write_aligned(PAIRS[:1])
    write("a.jsonl", PAIRS)
    held = {"validation_source_files": ["a.en"], "validation_target_files": ["a.de"]}
    assert sides(load("a.jsonl", **LANGUAGES, **held)[0]["validation"]) == PAIRS[:1]


# ---- mistakes ----


def mistake(*parts: str, **settings) -> None:
    with one_sentence(*parts):
        load_pairs(PairSettings(**{"source": "files", **settings}))


def test_files_of_unequal_length():
    write_aligned(PAIRS)
    write_lines("a.de", [target for _, target in PAIRS[:2]])
    mistake("a.en has 4 lines but a.de has 2: mend", **ALIGNED)
    write_lines("a.de", [target for _, target in PAIRS])
    write_lines("a.align", ["0-0"] * 5)
    mistake("a.en has 4 lines but a.align has 5: mend", **ALIGNED, alignment_files=["a.align"])
    write_aligned(PAIRS, "b")
    counts = "data.source_files names 2 files but data.target_files names 1"
    mistake(counts, source_files=["*.en"], target_files=["a.de"])


def test_a_missing_language():
    write("a.jsonl", PAIRS)
    mistake("a.jsonl:1 has the languages en, de: set data.source_language", files=["a.jsonl"])
    mistake(
        "a.jsonl:1 has no language 'dee' (did you mean 'de'?): set data.target_language to one of en, de",
        files=["a.jsonl"], source_language="en", target_language="dee",
    )  # fmt: skip
    Path("b.jsonl").write_text(json.dumps({"translation": {"en": "x", "de": "y"}}) + '\n{"translation": {"de": "y"}}')
    mistake("b.jsonl:2 has no language 'en'", "one of de", files=["b.jsonl"], **LANGUAGES)


def test_columns_that_are_not_there(here: Path):
    write("a.jsonl", PAIRS, plain=True)
    mistake(
        "a.jsonl, line 1 has no column 'translation': set data.columns to its two sides, or data.column to one",
        "of id, en, de",
        files=["a.jsonl"], **LANGUAGES,
    )  # fmt: skip
    mistake("no column 'd' (did you mean 'id'?): set data.columns to", files=["a.jsonl"], columns=["en", "d"])
    mistake("set data.alignment_column to one of", files=["a.jsonl"], **COLUMNS, alignment_column="align")
    mistake(
        "a.tsv, separated by tabs, has no column 'fr': its first row is 'id', 'en', 'de'",
        files=[write("a.tsv", PAIRS, plain=True)],
        columns=["en", "fr"],
    )
    mistake("a.csv has columns but no dictionaries: set data.columns", files=[write("a.csv", PAIRS, plain=True)])
    mistake("a.tsv has columns but no dictionaries", files=["a.tsv"], alignment_column="align")
    Path("hub").mkdir()
    write("hub/train.parquet", PAIRS, plain=True)
    mistake("split 'train' has no column 'translation'", source=str(here / "hub"), **LANGUAGES)


def test_values_that_are_no_pairs():
    Path("a.jsonl").write_text('{"translation": "A dog."}')
    mistake("a.jsonl:1 holds 'A dog.' instead of a dictionary", files=["a.jsonl"], **LANGUAGES)
    Path("b.jsonl").write_text('{"en": 3, "de": "drei"}')
    mistake("b.jsonl:1, en holds 3 instead of text: set data.columns", files=["b.jsonl"], **COLUMNS)
    Path("a.tsv").write_text("one\teins\ntwo zwei\n")
    mistake("a.tsv, row 2 has 1 cells instead of 2, separated by tabs", files=["a.tsv"])
    Path("a.tsv").write_text("one\teins\ntwo\tzw\tei\n")
    mistake("a.tsv, row 2 has 3 cells instead of 2", files=["a.tsv"])
    Path("b.tsv").write_text("one\teins\tby Ann\ntwo\tzwei\tby Bob\n")
    mistake("b.tsv has 3 cells in its first row", "data.columns", "[2, 4]", files=["b.tsv"])
    mistake("b.tsv, separated by tabs, has no column '4'", "one of 1, 2, 3", files=["b.tsv"], columns=[2, 4])
    Path("empty.tsv").touch()
    mistake("empty.tsv holds no pairs", files=["empty.tsv"])


def test_one_side_twice():
    write("a.jsonl", PAIRS)
    mistake("source_language and data.target_language", files=["a.jsonl"], source_language="en", target_language="en")
    mistake("data.columns is ['en', 'en']", files=["a.jsonl"], columns=["en", "en"])
    mistake("data.source_files and data.target_files", source_files=["a.en"], target_files=["a.en"])


@pytest.mark.parametrize(
    "points, parts",
    [
        ("0-0 1", ("holds '0-0 1'", "0-0 1-2")),
        ("0-0,1-1", ("holds '0-0,1-1'",)),
        ("0-0 1-2", ("aligns 1-2", "2 words")),
    ],
)
def test_broken_alignments(points: str, parts: tuple[str, ...]):
    write_aligned(PAIRS[:1])
    write_lines("a.align", [points])
    mistake("a.align:1", *parts, **ALIGNED, alignment_files=["a.align"])


def test_files_that_are_not_there():
    write_aligned(PAIRS)
    mistake("'a.ne'", "source_files", "did you mean 'a.en'", source_files=["a.ne"], target_files=["a.de"])
    mistake("'*.tsv' in data.files", files=["*.tsv"])
    mistake("a.en in data.files has an unknown extension", ".tsv.gz", files=["a.en"])
    mistake("a.en is in both data.source_files and data.validation_source_files", **ALIGNED,
            validation_source_files=["a.en"], validation_target_files=["a.de"])  # fmt: skip


def test_settings_that_contradict_one_another():
    mistake("'dates' but data.files names files: set data.source to files", source="dates", files=["a.tsv"])
    mistake("'wmt14' but data.validation_files names", source="wmt14", validation_files=["a.tsv"])
    mistake("data.source is 'files' and no list of them is named")
    mistake("'files' and source_files is named: name data.files, or", source_files=["a.en"])
    mistake("files, source_files, target_files is named", files=["a.tsv"], **ALIGNED)
    mistake("files, alignment_files is named", files=["a.tsv"], alignment_files=["a.align"])
    mistake("validation_source_files is named: name", **ALIGNED, validation_source_files=["b.en"])
    mistake("data.columns is ['en']", files=["a.tsv"], columns=["en"])
    mistake("set both, or neither", files=["a.tsv"], source_language="en")
    mistake("data.validation_fraction is 1", validation_fraction=1)


def test_data_sets_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch):
    def offline(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(readers, "load_dataset", offline)
    mistake("'date'", "did you mean 'dates'", "no network", source="date")


def test_nothing_left_to_train_on():
    write("a.tsv", PAIRS)
    write("b.tsv", PAIRS)
    mistake("All 4 training pairs are also held out", files=["a.tsv"], validation_files=["b.tsv"])
