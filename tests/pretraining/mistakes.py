"""What every mistake of a user's comes to: one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def one_sentence(*parts: str) -> Iterator[None]:
    """What is done inside raises a ValueError whose one line has all these parts."""
    with pytest.raises(ValueError) as error:
        yield
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
