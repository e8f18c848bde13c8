"""A folder becomes a repository on the Hub, in commits that resume, and what has arrived is compared with it."""

import re
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from huggingface_hub import HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from pretraining.errors import UserError, tell
from pretraining.publish.arrival import compare_files, compare_outputs
from pretraining.publish.hub_errors import LOG_IN, Unreachable, hub_errors, words

# Seconds before each further attempt at an upload that broke off; the client itself has tried each request for half a
# minute by then.
WAITS = (5, 30, 60)
# Files of an earlier model which would be read instead of this one's, or beside them: transformers adds the tokens of
# added_tokens.json, and prefers processor_config.json. Whatever else lies in the repository is left there.
STALE = [
    *("*.safetensors", "*.safetensors.index.json", "*.py", "native/*", "target/*", ".eval_results/*", "explore.html"),
    *("generation_config.json", "preprocessor_config.json", "processor_config.json", "adapter_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "chat_template.*"),
]
# What git refuses in the name of a branch or a tag.
NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|(^|/)\.|\.lock(/|$)|^[-/]|[/.]$|^@?$")


class Pushed(NamedTuple):
    url: str
    """Where people see it."""
    commit: str
    """What `revision=` takes, for ever the same files."""


def check_name(repo: str, setting: str = "--repo") -> None:
    """Raises UserError where the Hub would refuse the name; nothing is asked of it."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"{setting}: {repo} is no name of a repository ({words(error)}): give me/name, of letters, digits, '-', "
            "'_' and '.'."
        ) from error
    if "/" not in repo:
        raise UserError(f"{setting}: {repo} does not say whose it is: give NAME/{repo}, yours or an organisation's.")


def check_ref(name: str | None, setting: str) -> None:
    """Raises UserError where git refuses the name of a branch or a tag, or it would be taken for something else."""
    if name is not None and (NO_REF.search(name) or re.match("refs/|[0-9a-f]{40}$", name)):
        raise UserError(
            f"{setting}: {name!r} is no name of a branch or a tag: give one of letters, digits, '-', '_', '.' and '/', "
            "as in v1.0."
        )


def check_refs(api: HfApi, repo: str, branch: str | None, tag: str | None) -> None:
    """Raises UserError where the repository's branches and tags leave no room for these."""
    refs = api.list_repo_refs(repo)
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if branch in tags:
        raise UserError(f"--branch: {branch} is a tag of {repo}: give another name.")
    if tag in {*branches, branch or "main"}:
        raise UserError(f"--tag: {tag} is a branch of {repo}: give another name.")
    if tag in tags and tags[tag] != branches.get(branch or "main"):  # else there may be nothing new to push
        raise UserError(f"--tag: {tag} is the name of another commit of {repo}, {tags[tag]}: give another --tag.")


def check_private(api: HfApi, repo: str) -> None:
    """Raises UserError where all can see the repository."""
    if not api.model_info(repo).private:
        raise UserError(
            f"{repo} is to be private, and is there already for all to see: make it private in its settings, or name "
            "another."
        )


def check_repo(
    repo: str, branch: str | None = None, tag: str | None = None, private: bool = False, setting: str = "--repo"
) -> None:
    """Whether a push can succeed, before there is anything to push: names, connection, token and rights.

    Args:
        branch: that is pushed to; None: main.
        tag: of the commit; None: none.
        private: nobody else may see it.
        setting: what named the repository.

    Raises:
        UserError: it cannot.
    """
    check_name(repo, setting)
    check_ref(branch, "--branch")
    check_ref(tag, "--tag")
    api, token = HfApi(), get_token() or ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(f"the token has a character that no token has, as a space or an accent: {LOG_IN}.")
    with hub_errors(repo):
        account = api.whoami()
        # A fine-grained token has no such role; for an existing repository the next question tells its rights.
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(f"the token may only read, and not write to {repo}: {LOG_IN}.")
        owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
        if repo.partition("/")[0].lower() not in [owner.lower() for owner in owners]:
            raise UserError(
                f"{setting}: {repo} would be neither yours nor an organisation's of yours: begin it with "
                f"{' or '.join(owners)}."
            )
        with suppress(RepositoryNotFoundError):  # it is yet to be made
            api.auth_check(repo, write=True)
            check_refs(api, repo, branch, tag)
            if private:
                check_private(api, repo)


def check_card(repo: str, text: str) -> None:
    """Raises UserError where the Hub refuses a card for its head: it knows licenses and tasks by their names."""
    with hub_errors(repo):
        try:
            ModelCard(text).validate()
        except ValueError as error:
            raise UserError(f"{constants.ENDPOINT} refuses the card ({words(error)}): mend that.") from error


def push(folder: Path, repo: str, *, private: bool, branch: str | None, tag: str | None, message: str) -> Pushed:
    """Makes the repository where there is none, uploads the folder, and opens what has arrived.

    Run again after whatever stopped it, it sends what has not arrived; nothing but the repository is written to.

    Args:
        private: nobody else may see it; a repository that all can see is refused.
        branch: made from main where there is none; None: main.
        tag: a name for the commit, given once it has been compared.

    Raises:
        UserError: whatever went wrong between us and the Hub, or something else has arrived.
    """
    commit = upload(folder, repo, private=private, branch=branch, message=message)
    compare_outputs(folder, repo, commit)
    api = HfApi()
    if tag is not None:
        with hub_errors(repo):
            api.create_tag(repo, tag=tag, revision=commit, exist_ok=True)
            named = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}
        if named[tag] != commit:
            raise UserError(
                f"--tag: {tag} is the name of another commit of {repo}, {named[tag]}; the model was pushed all the "
                f"same, as {commit}: give it another --tag."
            )
    return Pushed(f"{constants.ENDPOINT}/{repo}" + (f"/tree/{branch}" if branch else ""), commit)


def upload(
    folder: Path, repo: str, *, private: bool, branch: str | None, message: str, without: str | None = None
) -> str:
    """Like `push`, but what has arrived is compared by its hashes alone; returns the commit.

    Args:
        without: a file of the folder that stays here.
    """
    check_name(repo)
    api, waits = HfApi(), iter(WAITS)
    while True:
        try:
            with hub_errors(repo):
                prepare_repository(api, repo, private, branch)
                done = api.upload_folder(
                    repo_id=repo,
                    folder_path=folder,
                    revision=branch,
                    commit_message=message,
                    delete_patterns=STALE,
                    ignore_patterns=without,
                )
                compare_files(folder, repo, done.oid, api, without)
            return done.oid
        except Unreachable as error:
            wait = next(waits, None)
            if wait is None:
                raise
            tell(f"{error} Tried again in {wait} s.")
            time.sleep(wait)


def read_there(repo: str, name: str, commit: str) -> str | None:
    """The text of a file in a commit; None where there is no such file."""
    with TemporaryDirectory() as folder, hub_errors(repo), suppress(EntryNotFoundError):
        path = HfApi().hf_hub_download(repo, name, revision=commit, local_dir=folder)
        return Path(path).read_text(encoding="utf-8")
    return None


def prepare_repository(api: HfApi, repo: str, private: bool, branch: str | None) -> None:
    """Makes the repository and the branch, where they are not there."""
    api.create_repo(repo, private=private, exist_ok=True)
    if private:
        check_private(api, repo)
    if branch is not None:
        api.create_branch(repo, branch=branch, exist_ok=True)
