"""The house rules on imports: what the Hub's copier sees, and which package may know which."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARROWS = ["modeling", "pretraining", "finetuning"]  # each may import those before it, never those after
MODELING = sorted((ROOT / "modeling").glob("*.py"))
PRETRAINING = sorted((ROOT / "pretraining").rglob("*.py"))
ROOMS = ["text", "pairs", "images"]  # of pretraining/data; what two of them need stands beside them
BELOW_DATA = {"pretraining.errors", "pretraining.files"}  # all of pretraining that data may know


def imports(file: Path) -> list[tuple[int, str]]:
    """(dots, module) of every import of a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def name_of(file: Path) -> str:
    """The module that a file is."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules(file: Path) -> set[str]:
    """The modules of pretraining that a file imports, wherever the import stands."""
    names = {name_of(other) for other in PRETRAINING}
    imported: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from pretraining.data import draws` imports pretraining.data.draws, `... import make_plan` no module.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= inner & names or {node.module or ""}
    return imported & names


def test_modeling_is_flat():
    assert not [path for path in (ROOT / "modeling").iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("file", MODELING, ids=lambda file: file.stem)
def test_copier_sees_every_import(file):
    """It follows `from .x import y` alone, in the text of the file: comments and docstrings too."""
    siblings = set()
    for dots, module in imports(file):
        if dots:
            assert dots == 1 and (ROOT / "modeling" / f"{module}.py").is_file(), f"{'.' * dots}{module}"
            siblings.add(module)
        else:
            assert module.split(".")[0] in {"torch", "transformers", *sys.stdlib_module_names}, module
    assert siblings == set(re.findall(r"^\s*from\s+\.(\S*)\s+import", file.read_text(), re.MULTILINE))
    assert not re.findall(r"^\s*import\s+\.", file.read_text(), re.MULTILINE)


@pytest.mark.parametrize("file", [file for file in MODELING if file.stem != "convert"], ids=lambda file: file.stem)
def test_checkpoints_carry_no_conversion(file):
    assert (1, "convert") not in imports(file)


@pytest.mark.parametrize("package", ARROWS)
def test_arrows_never_point_back(package):
    later = {*ARROWS[ARROWS.index(package) + 1 :], "pretrain", "finetune", "publish"}
    for file in (ROOT / package).rglob("*.py"):
        for dots, module in imports(file):
            assert dots or module.split(".")[0] not in later, f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_data_know_nothing_of_one_another(room):
    others = tuple(f"pretraining.data.{other}." for other in ROOMS if other != room)
    files = list((ROOT / "pretraining" / "data" / room).glob("*.py"))
    assert len(files) > 5
    for file in files:
        assert not [module for module in modules(file) if module.startswith(others)], file


def test_data_knows_nothing_of_what_is_made_from_it():
    for file in (ROOT / "pretraining" / "data").rglob("*.py"):
        above = {module for module in modules(file) if not module.startswith("pretraining.data.")}
        assert above <= BELOW_DATA, file


def test_what_rooms_share_knows_no_room():
    rooms = tuple(f"pretraining.data.{room}." for room in ROOMS)
    for file in (ROOT / "pretraining" / "data").glob("*.py"):
        assert not [module for module in modules(file) if module.startswith(rooms)], file


def test_pretraining_has_no_import_cycle():
    waiting = {name_of(file): modules(file) - {name_of(file)} for file in PRETRAINING}
    while ready := [name for name, imported in waiting.items() if not imported & set(waiting)]:
        for name in ready:
            del waiting[name]
    assert not waiting  # a module of a cycle, or above one, is never ready
