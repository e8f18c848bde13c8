"""What a page shows where nobody says: held-out examples of the run if its data come with Python, or neutral ones."""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.data.images.corpus import prepare_images
from pretraining.data.images.settings import ImageSettings
from pretraining.data.pairs.corpus import load_pairs
from pretraining.data.pairs.settings import PairSettings
from pretraining.data.text.documents import load_text
from pretraining.data.text.sentences import sentences
from pretraining.data.text.settings import TextSettings
from pretraining.publish.explore.texts import PAIR
from pretraining.publish.source import Source

NEUTRAL = "The dog runs through the grass, and the children follow it home."
SHORTEST, LONGEST = 40, 110  # characters of a sentence that is shown
DATES = ("en_GB", "de_DE", "ko_KR")  # locales
DIGITS = (3, 5, 8)


def pydocs_sentences(fraction: float) -> list[str]:
    """Two sentences that follow one another, as a pair, and one of another document."""
    found: list[list[str]] = []
    for text in load_text(TextSettings(validation_fraction=fraction))["validation"].texts():
        runs = [run[0] for run in sentences(text, "en")]
        # Prose alone: sentences that begin with a capital letter, and have no code and no tables in them.
        prose = [run for run in runs if SHORTEST <= len(run) <= LONGEST and re.fullmatch(r"[A-Z][\w\s,;'()-]+\.", run)]
        if len(prose) > 1:
            found.append(prose)
        if len(found) == 2:
            (one, following, *_), (other, *_) = found
            return [f"{one} {PAIR} {following}", other]
    return [NEUTRAL]  # a Python that came without its documentation


def dates(fraction: float) -> list[str]:
    """A date in each of some languages."""
    pairs = load_pairs(PairSettings(source="dates", validation_fraction=fraction))[0]["validation"]
    groups = pairs.column("group", range(len(pairs)))
    rows = [groups.index(locale) for locale in DATES]
    return [pairs.column("source", range(row, row + 1))[0] for row in rows]


def data_of_run(source: Source) -> tuple[str | None, float]:
    """The source of the run's data, and which share of them is held out."""
    data = source.settings().get("data", {})
    return data.get("source"), data.get("validation_fraction") or TextSettings.validation_fraction


def default_texts(source: Source) -> list[str]:
    """Inputs for a model of texts."""
    name, fraction = data_of_run(source)
    if name == "pydocs":
        return pydocs_sentences(fraction)
    return dates(fraction) if name == "dates" else [NEUTRAL]


def default_images(source: Source) -> dict[str, np.ndarray]:
    """Images (height, width, C) by their names: digits for a model of them or of grey images, else a photograph."""
    from sklearn.datasets import load_sample_image  # a second to import

    config: Any = source.config
    name, fraction = data_of_run(source)
    if name != "digits" and config.num_channels == 3:
        return {"scikit-learn's china.jpg (by danielbuechele, CC BY 2.0)": load_sample_image("china.jpg")}
    with tempfile.TemporaryDirectory() as cache:
        settings = ImageSettings(source="digits", validation_fraction=fraction)
        digits = prepare_images(settings, config.num_channels, True, Path(cache), True).validation
        labels = digits.labels.tolist()
        return {f"a handwritten {digit}": np.array(digits.image(labels.index(digit))) for digit in DIGITS}
