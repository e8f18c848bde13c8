"""Run the tests under the oldest, the locked and the newest versions that pyproject.toml allows, and under others.

    python -m tests.versions [lowest locked newest NAME==VERSION ...] [--tests tests/modeling ...] [--environments DIR]
    python -m tests.versions [SET ...] --install [--environments DIR]
    python -m tests.versions --lock

`lowest` installs every requirement at the lower end of its range, `newest` at the newest release that it allows,
`locked` what constraints.txt says. `transformers==5.25.0` installs that release over `newest`, whatever the range says:
what it breaks is told by name. Each set has a virtual environment of its own, made once and kept in DIR. A table for
people, the names of what failed, and one line of JSON; the exit status is 1 where anything failed. `--install` makes
the environments and tests nothing. `--lock` writes constraints.txt anew, from `newest`.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
import tomllib
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tests.benchmarks.rounds import print_table

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
SHOWN = ("torch", "transformers", "datasets", "accelerate", "tokenizers")  # what moves every week
TOLD = 20  # names of failed tests


def requirements() -> list[Requirement]:
    """Those of the project and of its tests that have a range."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("engines", "adapters", "search", "test")
    listed = [
        Requirement(line) for line in (*project["dependencies"], *(line for name in names for line in extras[name]))
    ]
    return [requirement for requirement in listed if requirement.specifier]


def lower_end(requirement: Requirement) -> str:
    """The version that the range begins with."""
    (lowest,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return lowest


def constraints(chosen: str) -> str:
    """What pip may install of a set, a line for each package."""
    if chosen == "lowest":
        return "".join(f"{requirement.name}=={lower_end(requirement)}\n" for requirement in requirements())
    return LOCK.read_text() if chosen == "locked" else ""


def run(*command: str | Path) -> str:
    """What a command prints; its last lines and the end of the program where it fails."""
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def environment(chosen: str, folder: Path) -> Path:
    """The Python of the set's virtual environment, which is made where it is not there yet."""
    content = "\n".join([chosen, sys.version, (ROOT / "pyproject.toml").read_text(), constraints(chosen)])
    place = folder / f"{chosen}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    python, ready = place / "bin" / "python", place / "ready"
    if not ready.exists():
        venv.create(place, with_pip=True, clear=True)
        limits = place / "constraints.txt"
        limits.write_text(constraints(chosen))
        run(python, "-m", "pip", "install", "--quiet", "--editable", ".[test]", "--constraint", limits)
        if "==" in chosen:
            run(python, "-m", "pip", "install", "--quiet", chosen)
        ready.touch()
    return python


def installed(python: Path) -> dict[str, str]:
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json", "--exclude-editable"))
    return {package["name"].lower(): package["version"] for package in listed}


def test(python: Path, tests: list[str], report: Path) -> dict[str, Any]:
    """How many tests passed, and the names of those that did not; no test at all is one failure."""
    started = time.monotonic()
    command = [python, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    failed: list[str] = []
    passed = 0
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" not in kinds:
            passed += 1
    if done.returncode and not failed:  # it did not come so far as to run one
        failed = [" ".join((done.stdout + done.stderr).split())[-300:]]
    return {"passed": passed, "failed": failed, "minutes": (time.monotonic() - started) / 60}


def write_lock(folder: Path) -> None:
    """Every package of `newest`; a local version such as +cpu is another build of the same release."""
    versions = installed(environment("newest", folder))
    lines = [f"{name}=={version.partition('+')[0]}" for name, version in sorted(versions.items())]
    ours = {"pip", "setuptools", "wheel"}  # the environment's own
    kept = [line for line in lines if line.partition("==")[0] not in ours]
    head = "# What the README installs; `python -m tests.versions --lock` writes it.\n"
    LOCK.write_text(head + "\n".join(kept) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help="lowest, locked, newest or NAME==VERSION; default: 3")
    parser.add_argument("--tests", nargs="+", default=["tests/modeling"], help="what pytest runs")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "versions", metavar="DIR")
    parser.add_argument("--install", action="store_true", help="make the environments, and end")
    parser.add_argument("--lock", action="store_true", help="write constraints.txt from newest, and end")
    options = parser.parse_args()
    chosen = options.sets or ["lowest", "locked", "newest"]
    for name in chosen:
        if name not in ("lowest", "locked", "newest") and "==" not in name:
            parser.error(f"{name} is no set: name lowest, locked, newest or a release such as transformers==5.25.0.")
    options.environments.mkdir(parents=True, exist_ok=True)
    if options.lock:
        write_lock(options.environments.resolve())
        return
    if options.install:
        for name in chosen:
            environment(name, options.environments.resolve())
        return
    results: dict[str, dict[str, Any]] = {}
    for name in chosen:
        print(f"{name}: installing", file=sys.stderr, flush=True)
        python = environment(name, options.environments.resolve())
        versions = installed(python)
        print(f"{name}: testing", file=sys.stderr, flush=True)
        found = test(python, options.tests, python.parents[1] / "report.xml")
        results[name] = {"versions": {package: versions[package] for package in SHOWN}, **found}
    print_table(
        ["set", *SHOWN, "passed", "failed", "minutes"],
        *(
            [name, *row["versions"].values(), f"{row['passed']:,}", f"{len(row['failed']):,}", f"{row['minutes']:.1f}"]
            for name, row in results.items()
        ),
    )
    for name, row in results.items():
        for test_name in row["failed"][:TOLD]:
            print(f"{name}: failed {test_name}")
        if len(row["failed"]) > TOLD:
            print(f"{name}: and {len(row['failed']) - TOLD:,} more")
    print(json.dumps(results))
    sys.exit(any(row["failed"] for row in results.values()))


if __name__ == "__main__":
    main()
