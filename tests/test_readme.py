"""What the README says is so: its table leads to the code, and its paths, commands, settings and snippets exist."""

import argparse
import ast
import functools
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
from transformers import BertTokenizer

import modeling
from finetuning.cli import VERB as FINETUNE
from finetuning.cli import parse_finetune
from pretraining.cli import PRETRAIN, SECTIONS, make_parser, parse
from tests.readme import README, ROOT, corrected, find, rows

TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
PROSE = re.sub(r"^```\w+\n.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)
CODE = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PROSE)]
MEASURED = "python -m tests.benchmarks."  # stands before each command of a column
FOLDERS = "modeling|pretraining|finetuning|configs|tests"
LARGEST = 150_000  # bytes of a picture


def commands() -> list[str]:
    """Every command of ours, with what follows its program."""
    lines: list[str] = []
    for language, block in BLOCKS:
        if language == "bash":
            lines += block.replace("\\\n", " ").splitlines()
    lines += [code for code in CODE if not code.startswith("pytest")]
    lines += [MEASURED + code for code in re.findall(r"\| `([^`]+)` \|$", TEXT, re.MULTILINE)]
    ours = (re.search(r"(?:python -m (?=\w[\w.]*\w( |$))|\b(?=\w+\.py )).*", line) for line in lines)
    return sorted({command[0].removeprefix("python -m ") for command in ours if command})


class Accepted(BaseException):
    """A parser took the command line. No handler of the program's may catch it."""


@pytest.fixture
def stops_when_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every parser end the program where it would begin its work."""
    running: list[Any] = []

    def accepting(method: Callable) -> Callable:
        @functools.wraps(method)
        def parse(*args, **kwargs) -> Any:
            running.append(method)  # parsers call their own methods: the outermost one decides
            try:
                parsed = method(*args, **kwargs)
            finally:
                running.pop()
            left = parsed[1] if isinstance(parsed, tuple) else []  # arguments that the program hands to another parser
            if not running and not left:
                raise Accepted
            return parsed

        return parse

    for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
        for name in ("parse_args", "parse_known_args"):
            monkeypatch.setattr(parser, name, accepting(getattr(parser, name)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with its tokenizer, where the README names a folder of the reader's."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = modeling.KeelBertConfig(
        hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=6
    )
    modeling.KeelBertModel(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    BertTokenizer({word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder


def split(command: str, checkpoint: Path) -> tuple[str, list[str]]:
    """The program, and its arguments with a checkpoint of ours for the reader's."""
    program, *arguments = shlex.split(command, comments=True)
    readers = {"DIR", "DIR_OR_NAME", "runs/bert-pydocs/model"}
    return program, [str(checkpoint) if argument in readers else argument for argument in arguments]


OF_SETTINGS = {"pretrain.py": parse, "finetune.py": parse_finetune}
COMMANDS = commands()


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.split()[0] in OF_SETTINGS])
def test_settings_of_a_command(command: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pretrain.py and finetune.py make whole settings of it."""
    monkeypatch.chdir(ROOT)
    program, arguments = split(command, checkpoint)
    if "--help" in arguments:
        with pytest.raises(SystemExit, match=r"^0$"):
            OF_SETTINGS[program](arguments)
    else:
        assert OF_SETTINGS[program](arguments).resolved


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.split()[0] not in OF_SETTINGS])
def test_command(
    command: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Its module is there; and where it has arguments, its own parser takes them."""
    monkeypatch.chdir(ROOT)
    program, arguments = split(command, checkpoint)
    module = program.removesuffix(".py")
    assert importlib.util.find_spec(module) is not None
    if arguments:
        if importlib.util.find_spec(module).submodule_search_locations:  # a package
            module += ".__main__"
        main = importlib.import_module(module).main
        monkeypatch.setattr("sys.argv", [program, *arguments])
        request.getfixturevalue("stops_when_parsed")
        with pytest.raises(Accepted):
            main()


def test_commands_are_found() -> None:
    programs = {command.split()[0] for command in COMMANDS}
    assert {"pretrain.py", "finetune.py", "publish.py", "finetuning.glue", "tests.benchmarks.equal_minutes"} <= programs


def test_settings_and_flags() -> None:
    """Every `section.key` is a setting of some run, and every `--flag` one of a program."""
    known: set[str] = set()
    for verb in (PRETRAIN, FINETUNE):
        for name, entry in verb.objectives.items():
            known |= {action.dest for action in make_parser(entry.family, name, verb)._actions}
    sections = "|".join(SECTIONS)
    named = set(re.findall(rf"(?<![\w/.])((?:{sections})\.(?!py\b)\w+)\b(?!\()", "\n".join(CODE)))
    assert len(named) > 20 and not named - known
    sources = " ".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.py"), *ROOT.glob("*/**/*.py")])
    ours = "\n".join(code for code in CODE if not code.startswith("accelerate launch --"))
    flags = set(re.findall(r"--([a-z][\w-]*)(?![\w.-])", ours)) - known
    assert flags and not [flag for flag in flags if f'"--{flag}"' not in sources]


def test_paths() -> None:
    """Every file and folder of ours, every link and every heading that one leads to."""
    named = {code for code in CODE if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]*", code)}
    links = re.findall(r"\]\(([^)]+)\)", PROSE)
    named |= {link.partition("#")[0] for link in links} - {""}
    assert len(named) > 40 and not [path for path in named if not (ROOT / path).exists()]
    files = {path.name for path in ROOT.glob("*/**/*.py")} | {path.name for path in ROOT.glob("*.py")}
    assert not {code for code in CODE if re.fullmatch(r"\w+\.py", code)} - files
    heads = re.findall(r"^## (.*)", TEXT.lower(), re.MULTILINE)
    headings = {"#" + re.sub(r"[^\w -]", "", head).replace(" ", "-") for head in heads}  # as GitHub names them
    assert not {link for link in links if link.startswith("#")} - headings


def test_pictures_are_small() -> None:
    pictures = [ROOT / path for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)]
    assert len(pictures) >= 3 and all(path.stat().st_size < LARGEST for path in pictures)


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_snippet(code: str) -> None:
    """It compiles, and what it imports is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            assert node.module
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize(("idea", "papers", "links"), rows(TEXT), ids=[row[0] for row in rows(TEXT)])
def test_idea(idea: str, papers: list[str], links: list[re.Match]) -> None:
    """Each symbol stands at its line, each paper is cited at one of them, and each of them cites one."""
    places = [find(ROOT / link[2], link[1]) for link in links]
    moved = [
        f"{link[0]} is at line {place.line}"
        for link, place in zip(links, places, strict=True)
        if int(link[3]) != place.line
    ]
    assert not moved, f"{moved}: python -m tests.readme --write"
    assert all(any(paper in place.text for place in places) for paper in papers)
    assert all(any(paper in place.text for paper in papers) for place in places)


def test_lines_are_put_right() -> None:
    assert corrected(TEXT.replace("#L", "#L9")) == TEXT
    with pytest.raises(LookupError, match="no_such_kernel"):
        find(ROOT / "modeling/attention.py", "MultiHeadAttention.no_such_kernel")
