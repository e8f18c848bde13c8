"""The house rules on imports: what the Hub's copier sees, and which package may know which."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARROWS = ["modeling", "pretraining", "finetuning"]  # each may import those before it, never those after
MODELING = sorted((ROOT / "modeling").glob("*.py"))


def imports(file: Path) -> list[tuple[int, str]]:
    """(dots, module) of every import of a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


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
