"""The embedded dates: each text is one date, read back independently; held-out dates are new in every locale."""

import re
import unicodedata
from collections import Counter, defaultdict
from datetime import date, timedelta

import datasets
import pytest
from babel import Locale
from babel.dates import get_day_names, get_month_names, parse_pattern

from pretraining.data.pairs import dates
from pretraining.data.pairs.corpus import Pairs, load_pairs
from pretraining.data.pairs.settings import PairSettings

Rows = list[tuple[str, str, str]]  # locale, text, ISO 8601


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pairs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("dates"))
        return load_pairs(PairSettings())[0]


@pytest.fixture(scope="module")
def written(splits: dict[str, Pairs]) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for split, pairs in splits.items():
        found[split] = []
        whole = range(len(pairs))
        for group, (source, target) in zip(pairs.dataset["group"][:], pairs.sides(whole), strict=True):
            tag, text = source.split(" ", 1)
            assert tag == group
            found[split].append((tag, text, target))
    return found


def test_every_locale_has_as_many(written: dict[str, Rows]):
    counts = Counter(tag for rows in written.values() for tag, _, _ in rows)
    assert {"ko_KR", "ja_JP", "de_DE", "ar_EG"} < set(counts) and len(counts) >= 12
    assert set(counts.values()) == {dates.DATES}
    assert set(Counter(tag for tag, _, _ in written["validation"])) == set(counts)


def test_a_text_is_one_date(written: dict[str, Rows]):
    meaning: dict[tuple[str, str], set[str]] = defaultdict(set)
    for rows in written.values():
        for tag, text, iso in rows:
            meaning[tag, text].add(iso)
    assert max(map(len, meaning.values())) == 1


@pytest.mark.parametrize("year", [1900, 2024, 2099])
def test_no_form_could_be_another_date(year: int):
    days = [date(year, 1, 1) + timedelta(days=number) for number in range(365)]
    for locale in map(Locale.parse, dates.LOCALES):
        meaning: dict[str, set[date]] = defaultdict(set)
        for pattern in dates.date_patterns(locale):
            for day in days:
                meaning[dates.format_date(day, pattern, locale)].add(day)
        assert max(map(len, meaning.values())) == 1


def test_texts_say_their_dates(written: dict[str, Rows]):
    """The numbers are the year and the day; the month is a number or one of the locale's names for it."""
    for tag, text, iso in written["validation"]:
        year, month, day = map(int, iso.split("-"))
        digits = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in text)
        numbers = list(map(int, re.findall(r"\d+", digits)))
        assert 1900 <= year <= 2099 and re.search(rf"(?<!\d){year}(?!\d)", digits), text
        numbers.remove(year)
        numbers.remove(day)
        kinds = [(width, context) for width in ("wide", "abbreviated") for context in ("format", "stand-alone")]
        assert month in numbers or any(get_month_names(*kind, tag)[month] in text for kind in kinds), text


def test_weekdays_are_those_of_the_calendar(written: dict[str, Rows]):
    for tag, text, iso in written["validation"]:
        names = get_day_names("wide", "format", tag)
        assert names[date.fromisoformat(iso).weekday()] in text or not any(name in text for name in names.values())


def test_locales_write_as_they_do(written: dict[str, Rows]):
    looks = {
        "ar_EG": r"[^0-9a-z]*[٠-٩]{4}",
        "bn_BD": r"[^0-9a-z]*[০-৯]{4}",
        "de_DE": r"(\w+\.?, )?\d\d?\.( \w+\.? |\d\d?\.)\d{4}",
        "en_US": r"(\w+, )?(\w+ \d\d?, |\d\d?/\d\d?/)\d{4}",
        "ja_JP": r"\d{4}(/\d\d?/\d\d?|年\d\d?月\d\d?日)(\(.\)|.曜日)?",
        "ko_KR": r"\d{4}(\. \d\d?\. \d\d?\.|년 \d\d?월 \d\d?일|/\d\d?/\d\d?)( \(.\)| .요일| .)?",
    }
    for rows in written.values():
        for tag, text, _ in rows:
            assert tag not in looks or re.fullmatch(looks[tag], text), text


def test_digits_are_those_that_cldr_names():
    systems = {tag: Locale.parse(tag).default_numbering_system for tag in dates.LOCALES}
    assert set(dates.DIGITS) == {tag for tag, system in systems.items() if system != "latn"}
    assert all([unicodedata.digit(digit) for digit in digits] == list(range(10)) for digits in dates.DIGITS.values())


def test_ambiguous_forms_are_left_out(monkeypatch: pytest.MonkeyPatch):
    patterns = [
        "d/M/y",
        "d MMMMM y",
        "MMMM d",
        "MMMM y",
        "d MMMM yy",
        "d MMMM y G",
        "d. MMMM y",
        "yMd",
        "MMM d, y, h a",
        "MMMM ddd, y",
    ]
    skeletons = {pattern: parse_pattern(pattern) for pattern in ["M/d/y", *patterns]}
    monkeypatch.setattr(Locale, "datetime_skeletons", skeletons)
    kept = dates.date_patterns(Locale.parse("en_US"))
    assert kept == ["EEEE, MMMM d, y", "MMMM d, y", "MMM d, y", "d. MMMM y"]


def test_held_out_dates_are_new_in_every_locale(written: dict[str, Rows]):
    train, held = ({iso for _, _, iso in rows} for rows in written.values())
    assert not train & held
    assert 0.045 < len(held) / (len(train) + len(held)) < 0.055


def test_a_locales_dates_depend_on_nothing_else(written: dict[str, Rows], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dates, "LOCALES", ("ko_KR",))
    again = list(dates.generate_dates())
    assert sorted(again) == sorted(row for rows in written.values() for row in rows if row[0] == "ko_KR")
    assert again == list(dates.generate_dates()) and len({iso for _, _, iso in again}) == dates.DATES
