"""What a user's mistake looks like, and what a bug of ours does."""

import subprocess
import sys

import pytest

from pretraining.cli import parse
from pretraining.errors import UserError, one_sentence_errors


def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end, one_sentence_errors("verb"):
        raise UserError("no such file: name another.")
    assert end.value.code == 1
    assert capsys.readouterr().err == "verb: error: no such file: name another.\n"


def test_every_rank_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), one_sentence_errors("verb"):
        raise UserError("no such file.")
    assert capsys.readouterr().err == "[rank 1] verb: error: no such file.\n"


@pytest.mark.parametrize("bug", ["int('four')", "[].index(1)", "raise ValueError('a library says so')"])
def test_a_bug_keeps_its_traceback(bug: str):
    code = f"from pretraining.errors import one_sentence_errors\nwith one_sentence_errors('verb'):\n    {bug}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1 and "Traceback" in run.stderr and "verb: error" not in run.stderr


def test_what_a_model_refuses_is_told_by_the_parser(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(["--train.steps=1", "--model.hidden_size=30", "--model.num_attention_heads=4"])
    told = capsys.readouterr().err
    assert "hidden_size=30 is no multiple" in told and "Traceback" not in told
