"""Rows of labelled tables in one form for each kind of task, whatever the columns are called."""

import json
import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal

from datasets import Features, List, Value

from finetuning.data.columns import Found, Kind
from finetuning.data.labels import NONE
from pretraining.data.readers import Row, Rows, check_text
from pretraining.data.stored import hash_text
from pretraining.errors import UserError

STRING, STRINGS, NUMBERS = Value("string"), List(Value("string")), List(Value("int64"))
# Of every row: its place, what it holds without its label, what decides whether it is held out, and its length.
EVERY = {"name": STRING, "hash": Value("uint64"), "split_hash": Value("uint64"), "characters": Value("int64")}
FEATURES = {
    "text": Features({"text": STRING, "pair": STRING, "label": STRING} | EVERY),
    "tokens": Features({"words": STRINGS, "tags": STRINGS} | EVERY),
    "spans": Features(
        {"id": STRING, "question": STRING, "context": STRING, "answers": STRINGS, "starts": NUMBERS} | EVERY
    ),
    "choice": Features({"context": STRING, "question": STRING, "choices": STRINGS, "label": Value("int64")} | EVERY),
}
Classes = list[str] | None  # the names of a column of class numbers, if it has any


def _row(name: str, parts: list[str], split_by: str, **columns: object) -> Row:
    """A row as it is stored; `parts` are its texts, of which `split_by` decides whether it is held out."""
    content = json.dumps(parts, ensure_ascii=False)
    size = sum(map(len, parts))
    return columns | {
        "name": name, "hash": hash_text(content), "split_hash": hash_text(split_by), "characters": size,
    }  # fmt: skip


def _text(row: Row, found: Found, part: str, name: str) -> str:
    """A column's text in its normal form, "" where it is null."""
    column = found.columns[part]
    value = row[column]
    return "" if value is None else check_text(value, f"{name}, {column}", found.settings[column])


# ---- labels ----


def _number(value: object, classes: Classes, place: str) -> object:
    """A label as JSON has it: a class number becomes its name."""
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if classes is None or isinstance(value, str | bool | float):
        return value
    if not isinstance(value, int):
        return value
    if not 0 <= value < len(classes):
        raise UserError(
            f"{place} holds {value}, but the classes are 0 to {len(classes) - 1}: mend it, or leave it empty."
        )
    return classes[value]


def label_json(value: object, classes: Classes, place: str) -> str | None:
    """A label as JSON text: a name, a number or a list of them; None where there is none.

    Args:
        classes: the names of class numbers, of which -1 is no class.

    Raises:
        UserError: it is nothing that can be a label.
    """
    if value is None or (classes is not None and not isinstance(value, bool) and value in (-1, -100)):
        return None
    if isinstance(value, list):
        labels = [label_json(each, classes, place) for each in value]
        if None in labels or any(isinstance(each, list) for each in value):
            raise UserError(f"{place} holds {value!r:.60}: a list of classes has a name or a number for each, mend it.")
        return f"[{', '.join(map(str, labels))}]"
    value = _number(value, classes, place)
    if isinstance(value, bytes):
        value = check_text(value, place, "label_column")
    if isinstance(value, str):
        value = check_text(value, place, "label_column").strip()
        return json.dumps(value, ensure_ascii=False) if value else None
    if not isinstance(value, bool | int | float):
        raise UserError(
            f"{place} holds {value!r:.40}, which is no label: it must be a name, a number or a list of classes; set "
            "data.label_column to a column of these."
        )
    return json.dumps(value)


# ---- each kind ----


def text_row(name: str, row: Row, found: Found, classes: Classes) -> Row:
    text = _text(row, found, "text", name).strip()
    pair = _text(row, found, "pair", name).strip() if "pair" in found.columns else None
    if not text and not pair:
        columns = " and ".join(found.columns[part] for part in ("text", "pair") if part in found.columns)
        raise UserError(f"{name}, {columns}: there is no text: fill it, or delete the row.")
    label = found.columns.get("label")
    value = label_json(row[label], classes, f"{name}, {label}") if label else None
    parts = [text] if pair is None else [text, pair]
    return _row(name, parts, text, text=text, pair=pair, label=value)


