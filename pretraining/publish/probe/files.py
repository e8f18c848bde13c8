"""Are the files whole, and those that training wrote?"""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath

import torch
from safetensors import safe_open

from .check import Fault
from .checkpoint import Checkpoint

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (\S[^\r]*)")  # as `sha256sum` writes it
# A file of these kinds is run, or read as weights or settings.
LOADED = {".py", ".safetensors", ".bin", ".pt", ".pth", ".pkl", ".json", ".jinja"}
OURS = {"verify.json"}  # publishing writes it beside them


def own_files(folder: Path) -> set[str]:
    """The files in a folder, without those of folders in it that have sums of their own."""
    others = {path.parent for path in folder.rglob(SUMS)} - {folder}
    paths = (path for path in folder.rglob("*") if path.is_file() and not others & set(path.parents))
    return {path.relative_to(folder).as_posix() for path in paths} - {SUMS}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sums(checkpoint: Checkpoint) -> str:
    """Every file is the one that SHA256SUMS names."""
    folder = checkpoint.folder
    if not (folder / SUMS).exists():
        raise Fault(f"{SUMS} is missing, so nothing says which files training wrote")
    recorded = checkpoint.metadata.get("sums")
    if recorded is not None and sha256(folder / SUMS) != recorded:
        raise Fault(f"{SUMS} is another one than training's")
    wrong, listed = [], set()
    text = (folder / SUMS).read_bytes().decode(errors="replace")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        found = LINE.fullmatch(line)
        if found is None:
            raise Fault(f"line {number} of {SUMS} is no SHA-256 and path")
        digest, name = found.groups()
        listed.add(name)
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            wrong.append(f"{name} in {SUMS} is no file of the model's folder")
        elif not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif sha256(folder / name) != digest:
            wrong.append(f"{name} is another file than training's")
    extra = {name for name in own_files(folder) - listed - OURS if Path(name).suffix in LOADED}
    wrong += [f"{name} is listed nowhere: training did not write it" for name in sorted(extra)]
    if wrong:
        raise Fault("; ".join(wrong))
    return f"{len(listed)} files"


def check_weights_file(checkpoint: Checkpoint) -> str:
    """The files of weights open, are whole, and hold finite numbers of the configuration's dtype."""
    folder = checkpoint.folder
    names = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if not names:
        raise Fault("there is no file of weights")
    count, dtype = 0, checkpoint.fields.get("dtype")
    for name in sorted(names):
        try:
            with safe_open(folder / name, "pt") as file:
                for key in file.keys():  # noqa: SIM118, it is no dict
                    weight = file.get_tensor(key)
                    count += weight.numel()
                    if not torch.isfinite(weight).all():
                        raise Fault(f"{key} in {name} is not finite")
                    if weight.dtype != getattr(torch, str(dtype), None):
                        raise Fault(f"{key} in {name} is {weight.dtype}, and the dtype in config.json {dtype}")
        except Fault:
            raise
        except Exception as error:  # the library has errors of its own
            raise Fault(f"{name} is not whole: {error}") from error
    return f"{count:,} numbers in {len(names)} file{'s' * (len(names) > 1)}"


def check_auto_map(checkpoint: Checkpoint) -> str:
    """Every Auto class of the family is named, and leads to a class that is there."""
    named = checkpoint.fields.get("auto_map")
    if not named:
        raise Fault("config.json has no auto_map, so no Auto class finds the code")
    if not isinstance(named, dict):
        raise Fault(f"auto_map in config.json is {named!r}, not a class of code for each Auto class")
    for auto, reference in named.items():
        if not re.fullmatch(r"\w+\.\w+", str(reference)):
            raise Fault(f"{auto} in auto_map is {reference!r}, not the file and the class of code that lies here")
        file, defined = checkpoint.modules_of(reference)
        if reference.rpartition(".")[2] not in defined:
            raise Fault(f"{auto} leads to {reference}, and {file} defines no such class")
    expected = type(checkpoint.config)().auto_map
    wrong = [f"{auto} is {named.get(auto)}, not {name}" for auto, name in expected.items() if named.get(auto) != name]
    wrong += [f"{auto} is none of this family's" for auto in named if auto not in expected]
    if wrong:
        raise Fault("; ".join(wrong))
    return ", ".join(named)
