"""The README's table from the papers to the code: each symbol's line and citation, found by `ast`.

    python -m tests.readme [--write]

A row is `| idea | papers | [`symbol`](path#Lline), ... |`. It ends with status 1 where a line is wrong, unless
`--write` puts the right ones into the README.
"""

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LINK = re.compile(r"\[`([\w.]+)`\]\(([\w./]+)#L(\d+)\)")


class Place(NamedTuple):
    """Where a symbol is defined."""

    line: int
    text: str
    """Its code, of a field also the docstring below it, behind the module's docstring; spaces are single."""


def named(statements: list[ast.stmt], name: str) -> int:
    """Which of these statements defines a name.

    Raises:
        LookupError: none does.
    """
    for index, statement in enumerate(statements):
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if name in [getattr(statement, "name", None), *names]:
            return index
    raise LookupError(name)


def find(path: Path, symbol: str) -> Place:
    """Where `Class.method`, `Class.field`, a class, a function or a constant stands in a file.

    Raises:
        LookupError: nowhere.
    """
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    statements, found = tree.body, tree.body[0]
    for name in symbol.split("."):
        index = named(statements, name)
        found = statements[index]
        after = statements[index + 1 : index + 2]
        statements = getattr(found, "body", [])
    last = found
    if isinstance(found, ast.AnnAssign) and after and isinstance(after[0], ast.Expr):
        last = after[0]
    lines = source.splitlines()[found.lineno - 1 : last.end_lineno]
    return Place(found.lineno, " ".join(f"{ast.get_docstring(tree) or ''}\n{' '.join(lines)}".split()))


def rows(text: str) -> list[tuple[str, list[str], list[re.Match[str]]]]:
    """The table's rows: idea, papers, and links into the code."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 3 and LINK.search(cells[2]):
            found.append((cells[0], cells[1].split("; "), list(LINK.finditer(cells[2]))))
    return found


def corrected(text: str) -> str:
    """The README with every symbol's own line."""
    return LINK.sub(lambda link: f"[`{link[1]}`]({link[2]}#L{find(ROOT / link[2], link[1]).line})", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the right lines into the README")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    right = corrected(text)
    wrong = [
        f"{old[0]} stands at line {new[3]}"
        for old, new in zip(LINK.finditer(text), LINK.finditer(right), strict=True)
        if old[0] != new[0]
    ]
    print(*wrong, sep="\n")
    if options.write:
        README.write_text(right, encoding="utf-8")
    elif wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
