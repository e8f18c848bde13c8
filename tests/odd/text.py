"""Odd inputs of text: every script, encoding, line end, table and path that the readers are to take, or refuse."""

import csv
import gzip
import io
import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict

from pretraining.data.text.documents import load_text
from pretraining.data.text.settings import TextSettings
from tests.odd.case import Case

Write = Callable[[Path], dict[str, Any]]

SCRIPTS = [
    "Ünïcödé, naïve, œuvre, Straße, Łódź, Đặng Thị, ı İ",
    "Ελληνικά: ΰ, ὕβρις", "Съешь ещё этих булок; Ѳ", "Հայերեն է", "ქართული ენა", "עִבְרִית", "العَرَبِيَّة",
    "می‌خواهم", "ދިވެހި", "አማርኛ ነው።", "हिन्दी क़लम", "বাংলা ড়", "ਪੰਜਾਬੀ", "ગુજરાતી", "ଓଡ଼ିଆ", "தமிழ் கொ",
    "తెలుగు", "ಕನ್ನಡ", "മലയാളം", "ශ්‍රී ලංකා", "ภาษาไทยกำลัง", "ພາສາລາວ", "བོད་ཡིག", "မြန်မာ", "ភាសាខ្មែរ", "ᠮᠣᠩᠭᠣᠯ", "한국어 닭",
    "日本語 が ヷ ｶﾞ", "中文（豈）", "𠮷野家 𝒳", "ᏣᎳᎩ", "ߒߞߏ", "𐌰𐌱", "👩‍👩‍👧‍👦 🇰🇷 ❤️",
    "-> ... ≠ ∑", "NA", "null", "007", "1e5", "None", "True",
]  # fmt: skip
NFC = [unicodedata.normalize("NFC", text) for text in SCRIPTS]
NFD = [unicodedata.normalize("NFD", text) for text in SCRIPTS]


def read(data: dict[str, Any]) -> list[str]:
    settings = TextSettings(**{"source": "files", "validation_fraction": 0, **data})
    return list(load_text(settings)["train"].texts())


def file(name: str, content: str | bytes, **settings: Any) -> Write:
    """Writes one file."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return {"files": [str(folder / name)], **settings}

    return write


def table(name: str, data: dict[str, Any] | pa.Table, **settings: Any) -> Write:
    """Writes a parquet file."""
    content = io.BytesIO()
    pq.write_table(data if isinstance(data, pa.Table) else pa.table(data), content)
    return file(name, content.getvalue(), **settings)


def written(end: str, texts: list[str]) -> Write:
    """Texts in the format of an extension, one on each line of a .txt."""
    settings = {"document": "line"} if end.startswith("txt") else {}
    if end == "parquet":
        return table("a.parquet", {"text": texts})
    content = io.StringIO()
    if end.startswith("csv"):
        rows = csv.writer(content)
        rows.writerows([["id", "text"], *enumerate(texts)])
    for text in texts if not end.startswith("csv") else []:
        content.write(json.dumps({"text": text}) + "\n" if end.startswith("jsonl") else f"{text}\n")
    data = content.getvalue().encode()
    return file(f"a.{end}", gzip.compress(data) if end.endswith("gz") else data, **settings)


def tree(*links: tuple[str, str], files: list[str], pattern: str, **settings: Any) -> Write:
    """Writes files that hold their own paths, and symbolic links (path, target) beside them."""

    def write(folder: Path) -> dict[str, Any]:
        for name in files:
            path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name.encode(errors="replace").decode())
        for name, target in links:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(target)
        return {"files": [str(folder / each) for each in pattern.split()], **settings}

    return write


def saved(data: Dataset | DatasetDict, **settings: Any) -> Write:
    """Writes a folder of `save_to_disk`, and names it as the source."""

    def write(folder: Path) -> dict[str, Any]:
        data.save_to_disk(str(folder / "saved"))
        return {"source": str(folder / "saved"), **settings}

    return write


def saved_at_home(folder: Path) -> dict[str, Any]:
    Dataset.from_dict({"text": ["x"]}).save_to_disk(str(folder / "saved"))
    return {"source": f"~/{os.path.relpath(folder / 'saved', Path.home())}"}


def hard_link(folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_text("once")
    os.link(folder / "a.txt", folder / "b.txt")
    return {"files": [str(folder / "*.txt")]}


def pipe(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "a.txt")
    return {"files": [str(folder / "a.txt")]}


def with_map(folder: Path) -> dict[str, Any]:
    """Writes a data set's folder with a column that `datasets` cannot read."""
    (folder / "hub").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"], "map": MAP}), folder / "hub" / "train.parquet")
    return {"source": str(folder / "hub")}


