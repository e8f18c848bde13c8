"""Odd inputs of pairs: every script and format, and what may go wrong with two sides."""

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from pretraining.data.pairs.corpus import load_pairs
from pretraining.data.pairs.settings import PairSettings
from tests.odd.case import Case
from tests.odd.text import DEEP, INVALID, NFC, NFD, file, saved, table

Write = Callable[[Path], dict[str, Any]]

COLUMNS = {"columns": ["en", "de"]}
SIDES = {"source_files": "en", "target_files": "de"}
LANGUAGES = {"source_language": "en", "target_language": "de"}


def read(data: dict[str, Any]) -> list[tuple[str, str]]:
    settings = PairSettings(**{"source": "files", "validation_fraction": 0, **data})
    pairs = load_pairs(settings)[0]["train"]
    return [pair for shard in pairs.shards() for pair in pairs.sides(shard)]


def beside(texts: list[str]) -> list[tuple[str, str]]:
    """Pairs of each text and the one before it."""
    return [(text, texts[number - 1]) for number, text in enumerate(texts)]


def aligned(source: str | bytes, target: str | bytes, **settings: Any) -> Write:
    """Writes two files whose lines belong together."""

    def write(folder: Path) -> dict[str, Any]:
        for end, content in zip(SIDES.values(), (source, target), strict=True):
            (folder / f"a.{end}").write_bytes(content if isinstance(content, bytes) else content.encode())
        return {setting: [str(folder / f"a.{end}")] for setting, end in SIDES.items()} | settings

    return write


def written(end: str, pairs: list[tuple[str, str]]) -> Write:
    """Pairs in the format of an extension, "aligned" for two files of lines."""
    if end == "aligned":
        source, target = zip(*pairs, strict=True)
        return aligned(*("".join(f"{text}\n" for text in side) for side in (source, target)))
    if end == "parquet":
        return table("a.parquet", {"en": [a for a, _ in pairs], "de": [b for _, b in pairs]}, **COLUMNS)
    rows = {
        "jsonl": [json.dumps({"translation": {"en": a, "de": b}}) for a, b in pairs],
        "csv": ["en,de", *(f'"{a}","{b}"' for a, b in pairs)],
        "tsv": [f"{a}\t{b}" for a, b in pairs],
    }
    settings = {"jsonl": LANGUAGES, "csv": COLUMNS, "tsv": {}}
    kind = end.removesuffix(".gz")
    data = "\n".join(rows[kind]).encode()
    return file(f"a.{end}", gzip.compress(data) if end != kind else data, **settings[kind])


def several_targets(folder: Path) -> dict[str, Any]:
    """One file of sources, named twice, beside two of targets."""
    for name in ("a.en", "a.de", "b.de"):
        (folder / name).write_text(f"{name}\n")
    source, one, other = (str(folder / name) for name in ("a.en", "a.de", "b.de"))
    return {"source_files": [source, source], "target_files": [one, other]}


def one_by_two_paths(folder: Path) -> dict[str, Any]:
    for end in SIDES.values():
        (folder / f"a.{end}").write_text(f"{end}\n")
        (folder / f"b.{end}").symlink_to(f"a.{end}")
    names = {setting: [str(folder / f"{name}.{end}") for name in "ab"] for setting, end in SIDES.items()}
    return {**names, "duplicates": True}


def one_for_both(folder: Path) -> dict[str, Any]:
    (folder / "a.en").write_text("a\n")
    (folder / "a.de").symlink_to("a.en")
    return {setting: [str(folder / f"a.{end}")] for setting, end in SIDES.items()}


def maps() -> pa.Table:
    pairs = [[("en", "a"), ("de", "b")], [("en", "c"), ("de", "d")]]
    return pa.table({"translation": pa.array(pairs, pa.map_(pa.string(), pa.string()))})