def _list(row: Row, found: Found, part: str, name: str) -> list[object]:
    column = found.columns[part]
    value = row[column]
    if not isinstance(value, list):
        raise UserError(
            f"{name}, {column} holds {value!r:.40} instead of a list of {part}: write one, in a .jsonl or .parquet "
            f"file, or set data.{found.settings[column]} to a column of lists."
        )
    return value


def _tag(value: object, classes: Classes, place: str) -> str | None:
    """A word's tag; None where it has none."""
    label = label_json(value, classes, place)
    if label is None or label.strip('"') in NONE:
        return None
    tag = json.loads(label)
    if isinstance(tag, list | float):
        raise UserError(f"{place} holds {value!r:.40}, which is no tag: it must be a name or a whole number.")
    return tag if isinstance(tag, str) else label


def tokens_row(name: str, row: Row, found: Found, classes: Classes) -> Row:
    column = found.columns["tokens"]
    words = []
    for number, word in enumerate(_list(row, found, "tokens", name), 1):
        words.append(check_text(word, f"{name}, {column}, word {number}", "tokens_column"))
    if not "".join(words).strip():
        raise UserError(f"{name}, {column}: there is no text: fill it, or delete the row.")
    column = found.columns.get("tags", "")
    tags: list[str | None] | None = None
    if column and row[column] is not None:
        place = f"{name}, {column}"
        values = _list(row, found, "tags", name)
        tags = [_tag(value, classes, f"{place}, word {number}") for number, value in enumerate(values, 1)]
        if len(tags) != len(words):
            raise UserError(f"{place}: there are {len(tags)} tags but {len(words)} words: give each word one tag.")
        if not any(tags):  # a test split's
            tags = None
        elif None in tags:
            raise UserError(f"{place}, word {tags.index(None) + 1} has no tag: give each word one, or none to all.")
    return _row(name, words, "\n".join(words), words=words, tags=tags)


def _whole(value: object, place: str, mend: str) -> int:
    """A whole number, also one that a .csv spells, or a column that has empty cells made a fraction."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+\s*", value):
        value = int(value)
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{place} holds {value!r:.40}, which is no whole number: {mend}.")
    return value


def _answers(row: Row, found: Found, name: str) -> tuple[list[object], list[object]] | None:
    """The answers' texts and starts as they stand; None where there is no column, or nothing in it."""
    column, start = found.columns.get("answers"), found.columns.get("start")
    if column is None or row[column] is None:
        return None
    value, place = row[column], f"{name}, {column}"
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        value = {key: [each.get(key) for each in value] for key in ("text", "answer_start")}
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
    elif start is not None:
        texts, starts = value, row[start]
        if not isinstance(texts, list):
            texts, starts = ([texts], [starts]) if str(texts).strip() else ([], [])
    else:
        raise UserError(
            f"{place} holds {value!r:.40} and no place of it: write "
            '{"text": ["..."], "answer_start": [0]}, or set data.start_column to the column with its first character.'
        )
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise UserError(f'{place} holds {value!r:.40}: write {{"text": ["..."], "answer_start": [0]}}.')
    if len(texts) != len(starts):
        raise UserError(f"{place} has {len(texts)} texts but {len(starts)} starts: give each answer both.")
    return texts, starts


