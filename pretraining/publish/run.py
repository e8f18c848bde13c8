"""From a run's model to what others use: the order of publishing, read aloud."""

import argparse
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.errors import UserError
from pretraining.settings import CACHE

if TYPE_CHECKING:
    from pretraining.publish.report import Report
    from pretraining.publish.source import Source

CARD = "README.md"


@dataclass(frozen=True)
class Options:
    """What publish.py is asked for."""

    folder: Path
    verify: bool
    versions: str | None
    native: bool
    card: bool
    explore: list[str] | None
    repo: str | None
    private: bool
    branch: str | None
    tag: str | None
    out: Path | None
    cache: Path
    command: str
    """The command line itself."""

    @property
    def wants_card(self) -> bool:
        return self.card or self.repo is not None

    @property
    def wants_report(self) -> bool:
        """Whether the model is verified: on demand, where a card tells of it, and where nothing is asked for."""
        return self.verify or self.wants_card or not (self.native or self.explore is not None)


def parse(arguments: list[str] | None = None) -> Options:
    """The command line, or `arguments` instead of it."""
    parser = argparse.ArgumentParser(
        prog="publish.py",
        description="Hands a trained model over: proves that it works for somebody who has no Keel, converts it, "
        "writes its card, and pushes it to the Hub. With DIR alone it verifies.",
        epilog="Everything is written into OUT: verify.md and verify.json, native/, explore.html, and repo/, which is "
        "what --repo pushes. A model that fails verification is never pushed.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="A run's folder, runs/NAME, or its model/.")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="Open the model in a process without Keel under every Auto class, and check that it computes, bit for "
        "bit, what it computed at training's end, and that transformers' own tools take it. So do --card and --repo.",
    )
    parser.add_argument(
        "--versions",
        metavar="V,V",
        help="The versions of transformers to verify under, as in 5.23.0,newest (newest: the newest release that Keel "
        "allows). Each gets an environment in CACHE, made once. Default: the installed version alone.",
    )
    parser.add_argument(
        "--native",
        action="store_true",
        help="Write the same model as transformers' own bert, marian or vit, which opens without trust_remote_code.",
    )
    parser.add_argument("--card", action="store_true", help="Write the model card, and run its examples.")
    parser.add_argument(
        "--explore",
        nargs="*",
        metavar="INPUT",
        help="Write a page that shows the model's attention over these texts or image files, its positions and its "
        "token table; with no INPUT it takes inputs of its own.",
    )
    parser.add_argument("--repo", metavar="ME/NAME", help="Push to this model repository of the Hub.")
    parser.add_argument("--private", action="store_true", help="Create the repository as a private one.")
    parser.add_argument("--branch", help="Push to this branch. Default: main.")
    parser.add_argument("--tag", help="Tag the pushed commit.")
    parser.add_argument("--out", type=Path, help="The folder that is written to. Default: publish/ beside the model.")
    parser.add_argument("--cache", type=Path, default=Path(CACHE), help=f"Keeps environments. Default: {CACHE}.")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    for name in ("private", "branch", "tag"):
        if getattr(options, name) and options.repo is None:
            parser.error(f"--{name} is about a push: give --repo ME/NAME too.")
    return Options(**vars(options), command=shlex.join(["python", "publish.py", *given]))


def link_or_copy(source: str, target: str) -> None:
    """A file a second time: by a hard link, which takes no room, or, on another disk, as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def stage(source: "Source", out: Path) -> Path:
    """Puts what is pushed into `repo/`: the model's files and what was made of it, all but the card."""
    repo, unfinished = out / "repo", out / "repo.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    # The card is written anew; a link would lead what is written into the model's own.
    shutil.copytree(
        source.folder, unfinished, copy_function=link_or_copy, ignore=shutil.ignore_patterns(CARD, "__pycache__")
    )
    if (out / "native").exists():
        shutil.copytree(out / "native", unfinished / "native", copy_function=link_or_copy)
    for name in ("verify.json", "explore.html"):
        if (out / name).exists():
            shutil.copy2(out / name, unfinished / name)
    os.replace(unfinished, repo)
    return repo


def prepare_out(source: "Source", options: Options) -> Path:
    """The folder that is written to, without what an earlier command made there: it could be of another model.

    Raises:
        UserError: it lies in the model's folder, cannot be written to, or holds what nobody here has made.
    """
    from pretraining.files import check_writable

    out = (options.out or source.folder.parent / "publish").absolute()
    if out.resolve().is_relative_to(source.folder.resolve()):
        raise UserError(f"--out {out} lies in the model's folder, which stays as training wrote it: give another one.")
    check_writable(out, "--out")
    for made in (out / "native", out / "repo"):
        if made.exists() and not (made / "config.json").exists():
            raise UserError(f"{made} holds something else than a model: move it away, or give another --out.")
        shutil.rmtree(made, ignore_errors=True)
    for name in ("verify.json", "verify.md", "explore.html"):
        (out / name).unlink(missing_ok=True)
    return out


def prove(source: "Source", options: Options, versions: list[str], out: Path) -> "Report":
    """Verifies the model, and prints the report.

    Raises:
        UserError: a check failed.
    """
    from pretraining.publish.verify import verify

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
    source: "Source", repo: Path, options: Options, report: "Report | None", native: dict[str, Any] | None
) -> None:
    """Writes the card, and runs its examples.

    Raises:
        UserError: an example failed.
    """
    from pretraining.publish.card import write_card
    from pretraining.publish.verify import run_examples

    name = options.repo or f"me/{source.name}"
    card = write_card(source, repo, repo=name, report=report, native=native, command=options.command)
    examples = run_examples(card, repo)
    for example in examples:
        if example.result == "failed":
            raise UserError(
                f"{example.name} of {card} does not run ({example.detail}), so nothing goes on from here: mend what it "
                "shows, or the card."
            )
    print(f"card: {card}, whose {len(examples)} examples run")


def publish(options: Options) -> None:
    """All that was asked for; whatever fails ends it before anything is pushed.

    Raises:
        UserError: a mistake of the user's, or a check of the model that failed.
    """
    from pretraining.publish.environments import resolve
    from pretraining.publish.source import find_source

    source = find_source(options.folder)
    versions = resolve(options.versions) if options.versions else []
    if options.repo:
        from pretraining.publish.push import check_repo

        check_repo(options.repo)  # before minutes of work that could not be pushed
    out = prepare_out(source, options)
    native = report = None
    if options.native:
        from pretraining.publish.native import write_proven_native

        native = write_proven_native(source, out / "native")
        print(f"native: {out / 'native'}")
    if options.wants_report:
        report = prove(source, options, versions, out)
        print(f"verified: {out / 'verify.md'}")
    if options.explore is not None:
        from pretraining.publish.explore import write_page

        print(f"explore: {write_page(source, options.explore, out / 'explore.html')}")
    if options.wants_card:
        repo = stage(source, out)
        describe(source, repo, options, report, native)
    if options.repo:
        from pretraining.publish.push import push

        where, message = {"branch": options.branch, "tag": options.tag}, f"{source.name}, verified"
        pushed = push(repo, options.repo, private=options.private, **where, message=message)
        print(f"pushed: {pushed.url}, commit {pushed.commit}")
