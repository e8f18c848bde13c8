"""How many lines a reader meets: python -m tests.lines

One table for the reading path (the models, and the loop with what it calls), one for all Python but tests. Every line
of a file counts: code, comments, docstrings and blank lines. The path ends in `bert.py` where its heads for fine-tuning
begin, as in the README. A file of the reading path that is missing is an error.
"""

from collections import Counter
from pathlib import Path

from tests.benchmarks.rounds import print_table

ROOT = Path(__file__).parents[1]
# Conversion, search and the list of exports are read by those who need them.
NOT_ON_THE_PATH = {"__init__.py", "convert.py", "search.py", "search_weights.py"}
LOOP = [f"pretraining/{name}.py" for name in ("loop", "step", "batches", "evaluate")]
HEADS = "# Heads for fine-tuning"
PACKAGES = ("modeling", "pretraining", "finetuning")


def count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def count_on_path(path: Path) -> int:
    """The lines of a file of the reading path, up to heads for fine-tuning if it has any."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines) if line.startswith(HEADS)), len(lines))


def reading_path() -> list[Path]:
    models = sorted(path for path in (ROOT / "modeling").glob("*.py") if path.name not in NOT_ON_THE_PATH)
    return [*models, *(ROOT / name for name in LOOP)]


def by_package() -> Counter[str]:
    """Lines of each folder of Python; those of the programs at the root under the root's name."""
    lines = Counter({"verbs": sum(map(count, ROOT.glob("*.py")))})
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            lines[str(path.parent.relative_to(ROOT))] += count(path)
    return lines


def main() -> None:
    path = {str(file.relative_to(ROOT)): count_on_path(file) for file in reading_path()}
    for title, lines in (("reading path", path), ("all but tests", by_package())):
        rows = [[name, f"{number:,}"] for name, number in lines.items()]
        print_table([title, "lines"], *rows, ["together", f"{sum(lines.values()):,}"])


if __name__ == "__main__":
    main()
