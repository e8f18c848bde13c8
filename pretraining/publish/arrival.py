"""Whether what lies in a repository is what was pushed: by its hashes, and by what the model in it computes."""

import json
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.utils.sha import git_hash

from pretraining.errors import UserError
from pretraining.files import sha256
from pretraining.publish.fresh import run_fresh
from pretraining.publish.hub_errors import without_token

STRANGER = Path(__file__).with_name("stranger.py")


def compare_files(folder: Path, repo: str, commit: str, api: HfApi, without: str | None = None) -> None:
    """Raises UserError where a file of the folder, but the one it is `without`, is not in the commit as it is here."""
    listed = api.list_repo_tree(repo, revision=commit, recursive=True)
    there = {file.path: file for file in listed if isinstance(file, RepoFile)}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == without:
            continue
        file = there.get(name)
        if file is None or file.size != path.stat().st_size or digest_there(file) != digest_here(path, file):
            raise UserError(
                f"{name} is {'missing in' if file is None else 'not what was pushed to'} {repo} at {commit}: give the "
                "same command again."
            )


def digest_there(file: RepoFile) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id


def digest_here(path: Path, file: RepoFile) -> str:
    """As the repository computes it: large files by SHA-256, all others as git does."""
    return sha256(path) if file.lfs else git_hash(path.read_bytes())


def compare_outputs(folder: Path, repo: str, commit: str) -> None:
    """Opens the commit as a stranger would, in a fresh process with empty caches, and compares with the folder.

    Raises:
        UserError: it does not open, or an output differs by a bit.
    """
    with tempfile.TemporaryDirectory() as cache:
        done = run_fresh(STRANGER, folder.absolute(), repo, commit, HF_HUB_OFFLINE="0", HF_HUB_CACHE=cache)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{repo} at {commit} was pushed, and does not open from there: {without_token(said)}.")
    for form, difference in json.loads(done.stdout.splitlines()[-1]).items():
        if difference != 0:
            raise UserError(
                f"{form} in {repo} at {commit} was pushed, and computes something else than the folder's: outputs "
                f"differ by up to {difference:g}."
            )
