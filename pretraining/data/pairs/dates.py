"""Dates as people write them in many languages, by the CLDR data that Babel brings, each with its ISO 8601 form."""

from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta

import numpy as np
from babel import Locale
from babel import dates as babel_dates

from pretraining.data import draws
from pretraining.data.stored import hash_text

# Whose people write Gregorian years: CLDR's Thai and Persian dates count years from elsewhere, which Babel does not.
LOCALES = (
    *("ar_EG", "bn_BD", "de_DE", "el_GR", "en_GB", "en_US", "es_ES", "fr_FR", "hi_IN", "it_IT"),
    *("ja_JP", "ko_KR", "nl_NL", "pl_PL", "pt_BR", "ru_RU", "sv_SE", "tr_TR", "vi_VN", "zh_CN"),
)
FIRST, DAYS = date(1900, 1, 1), 73_049  # to 2099-12-31
DATES = 10_000  # of each locale; each date is written by one pattern
WEEKDAY = {"E", "c"}  # its letters in a pattern
# Babel writes all dates in Latin digits; these locales have their own.
DIGITS = {"ar_EG": "٠١٢٣٤٥٦٧٨٩", "bn_BD": "০১২৩৪৫৬৭৮৯"}


def format_date(day: date, pattern: str, locale: Locale) -> str:
    """A date in the locale's words and digits."""
    text = babel_dates.format_date(day, pattern, locale)
    digits = DIGITS.get(str(locale))
    return text.translate(str.maketrans("0123456789", digits)) if digits else text


def _whole(pattern: str) -> bool:
    """Whether the pattern gives a day, a month and a year in full, and nothing else but the weekday."""
    tokens = babel_dates.tokenize_pattern(pattern)
    fields = {value for _, value in tokens if isinstance(value, tuple)}  # (letter, width); the rest is text
    letters = {letter for letter, _ in fields} - WEEKDAY
    # A day of three letters is CLDR's word for an ordinal (10th), which Babel writes as 010.
    plain_day = all(width <= 2 for letter, width in fields if letter == "d")
    return ("y", 1) in fields and plain_day and letters in ({"y", "M", "d"}, {"y", "L", "d"})


def date_patterns(locale: Locale) -> list[str]:
    """The patterns of CLDR that name one date each; those of which some text could be another date too are left out.

    The texts of a leap year tell: which fields could be mistaken for one another does not depend on the year, nor does
    the weekday keep day and month apart, for 5/9 and 9/5 share theirs.
    """
    patterns = (pattern.pattern for pattern in (*locale.date_formats.values(), *locale.datetime_skeletons.values()))
    year = [date(2000, 1, 1) + timedelta(days=number) for number in range(366)]
    texts = {p: [format_date(day, p, locale) for day in year] for p in dict.fromkeys(patterns) if _whole(p)}
    pairs: set[tuple[str, date]] = set()
    for texts_of_year in texts.values():
        pairs.update(zip(texts_of_year, year, strict=True))
    meanings = Counter(text for text, _ in pairs)  # how many dates a text may be
    return [p for p, texts_of_year in texts.items() if all(meanings[text] == 1 for text in texts_of_year)]


def generate_dates() -> Iterator[tuple[str, str, str]]:
    """The locale's tag, the date as it is written there, and in ISO 8601; as many of each locale."""
    for tag in LOCALES:
        locale = Locale.parse(tag)
        patterns = date_patterns(locale)
        days = np.argsort(draws.hash_key(hash_text(f"days of {tag}"), np.arange(DAYS)))[:DATES]
        chosen = draws.integers(len(patterns), hash_text(f"forms of {tag}"), days)
        for number, pattern in zip(days.tolist(), chosen.tolist(), strict=True):
            day = FIRST + timedelta(days=number)
            yield tag, format_date(day, patterns[pattern], locale), day.isoformat()