def saved_as_file(folder: Path) -> dict[str, Any]:
    Dataset.from_dict({"text": ["x"]}).save_to_disk(str(folder / "saved"))
    return {"files": [str(folder / "saved")]}


def corrupt_page() -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"text": [f"{n} {'x' * 999}" for n in range(99)]}), content, row_group_size=20)
    data = bytearray(content.getvalue())
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    return bytes(data)


def of_type(kind: pa.DataType) -> pa.Array:
    return pa.array(["a", None, "한"]).cast(kind)


WORD = "hello wörld"
DEEP = "[" * 50_000 + "]" * 50_000
INVALID = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
MAP = pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int32()))
COMPRESSED = gzip.compress(b"one\ntwo\n")
LINES = {"document": "line"}


def cases() -> Iterator[Case]:
    for end in ("txt", "txt.gz", "jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"):
        yield Case(f"every script, .{end}", written(end, NFC), NFC)
        yield Case(f"every script in NFD, .{end}", written(end, NFD), NFC)
        yield Case(f"nothing but blanks, .{end}", written(end, [" ", "\u3000"]), error=rf"a\.{end} holds no text")
        if end != "parquet":
            empty = gzip.compress(b"") if end.endswith("gz") else b""
            yield Case(f"empty, .{end}", file(f"a.{end}", empty), error=rf"a\.{end} holds no text")
        texts = ["a", " ", "b"]
        told = None if end.startswith("txt") else "1 rows hold no text"
        yield Case(f"a blank among others, .{end}", written(end, texts), ["a", "b"], told=told)

    # ---- encodings ----
    for text, name in ((WORD, "Latin"), ("안녕, 世界", "Korean")):
        for end, content in {
            "txt": f"{text}\n{text}!\n",
            "jsonl": f'{{"text": "{text}"}}\n{{"text": "{text}!"}}\n',
            "csv": f'text\n"{text}"\n"{text}!"\n',
        }.items():
            for encoding in ("utf-8-sig", "utf-16", "utf-32"):
                data = content.encode(encoding)
                yield Case(f"{name} in {encoding}, .{end}", file(f"a.{end}", data, **LINES), [text, f"{text}!"])
            data = b"\xfe\xff" + content.encode("utf-16-be")
            yield Case(f"{name} in utf-16-be, .{end}", file(f"a.{end}", data, **LINES), [text, f"{text}!"])
            for encoding in ("utf-16-le", "utf-16-be", "cp949" if name == "Korean" else "latin-1"):
                error = rf"a\.{end}(, line \d holds a NUL| is not UTF-8 at line \d, byte \d)"
                bad = file(f"a.{end}", content.encode(encoding, "replace"), **LINES)
                yield Case(f"{name} in {encoding} without a mark, .{end}", bad, error=error)
    latin = gzip.compress("한국어\ncafé".encode().replace("é".encode(), b"\xe9"))
    error = r"a\.txt\.gz is not UTF-8 at line 2, byte 13 \(0xe9\)"
    yield Case("Latin 1 among UTF-8, .txt.gz", file("a.txt.gz", latin), error=error)
    yield Case("half of UTF-16", file("a.txt", WORD.encode("utf-16")[:-1]), error=r"a\.txt is not UTF-16 at line 1")
    mail = "日本語".encode("iso2022_jp")
    yield Case("Japanese of mail", file("a.txt", mail), error=r"a\.txt, line 1 is ISO 2022.*convert it to UTF-8")
    yield Case("bytes past the first buffer", file("a.txt", b"x\n" * 2**18 + b"\xe9"),
               error=r"a\.txt is not UTF-8 at line 262145, byte 524288 \(0xe9\)")  # fmt: skip
    for end in ("txt", "csv", "jsonl"):
        content = {"txt": "a\0b", "csv": "text\na\0b", "jsonl": '{"text": "a\0b"}'}[end]
        yield Case(f"a NUL, .{end}", file(f"a.{end}", content), error=rf"a\.{end}, line \d holds a NUL")

    # ---- line ends, white space and control characters ----
    for name, end in {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}.items():
        text = end.join(["one", "two", "", "three"])
        yield Case(f"{name}, lines", file("a.txt", text, document="line"), ["one", "two", "three"])
        yield Case(f"{name}, blocks", file("a.txt", text, document="blank_line"), ["one\ntwo", "three"])
        yield Case(f"{name}, whole", file("a.txt", text), ["one\ntwo\n\nthree"])
        yield Case(f"{name} in UTF-16", file("a.txt", text.encode("utf-16"), document="line"), ["one", "two", "three"])
        yield Case(f"{name} in .csv", file("a.csv", f'text{end}one{end}"two{end}three"{end}'), ["one", "two\nthree"])
        yield Case(f"{name} in .jsonl", file("a.jsonl", f'{{"text": "one"}}{end}{{"text": "two"}}'), ["one", "two"])
        yield Case(f"{name} in a value", table("a.parquet", {"text": [text]}), ["one\ntwo\n\nthree"])
    yield Case("a stray CR ends no line", file("a.txt", "one\rtwo\nthree\n", **LINES), ["one\ntwo", "three"])
    spaces = "a\u2028b\u2029c\x0cd\x0be\x85f\xa0g\x1ch\ti"
    yield Case("white space ends no line", file("a.txt", f"{spaces}\nnext", **LINES), [spaces, "next"])
    controls = "a\x01b\x1b[0m\x7f\x80\ufeffc"
    yield Case("control characters, .txt", file("a.txt", controls), ["ab[0mc"])
    yield Case("control characters, .jsonl", file("a.jsonl", json.dumps({"text": f"{controls}\0"})), ["ab[0mc"])
    yield Case("control characters, .parquet", table("a.parquet", {"text": [f"\0{controls}"]}), ["ab[0mc"])
    yield Case("nothing but control characters", file("a.txt", "\x01\x02"), error=r"a\.txt holds no text")
    yield Case("files joined with their marks", file("a.txt", "\ufeffone\n\ufefftwo\n", **LINES), ["one", "two"])
    yield Case("special tokens are text", file("a.txt", "[MASK] </s> <unk>"), ["[MASK] </s> <unk>"])

    # ---- .csv ----
    for name, separator in {"commas": ",", "semicolons": ";", "tabs": "\t", "bars": "|"}.items():
        rows = [["id", "text"], ["1", "a, b; c"], ["2", "two\nlines | and a\ttab"]]
        content = io.StringIO()
        csv.writer(content, delimiter=separator).writerows(rows)
        yield Case(f".csv by {name}", file("a.csv", content.getvalue()), [text for _, text in rows[1:]])
        wrong = file("a.csv", content.getvalue(), column="tetx")
        error = rf"a\.csv, separated by {name}.*mean 'text'.*'id', 'text'"
        yield Case(f".csv by {name}, wrong column", wrong, error=error)
        long = file("a.csv", f"id{separator}text\n1{separator}a{separator}b")
        error = rf"a\.csv, row 2 has 3 cells instead of 2, separated by {name}"
        yield Case(f".csv by {name}, a row that is too long", long, error=error)
    yield Case(".csv, the header as a column", file("a.csv", "id;text\n1;a\n", column="id;text"),
               error=r"a\.csv, separated by semicolons, has no column 'id;text'")  # fmt: skip
    yield Case(".csv, commas before most cells", file("a.csv", "text,a;b;c\nx,1;2;3\n"), ["x"])
    yield Case(".csv without a header", file("a.csv", "It rained.,1\nNobody came.,2\n"),
               error=r"a\.csv.*no column 'text': its first row is 'It rained\.', '1'.*number")  # fmt: skip
    yield Case(
        ".csv by number", file("a.csv", "It rained.,1\nNobody came.,2\n", column="1"), ["It rained.", "Nobody came."]
    )
    yield Case(".csv, a number too high", file("a.csv", "x,1\n", column="3"), error=r"a\.csv.*no column '3'.*1, 2")
    yield Case(".csv, columns by numbers in its header", file("a.csv", "0,1\nx,y\n", column="1"), ["y"])
    for name, content in {
        "a separator stated": "sep=;\nid;text\n1;a, b\n",
        "a separator stated, with a mark": "\ufeffsep=;\r\nid;text\r\n1;a, b\r\n",
        "names between spaces": "id | text\n1 | a, b\n",
        "a mark within the header": '\ufeff\ufefftext,id\n"a, b",1\n',
        "more commas than semicolons in the header": "price, tax, sum;text\n1;a, b\n",
        "CR with LF in quotes": 'text,id\r"a, b",1\r"c\nd",2\r',
        "lines of white space": "\t\nid;text\n1;a, b\n  \n",
    }.items():
        right = ["a, b", "c\nd"] if "quotes" in name else ["a, b"]
        yield Case(f".csv, {name}", file("a.csv", content), right)
    yield Case(".csv, a name with its spaces", file("a.csv", "id, text\n1,a\n", column=" text"), ["a"])
    by_number = file("a.csv", "1;a, b, and c\n2;d\n", column="2")
    yield Case(".csv by number, more commas than semicolons", by_number, ["a, b, and c", "d"])
    yield Case(".csv, nothing but white space", file("a.csv", " \n  \n"), error=r"a\.csv holds no text")
    yield Case(".csv, the column twice", file("a.csv", "text,text\na,b\n"), error=r"a\.csv.* has 2 columns 'text'")
    yield Case(".csv, another column twice", file("a.csv", "id,text,id\n1,a,2\n"), ["a"])
    yield Case(".csv, nothing but a header", file("a.csv", "text\n"), error=r"a\.csv holds no text")
    yield Case(".csv, blank lines", file("a.csv", "\ntext\n\na\n\n"), ["a"])
    yield Case(".csv, an open quote", file("a.csv", 'text\n"open\n'), error=r"a\.csv, line 2 is not CSV")
    yield Case(
        ".csv, backslashes before quotes", file("a.csv", 'text\n"a \\" b"\n'), error=r"a\.csv, line 2 is not CSV"
    )
    yield Case(
        ".csv, a whole book in a cell", file("a.csv", f"text\n{'long ' * 99_999}\n"), [("long " * 99_999).strip()]
    )

    # ---- .jsonl ----
    yield Case(".jsonl, a line without the key", file("a.jsonl", '{"text": "a"}\n{"body": "b"}\n'),
               error=r"a\.jsonl, line 2 has no key 'text'.*body")  # fmt: skip
    yield Case(".jsonl, the first line without the key", file("a.jsonl", '\n{"txt": "a"}\n{"text": "b"}\n'),
               error=r"a\.jsonl, line 2 has no column 'text' \(did you mean 'txt'\?\): set data\.column")  # fmt: skip
    yield Case(
        ".jsonl, no key at all", file("a.jsonl", "{}"), error=r"a\.jsonl, line 1 has no column 'text'.*none at all"
    )
    yield Case(".jsonl, null", file("a.jsonl", '{"text": null}\n{"text": "b"}\n'), ["b"], told="1 rows hold no text")
    yield Case(
        ".jsonl, deep in another key", file("a.jsonl", f'{{"text": "a", "x": {DEEP}}}'), error=r"a\.jsonl, line 1.*deep"
    )
    yield Case(".jsonl, a number of 5,000 digits", file("a.jsonl", f'{{"text": "a", "n": {"1" * 5000}}}'),
               error=r"a\.jsonl, line 1 is not JSON")  # fmt: skip
    yield Case(
        ".jsonl, other keys of any type",
        file("a.jsonl", '{"text":"a","x":1}\n{"text":"b","x":{"y":[NaN]}}'),
        ["a", "b"],
    )
    yield Case(".jsonl, what looks like a date", file("a.jsonl", '{"text": "2024-01-01"}'), ["2024-01-01"])
    yield Case(
        ".jsonl, half a character", file("a.jsonl", '{"text": "\\ud83d"}'), error=r"a\.jsonl:1 holds half a character"
    )
    for value in ("3", "1.5", "true", '["a"]', '{"a": "b"}'):
        yield Case(
            f".jsonl, {value}", file("a.jsonl", f'{{"text": {value}}}'), error=r"a\.jsonl:1 holds .* instead of text"
        )
    yield Case(".jsonl, a list", file("a.jsonl", '[{"text": "a"}]'), error=r"a\.jsonl, line 1 is no object")
    yield Case(
        ".jsonl, a list on lines",
        file("a.jsonl", '[\n{"text": "a"}\n]'),
        error=r"a\.jsonl, line 1 is not JSON.*object on each line",
    )
    yield Case(
        ".jsonl, an object on lines",
        file("a.jsonl", '{\n"text": "a"\n}'),
        error=r"a\.jsonl, line 1 is not JSON.*on each line",
    )

    joined = file("a.jsonl", '{"text": "a"}\n\ufeff{"text": "b"}\n')
    yield Case(".jsonl, joined with its mark", joined, ["a", "b"])
    two = json.dumps({"text": "a"}) + "\n" + json.dumps({"b\nc": "d"})
    yield Case(".jsonl, a key of two lines", file("a.jsonl", two), error=r"a\.jsonl, line 2.*but 'b\\nc'")
    many = file("a.jsonl", json.dumps({f"key {n}": n for n in range(999)}))
    yield Case(".jsonl, many keys", many, error=r"a\.jsonl, line 1.*one of key 0, .{,200}key 19, \.\.\.\.$")

    # ---- .parquet ----
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()):
        yield Case(f".parquet, {kind}", table("a.parquet", {"text": of_type(kind)}), ["a", "한"], told="1 rows")
    yield Case(
        ".parquet, dictionary",
        table("a.parquet", {"text": of_type(pa.string()).dictionary_encode()}),
        ["a", "한"],
        told="1 rows",
    )
    yield Case(".parquet, null", table("a.parquet", {"text": pa.nulls(2)}), error=r"a\.parquet holds no text")
    yield Case(
        ".parquet, no rows", table("a.parquet", {"text": of_type(pa.string())[:0]}), error=r"a\.parquet holds no text"
    )
    yield Case(".parquet, numbers", table("a.parquet", {"text": [1]}), error=r"a\.parquet:1 holds 1 instead of text")
    yield Case(
        ".parquet, lists", table("a.parquet", {"text": [["a"]]}), error=r"a\.parquet:1 holds \['a'\] instead of text"
    )
    yield Case(".parquet, a map beside it", table("a.parquet", {"text": ["a", "b"], "map": MAP}), ["a", "b"])
    yield Case(".parquet, invalid UTF-8", table("a.parquet", {"text": INVALID}), error=r"a\.parquet:2 is not UTF-8")
    yield Case(
        ".parquet, invalid UTF-8 in another column", table("a.parquet", {"x": INVALID, "text": ["a", "b"]}), ["a", "b"]
    )
    yield Case(
        ".parquet, invalid bytes",
        table("a.parquet", {"text": [b"caf\xe9"]}),
        error=r"a\.parquet:1 holds bytes.*not UTF-8",
    )
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    yield Case(".parquet, the column twice", table("a.parquet", twice), error=r"a\.parquet has 2 columns 'text'")
    yield Case(
        ".parquet, wrong column", table("a.parquet", {"body": ["a"]}), error=r"a\.parquet has no column 'text'.*body"
    )
    yield Case(".parquet, cut off", file("a.parquet", b"PAR1" + bytes(99)), error=r"a\.parquet is no parquet file")
    yield Case(
        ".parquet, broken inside",
        file("a.parquet", corrupt_page()),
        error=r"a\.parquet is no parquet file that can be read",
    )

    # ---- compression ----
    yield Case(".gz of two members", file("a.txt.gz", COMPRESSED * 2, **LINES), ["one", "two"] * 2)
    yield Case(
        ".gz cut off",
        file("a.txt.gz", gzip.compress(os.urandom(999).hex().encode())[:-99]),
        error=r"a\.txt\.gz cannot be read",
    )
    yield Case(".gz and something behind", file("a.txt.gz", COMPRESSED + b"junk"), error=r"a\.txt\.gz cannot be read")
    yield Case(".gz that is none", file("a.txt.gz", "text"), error=r"a\.txt\.gz cannot be read")
    yield Case(
        "compressed without .gz", file("a.txt", COMPRESSED), error=r"a\.txt is not UTF-8|a\.txt, line 1 holds a NUL"
    )

    # ---- paths ----
    eight = [f"d/{n}.txt" for n in range(8)]
    texts = [Path(name).name for name in eight]
    told = r"these paths lead to files that others lead to"
    yield Case("a loop", tree(("d/self", "."), files=eight, pattern="d/**/*.txt"), texts, told=told)
    loops = [("d/one", "."), ("d/two", "../d"), ("d/three", "..")]
    yield Case("three loops", tree(*loops, files=eight, pattern="**/*.txt"), texts, told=told)
    yield Case("a link to a folder beside it", tree(("e", "d"), files=eight, pattern="**"), texts, told=told)
    yield Case("a link to a folder elsewhere", tree(("e/f", "../d"), files=eight, pattern="e/**/*.txt"), texts)
    yield Case("a link to a file", tree(("d/9.txt", "1.txt"), files=eight, pattern="d/*"), texts, told=told)
    yield Case("a hard link", hard_link, ["once"], told=told)
    yield Case("one file by two patterns", tree(files=eight, pattern="d/0.txt d/*.txt d/../d/1.txt"), texts)
    yield Case(
        "a link to nothing",
        tree(("d/9.txt", "gone"), files=eight, pattern="d/*.txt"),
        error=r"d/9\.txt in data\.files cannot be read",
    )
    yield Case(
        "a link to itself",
        tree(("d/9.txt", "9.txt"), files=eight, pattern="d/*.txt"),
        error=r"d/9\.txt in data\.files cannot be read",
    )
    yield Case("a folder called .txt", tree(files=["d/a.txt/b.txt", "d/c.txt"], pattern="d/*.txt"), ["c.txt"])
    yield Case("hidden files", tree(files=["d/.a.txt", "d/.b/c.txt", "d/e.txt"], pattern="d/**/*.txt"), ["e.txt"])
    yield Case("names that are no UTF-8", tree(files=[os.fsdecode(b"caf\xe9.txt")], pattern="*.txt"), ["caf?.txt"])
    bad = tree(files=[os.fsdecode(b"caf\xe9.csv")], pattern="*.csv")
    yield Case("names that are no UTF-8, and a mistake", bad, error=r"caf\\xe9\.csv.* has no column 'text'")
    yield Case(
        "names of two lines", tree(files=["a\nb.csv"], pattern="*.csv"), error=r"a\\nb\.csv.* has no column 'text'"
    )
    yield Case("stars and brackets", tree(files=["[a]*?.txt"], pattern="[a]*?.txt"), ["[a]*?.txt"])
    folders = tree(files=["d[1]/a.txt", "d1/b.txt"], pattern="d[1]/*.txt")
    yield Case("stars and brackets of a folder, before a glob", folders, ["a.txt"])
    link = tree(("a.txt", "gone"), files=[], pattern="a.txt")
    yield Case(
        "a link to nothing, named", link, error=r"a\.txt in data\.files cannot be read.*mend its rights or its link"
    )
    yield Case("a pipe", pipe, error=r"a\.txt in data\.files is a pipe or a device: write what it gives into a file")
    yield Case("an extension in capitals", tree(files=["A.TXT"], pattern="*"), ["A.TXT"])
    yield Case(
        "an unknown extension",
        tree(files=["a.docx"], pattern="*"),
        error=r"a\.docx in data\.files has an unknown extension",
    )
    nfd = unicodedata.normalize("NFD", "é.txt")
    other_form = r"no file matches .*\(but 'e\\u0301\.txt', which looks the same"
    yield Case("a name in NFD", tree(files=[nfd], pattern=unicodedata.normalize("NFC", nfd)), error=other_form)
    yield Case("an empty name", lambda _: {"files": [""]}, error=r"no file matches ''")
    yield Case("no file", tree(files=["a.txt"], pattern="b.txt"), error=r"no file matches .*b\.txt.*mean 'a\.txt'")
    yield Case("a folder", tree(files=["d/a.txt"], pattern="d"), error=r"d in data\.files is a folder")

    # ---- data sets ----
    data = Dataset.from_dict({"text": NFD, "other": list(range(len(NFD)))})
    yield Case("save_to_disk", saved(data), NFC)
    yield Case("save_to_disk, from home", saved_at_home, ["x"])
    for kind in (pa.string_view(), pa.large_string(), pa.binary_view()):
        of_kind = saved(Dataset(pa.table({"text": of_type(kind)})))
        yield Case(f"save_to_disk, {kind}", of_kind, ["a", "한"], told="1 rows hold no text")
    yield Case("save_to_disk of splits", saved(DatasetDict(train=data, test=data)), NFC)
    yield Case(
        "save_to_disk, no such split", saved(DatasetDict(test=data)), error=r"saved', .*split 'train' .*splits test"
    )
    yield Case(
        "save_to_disk, invalid UTF-8", saved(Dataset(pa.table({"text": INVALID}))), error=r"saved:train:1 is not UTF-8"
    )
    yield Case("a data set with a map", with_map, error=r"hub'.*map<.*name its parquet files in data\.files")
    yield Case("save_to_disk as a file", saved_as_file, error=r"saved in data\.files is a folder: set data\.source")


CASES = list(cases())