def spans_row(name: str, row: Row, found: Found, classes: Classes) -> Row:
    question = _text(row, found, "question", name).strip()
    # The starts of answers count the characters of the context as it is: it is not brought into its normal form.
    raw = row[found.columns["context"]]
    context = raw.decode() if _text(row, found, "context", name) and isinstance(raw, bytes) else raw or ""
    for part, text in (("question", question), ("context", context)):
        if not text.strip():
            raise UserError(f"{name}, {found.columns[part]}: there is no {part}: fill it, or delete the row.")
    answers: list[str] | None = None
    starts: list[int] | None = None
    if both := _answers(row, found, name):
        place = f"{name}, {found.columns['answers']}"
        answers, starts = [], []
        for value, first in zip(*both, strict=True):
            check_text(value, place, "answers_column")
            answer = value.decode() if isinstance(value, bytes) else str(value)
            start = _whole(first, place, "write the character at which the answer begins, counted from 0")
            if not answer.strip():
                raise UserError(f"{place} holds an empty answer: fill it, or write empty lists if there is none.")
            if start < 0 or context[start : start + len(answer)] != answer:
                at = context.find(answer)
                where = f"but at character {at}" if at >= 0 else "nor anywhere else in it"
                raise UserError(
                    f"{place}: {answer!r:.60} does not stand at character {start} of its context, {where}: mend its "
                    "start or its text."
                )
            answers.append(answer)
            starts.append(start)
    column = found.columns.get("id")
    key = check_text(str(row[column]), f"{name}, {column}", "id_column") if column and row[column] is not None else name
    row = _row(name, [question, context], context, question=question, context=context, answers=answers, starts=starts)
    return row | {"id": key}


def choice_row(name: str, row: Row, found: Found, classes: Classes) -> Row:
    context = _text(row, found, "context", name).strip() if "context" in found.columns else ""
    question = _text(row, found, "question", name).strip() if "question" in found.columns else ""
    place = f"{name}, {', '.join(found.choices)}"
    values = [row[column] for column in found.choices]
    if len(values) == 1:
        if not isinstance(values[0], list):
            raise UserError(
                f"{place} holds {values[0]!r:.40} instead of a list of choices: write one, in a .jsonl or .parquet "
                "file, or name a column for each choice in data.choice_columns."
            )
        values = values[0]
    if len(values) < 2:
        raise UserError(f"{place} holds {len(values)} choices: there must be two at least.")
    choices = []
    for number, value in enumerate(values):
        text = "" if value is None else check_text(value, f"{place}, choice {number}", "choice_columns").strip()
        if not text:
            raise UserError(f"{place}: choice {number} of {len(values)} is empty: fill it, or delete the row.")
        choices.append(text)
    column = found.columns.get("label")
    value = row[column] if column else None
    label = None
    if value is not None and not (isinstance(value, float) and math.isnan(value)) and str(value).strip() != "":
        label = _choice_number(value, len(choices), f"{name}, {column}")
    content = [context, question, *choices]
    # The same choices in another order are the same example.
    split_by = json.dumps([context, question, *sorted(choices)])
    return _row(
        name, content, split_by, context=context or None, question=question or None, choices=choices, label=label
    )


def _choice_number(value: object, count: int, place: str) -> int | None:
    """The number of the right choice from 0 on; None for -1."""
    if isinstance(value, str) and len(value.strip()) == 1 and "A" <= value.strip() <= "Z":
        label = ord(value.strip()) - ord("A")
    else:
        label = _whole(value, place, "write the number of the right choice, counted from 0, or its letter from A on")
    if label == -1:
        return None
    if not 0 <= label < count:
        raise UserError(f"{place} holds {value!r}, but the choices are 0 to {count - 1}: count them from 0.")
    return label


READ: dict[Kind, Callable[[str, Row, Found, Classes], Row]] = {
    "text": text_row,
    "tokens": tokens_row,
    "spans": spans_row,
    "choice": choice_row,
}


def canonical(kind: Kind, rows: Rows, found: Found, classes: Classes, place: str) -> Iterator[Row]:
    """A table's rows as they are stored, by `FEATURES`.

    Args:
        classes: the names of the class numbers in the column of labels or tags, if there are names.
        place: the table, for messages.

    Raises:
        UserError: a row is malformed, or there is none.
    """
    is_empty = True
    for name, row in rows:
        is_empty = False
        yield READ[kind](name, row, found, classes)
    if is_empty:
        raise UserError(f"{place} holds no rows: fill it, or leave it out.")
