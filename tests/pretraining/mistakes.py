"""What every mistake of a user's comes to: one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pretrain import main
from pretraining.errors import UserError


@contextmanager
def one_sentence(*parts: str) -> Iterator[None]:
    """What is done inside raises a UserError whose one line has all these parts."""
    with pytest.raises(UserError) as error:
        yield
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one sentence that a start with these arguments ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert end.value.code in (1, 2)
    return sentence
