"""Under which versions is a checkpoint opened? Virtual environments with a transformers of their own, made once."""

import json
import subprocess
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires, version
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from pretraining.errors import UserError, one_line, tell
from pretraining.files import check_writable, writing_to

NEWEST = "newest"
# What reads images, and what exports to ONNX: transformers itself asks for neither.
BESIDE = ("pillow", "onnx", "onnxscript", "onnxruntime")
# Parts of torch that are distributions of their own and as large as torch: linked as it is, not installed again.
LARGE = ("torch", "triton", "nvidia", "cuda")


def allowed_range() -> Requirement | None:
    """The versions of transformers that Keel allows; None where Keel is not installed, and does not say."""
    try:
        found = [Requirement(line) for line in requires("keel") or ()]
    except PackageNotFoundError:
        return None
    (requirement,) = (each for each in found if each.name == "transformers")
    return requirement


def pip(*arguments: str) -> str:
    """What pip prints, ours; `--python` in front of its command makes it work on another environment.

    Raises:
        UserError: it failed; most often the network did.
    """
    if find_spec("pip") is None:
        raise UserError("--versions needs pip, which is not installed here: run python -m ensurepip.")
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--retries", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr]
        raise UserError(
            f"an environment for --versions cannot be made ({one_line(Exception(lines[-1]))}): check the network and "
            "the version's number, or leave --versions out, and what is installed here is taken."
        )
    return done.stdout


def newest_version(requirement: Requirement | None) -> str:
    """The newest release that the requirement allows."""
    if requirement is None:
        raise UserError(
            "--versions newest asks which versions Keel allows, and Keel is not installed: give the version itself, "
            "or install Keel as the README says."
        )
    options = ("--dry-run", "--quiet", "--no-deps", "--ignore-installed", "--report", "-")
    report = json.loads(pip("install", *options, str(requirement)))
    return report["install"][0]["metadata"]["version"]


def resolve(versions: str) -> list[str]:
    """`5.23.0,newest` as numbers, each once.

    Raises:
        UserError: one is no version's number, or is older than Keel allows, or the newest cannot be asked for.
    """
    requirement = allowed_range()
    oldest = [Version(part.version) for part in requirement.specifier if part.operator == ">="] if requirement else []
    numbers = []
    for name in map(str.strip, versions.split(",")):
        try:
            numbers.append(Version(newest_version(requirement) if name == NEWEST else name))
        except InvalidVersion:
            raise UserError(
                f"--versions {versions}: {name!r} is no version of transformers; give numbers and {NEWEST}, separated "
                "by commas, as in 5.23.0,newest."
            ) from None
        if any(numbers[-1] < each for each in oldest):  # a newer one than is allowed may be tried
            raise UserError(
                f"--versions {versions}: the models' code needs transformers {max(oldest)} at least: leave {name} out."
            )
    return [str(number) for number in dict.fromkeys(numbers)]


def parts_of_torch() -> tuple[list[Distribution], list[str]]:
    """Torch with its large parts, and the requirements of small ones."""
    large, small, left = {}, set(), ["torch"]
    while left:
        name = left.pop()
        if name in large:
            continue
        large[name] = distribution(name)
        for line in large[name].requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                if needed.name.startswith(LARGE):
                    left.append(needed.name)
                else:
                    small.add(f"{needed.name}=={version(needed.name)}")
    return list(large.values()), sorted(small)


def link(package: Distribution, site: Path) -> None:
    """Puts an installed distribution into another environment, by links to its folders and files."""
    tops = {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        target = site / top
        if not target.exists():
            target.symlink_to(Path(str(package.locate_file(top))).resolve())


def environment(number: str, cache: Path) -> Path:
    """The Python of a virtual environment with this transformers and the torch that runs now, which is linked.

    Gigabytes are not loaded again, and outputs compare bit by bit.

    Raises:
        UserError: it cannot be made.
    """
    here = f"{torch.__version__}-python{sys.version_info.major}.{sys.version_info.minor}".replace("+", "-")
    place = cache.expanduser() / "environments" / f"transformers-{number}-torch-{here}"
    check_writable(place.parent, "--cache")
    python, ready = place / "bin" / "python", place / "ready"
    with FileLock(f"{place}.lock"), writing_to(place, "--cache"):
        # Where Python or torch was moved since, the links lead nowhere.
        whole = ready.exists() and python.exists()
        if whole and ready.read_text(encoding="utf-8") == str(Path(torch.__file__).resolve()):
            return python
        tell(f"making an environment with transformers {number}, once: {place}")
        venv.create(place, clear=True)
        large, small = parts_of_torch()
        packages = [f"transformers=={number}", f"numpy=={version('numpy')}", *BESIDE, *small]
        pip("--python", str(python), "install", "--quiet", *packages)
        (site,) = place.glob("lib/python*/site-packages")
        for package in large:  # after pip, which would uninstall through a link what it wants to replace
            link(package, site)
        ready.write_text(str(Path(torch.__file__).resolve()), encoding="utf-8")
    return python
