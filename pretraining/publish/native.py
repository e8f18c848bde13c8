"""The native form of a model (bert, marian or vit), handed over only when a stranger's process has proven it equal."""

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from pretraining import files
from pretraining.errors import UserError, one_line
from pretraining.export import write_native
from pretraining.publish import prove_native
from pretraining.publish.fresh import run_fresh
from pretraining.publish.native_cases import write_cases
from pretraining.publish.source import Source


def write_proven_native(source: Source, folder: Path) -> dict[str, Any]:
    """Writes the native form with all its heads, and with what lies beside the weights; a folder of before is replaced.

    Returns:
        The figures of its proof, as `prove` gives them.

    Raises:
        UserError: the model has no native form, or the native one was not equal in everything.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)  # each time, not the first time alone
        try:
            write_native(source.folder, unfinished)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{source.folder} cannot be published as a native model: {one_line(error)}") from error
    found = prove(source, unfinished)
    if failed := [check for check in found["checks"] if not check["passed"]]:
        told = "; ".join(f"{check['name']}: {check['detail']}" for check in failed)
        raise UserError(
            f"the native form in {unfinished} is not the model in {source.folder} ({told}): it is not handed over; "
            "publish without --native, and report this."
        )
    shutil.rmtree(folder, ignore_errors=True)
    files.publish(unfinished, folder)
    return found | {"notes": [str(note.message) for note in notes if note.category is UserWarning]}


def prove(source: Source, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What a fresh process, which has nothing of ours, finds when it compares a native form with our model.

    Returns:
        The native class and model_type, the Auto classes that open it with the arguments they need, the tolerance, the
        largest difference of any output, and `checks`, each with name, passed and detail.
    """
    with tempfile.TemporaryDirectory() as name:
        cases = Path(name)
        write_cases(source, cases, dtype)
        ended = run_fresh(prove_native.__file__, str(folder.absolute()), name)
        if ended.returncode:
            told = ended.stderr.strip().splitlines()[-1]
            raise UserError(f"the native form in {folder} cannot be opened without our code ({told}): report this.")
    return json.loads(ended.stdout.splitlines()[-1])