def cases() -> Iterator[Case]:
    for end in ("jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "tsv.gz", "parquet", "aligned"):
        yield Case(f"every script, {end}", written(end, beside(NFC)), beside(NFC))
        yield Case(f"every script in NFD, {end}", written(end, beside(NFD)), beside(NFC))
        name = r"a\.en" if end == "aligned" else rf"a\.{end}"
        some = [("a", "b"), ("", " "), ("c", "d"), (" ", "")]
        told = "2 pairs are blank on both sides, and left out"
        yield Case(f"blank on both sides, {end}", written(end, some), [("a", "b"), ("c", "d")], told=told)
        other = r"a\.de:2" if end == "aligned" else rf"{name}:\d.*(de|2)"
        some = [("a", "b"), ("c", " "), (" ", " "), ("", "d"), ("e", "")]
        error = rf"{other} is empty, and so is one side of 2 more pairs of .*{name}: fill"
        yield Case(f"blank on one side, {end}", written(end, some), error=error)
        yield Case(f"blank on one side once, {end}", written(end, some[:2]), error=rf"{other} is empty: fill")
        yield Case(f"nothing but blanks, {end}", written(end, [("", " "), (" ", "")]), error=rf"{name} holds no pairs")

    # ---- aligned lines ----
    pairs = [("one", "eins"), ("two", "zwei")]
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        source, target = ("\n".join(side).encode(encoding) for side in zip(*pairs, strict=True))
        yield Case(f"aligned, {encoding}", aligned(source, target), pairs)
        data = "\n".join("\t".join(pair) for pair in pairs).encode(encoding)
        yield Case(f".tsv, {encoding}", file("a.tsv", data), pairs)
    for end in ("\n", "\r\n", "\r"):
        yield Case(f"aligned, {end!r} beside a line feed", aligned(f"one{end}two{end}", "eins\nzwei\n"), pairs)
        yield Case(f".tsv, {end!r}", file("a.tsv", f"one\teins{end}two\tzwei{end}"), pairs)
    inside = [("one\nmore", "eins"), ("two\u2028more\x0cend", "zwei")]
    source = "one\rmore\ntwo\u2028more\x0cend\x85\n"
    yield Case("aligned, what ends no line", aligned(source, "eins\nzwei\n"), inside)
    yield Case("aligned, unequal", aligned("a\nb\nc\n", "a\nb\n"), error=r"a\.en has 3 lines but .*a\.de has 2")
    yield Case(
        "aligned, not UTF-8", aligned("a\nb\n", b"a\n\xe9\n"), error=r"a\.de is not UTF-8 at line 2, byte 2 \(0xe9\)"
    )
    yield Case(
        "aligned, UTF-16 without a mark", aligned("a\n", "a\n".encode("utf-16-le")), error=r"a\.de, line 1 holds a NUL"
    )
    yield Case("aligned, several targets", several_targets, [("a.en", "a.de"), ("a.en", "b.de")])
    yield Case("aligned, one by two paths", one_by_two_paths, [("en", "de")], told="1 of 2 files repeat others")
    error = r"a\.en in data\.source_files and .*a\.de in data\.target_files are one file"
    yield Case("aligned, one file for both sides", one_for_both, error=error)
    yield Case("control characters", aligned("a\x01b\ufeff\n", "\x1bc\n"), [("ab", "c")])

    # ---- .tsv ----
    four = "1276\tLet's try.\t5350\tVersuchen wir's!\n1277\tI must go.\t5351\tIch muss gehen.\n"
    right = [("Let's try.", "Versuchen wir's!"), ("I must go.", "Ich muss gehen.")]
    yield Case(
        ".tsv of four cells",
        file("a.tsv", four),
        error=r"a\.tsv has 4 cells in its first row, separated by tabs.*\[2, 4\]",
    )
    yield Case(".tsv of four cells, by number", file("a.tsv", four, columns=[2, 4]), right)
    yield Case(".tsv of four cells, by number in words", file("a.tsv", four, columns=["2", "4"]), right)
    yield Case(".tsv, one number twice", file("a.tsv", four, columns=[2, "2"]), error=r"data\.columns is \[2, '2'\]")
    yield Case(".tsv, names between spaces", file("a.tsv", "\ufeffen \t de\na\tb\n", **COLUMNS), [("a", "b")])
    yield Case(".tsv, lines of white space", file("a.tsv", "  \na\tb\n \nc\td\n"), [("a", "b"), ("c", "d")])
    yield Case(
        ".tsv, a number too high", file("a.tsv", four, columns=[2, 5]), error=r"a\.tsv.*no column '5'.*1, 2, 3, 4"
    )
    error = r"a\.tsv, separated by tabs, has no column 'en': its first row is '1276', \"Let's try\.\""
    yield Case(".tsv, a name where there are none", file("a.tsv", four, **COLUMNS), error=error)
    yield Case(
        ".tsv of one cell", file("a.tsv", "one eins\n"), error=r"a\.tsv has 1 cells in its first row, separated by tabs"
    )
    yield Case(".tsv, a row too short", file("a.tsv", "a\tb\nc d\n"), error=r"a\.tsv, row 2 has 1 cells instead of 2")
    yield Case(
        ".tsv, a row too long", file("a.tsv", "a\tb\nc\td\te\n"), error=r"a\.tsv, row 2 has 3 cells instead of 2"
    )
    yield Case(".tsv, quotes are text", file("a.tsv", '"a\t"b"\n'), [('"a', '"b"')])
    yield Case(".tsv, blank lines", file("a.tsv", "\na\tb\n\n"), [("a", "b")])
    yield Case(".tsv, numbers", file("a.tsv", "1\t2\n2\t3\n"), [("1", "2"), ("2", "3")])
    yield Case(".tsv, a header", file("a.tsv", "id\tde\ten\n1\tb\ta\n", **COLUMNS), [("a", "b")])
    yield Case(
        ".tsv, a column twice", file("a.tsv", "en\ten\tde\na\tb\tc\n", **COLUMNS), error=r"a\.tsv.* has 2 columns 'en'"
    )
    yield Case(".tsv, empty", file("a.tsv", ""), error=r"a\.tsv holds no pairs")

    # ---- .csv, .jsonl, .parquet ----
    yield Case(".csv by semicolons", file("a.csv", "en;de\na, b;c\n", **COLUMNS), [("a, b", "c")])
    yield Case(
        ".csv without a header, by number", file("a.csv", "1,a,b\n2,c,d\n", columns=[2, 3]), [("a", "b"), ("c", "d")]
    )
    yield Case(".csv without columns", file("a.csv", "en,de\na,b\n"), error=r"a\.csv has columns but no dictionaries")
    yield Case(".jsonl, a line without the key", file("a.jsonl", '{"en":"a","de":"b"}\n{"en":"c"}\n', **COLUMNS),
               error=r"a\.jsonl, line 2 has no key 'de'")  # fmt: skip
    deep = f'{{"en": "a", "de": "b", "x": {DEEP}}}'
    yield Case(".jsonl, deep in another key", file("a.jsonl", deep, **COLUMNS), error=r"a\.jsonl, line 1.*deep")
    yield Case(
        ".jsonl, a number",
        file("a.jsonl", '{"en":"a","de":3}', **COLUMNS),
        error=r"a\.jsonl:1, de holds 3 instead of text",
    )
    yield Case(
        ".jsonl, no dictionary",
        file("a.jsonl", '{"translation": "a"}', **LANGUAGES),
        error=r"a\.jsonl:1 holds 'a' instead",
    )
    one_language = file("a.jsonl", '{"translation": {"en": "a"}}', **LANGUAGES)
    yield Case(".jsonl, a language missing", one_language, error=r"a\.jsonl:1 has no language 'de'.*one of en")
    yield Case(".parquet, a map of languages", table("a.parquet", maps(), **LANGUAGES), [("a", "b"), ("c", "d")])
    invalid = {"en": ["a", "b"], "de": INVALID}
    yield Case(".parquet, invalid UTF-8", table("a.parquet", invalid, **COLUMNS), error=r"a\.parquet:2 is not UTF-8")
    views = {
        "en": pa.array(["a"], pa.string_view()),
        "de": pa.array([b"b"], pa.binary_view()),
        "x": maps()["translation"][:1],
    }
    yield Case(".parquet, views, and a map beside them", table("a.parquet", views, **COLUMNS), [("a", "b")])
    content = io.BytesIO()
    pq.write_table(pa.table({"en": ["a"]}), content)
    yield Case(
        ".parquet, cut off",
        file("a.parquet", content.getvalue()[:-9], **COLUMNS),
        error=r"a\.parquet is no parquet file",
    )
    data = Dataset.from_dict({"en": ["a", " "], "de": ["b", None]})
    yield Case("save_to_disk", saved(data, **COLUMNS), [("a", "b")], told="1 pairs are blank on both sides")


CASES = list(cases())
