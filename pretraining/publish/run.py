"""From a run's model to what others use: the order of publishing, read aloud."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

from pretraining.errors import UserError
from pretraining.files import SUMS, changed, check_writable, read_sums
from pretraining.publish.card import pin, write_card
from pretraining.publish.card_data import check_license
from pretraining.publish.cli import Options
from pretraining.publish.environments import resolve
from pretraining.publish.explore import write_page
from pretraining.publish.native import write_proven_native
from pretraining.publish.push import Pushed, check_card, check_repo, push, read_there, upload
from pretraining.publish.report import Report
from pretraining.publish.source import Source, find_source
from pretraining.publish.verify import run_examples, verify

CARD = "README.md"


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A file a second time: by a hard link, which takes no room, or, on another disk, as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def stage(source: Source, out: Path, options: Options, sums: dict[str, str]) -> Path:
    """Puts what is pushed into `repo/`: the model's files and what this command made of it, all but the card.

    What lies in the model's folder and was not written by training stays there: it may be somebody's secret. What an
    earlier command made may be of an earlier model.

    Args:
        sums: of the model's files, which were verified.

    Raises:
        UserError: a file of the model has changed since.
    """
    repo, unfinished = out / "repo", out / "repo.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for name in (SUMS, *sums):
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            link_or_copy(os.path.realpath(source.folder / name), unfinished / name)
    if changed(unfinished, sums) or read_sums(unfinished) != sums:
        raise UserError(f"{source.folder} has changed since it was verified: give the same command again.")
    left = {path.name for path in source.folder.iterdir()} - {Path(name).parts[0] for name in sums}
    if left := left - {SUMS, CARD, "__pycache__"}:
        print(f"not part of what is published, since training did not write it: {', '.join(sorted(left))}")
    if options.native:
        shutil.copytree(out / "native", unfinished / "native", copy_function=link_or_copy)
    for name in ("verify.json", *(["explore.html"] if options.explore is not None else [])):
        shutil.copy2(out / name, unfinished / name)
    shutil.rmtree(repo, ignore_errors=True)
    os.replace(unfinished, repo)
    return repo


@contextmanager
def claim_out(source: Source, options: Options) -> Iterator[Path]:
    """The folder that is written to, which is this process's while the `with` lasts.

    Raises:
        UserError: it lies in the model's folder, cannot be written to, holds what nobody here has made, or is another
            process's.
    """
    out = (options.out or source.folder.parent / "publish").absolute()
    if out.resolve().is_relative_to(source.folder.resolve()):
        raise UserError(f"--out {out} lies in the model's folder, which stays as training wrote it: give another one.")
    check_writable(out, "--out")
    for made in (out / "native", out / "repo"):
        if made.exists() and not (made / "config.json").exists():
            raise UserError(f"{made} holds something else than a model: move it away, or give another --out.")
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another publish.py is writing to {out}: wait for it, or give another --out.") from error
    try:
        yield out
    finally:
        lock.release()


def prove(source: Source, options: Options, versions: list[str], out: Path) -> Report:
    """Verifies the model, and prints the report.

    Raises:
        UserError: a check failed.
    """
    report = verify(source, source.folder, versions, out, options.cache)
    print(report.to_markdown())
    if not report.passed:
        names = ", ".join(dict.fromkeys(check.name for _, check in report.failures))
        raise UserError(
            f"{source.folder} fails verification ({names}), so nothing goes on from here: {out / 'verify.md'} says "
            "what to do about each."
        )
    return report


def describe(
    source: Source, repo: Path, options: Options, report: Report | None, native: dict[str, Any] | None
) -> None:
    """Writes the card, and runs its examples.

    Raises:
        UserError: an example failed.
    """
    possible = re.sub(r"[^\w.]+", "-", source.name, flags=re.ASCII).strip("-.")  # as the Hub takes a name
    name = options.repo or f"me/{possible or 'model'}"
    card = write_card(
        source,
        repo,
        repo=name,
        report=report,
        native=native,
        command=options.command,
        license=options.license,
        example=options.example,
    )
    if options.repo is not None:
        check_card(options.repo, card.read_text(encoding="utf-8"))
    examples = run_examples(card, repo)
    for example in examples:
        if example.result == "failed":
            raise UserError(
                f"{example.name} of {card} does not run ({example.detail}), so nothing goes on from here: mend what it "
                "shows, or the card."
            )
    print(f"card: {card}, whose {len(examples)} examples run")


def push_in_two(repo: Path, options: Options, name: str) -> Pushed:
    """Pushes all but the card, and then the card, whose examples name the first commit: none can hold its own hash."""
    assert options.repo is not None
    how: dict[str, Any] = {"private": options.private, "branch": options.branch, "message": f"{name}, verified"}
    commit = upload(repo, options.repo, **how, without=CARD)
    pin(repo / CARD, commit, read_there(options.repo, CARD, commit))
    return push(repo, options.repo, **how, tag=options.tag)


def publish(options: Options) -> None:
    """All that was asked for; whatever fails ends it before anything is pushed.

    Raises:
        UserError: a mistake of the user's, or a check of the model that failed.
    """
    logging.disable_progress_bar()  # of loading, which takes a moment
    source = find_source(options.folder)
    versions = resolve(options.versions) if options.versions is not None else []
    if options.wants_card:  # what a card or a push lacks is told before minutes of work
        license = check_license(options.license)
    if options.repo is not None:
        check_repo(options.repo, options.branch, options.tag, options.private)
        check_card(options.repo, f"---\nlicense: {license}\n---\n")
    with claim_out(source, options) as out:
        native = report = None
        sums = read_sums(source.folder)
        if options.wants_report:
            report = prove(source, options, versions, out)
            print(f"verified: {out / 'verify.md'}")
        elif names := changed(source.folder, sums):
            raise UserError(
                f"{source.folder} is not as training wrote it ({', '.join(names)}): run the command of its training "
                "again, or let --verify tell more."
            )
        if options.native:
            native = write_proven_native(source, out / "native")
            print(f"native: {out / 'native'}")
        if options.explore is not None:
            print(f"explore: {write_page(source, options.explore, out / 'explore.html')}")
        if options.wants_card:
            repo = stage(source, out, options, sums)
            describe(source, repo, options, report, native)
        if options.repo is not None:
            pushed = push_in_two(repo, options, source.name)
            print(f"pushed: {pushed.url}, commit {pushed.commit}")
