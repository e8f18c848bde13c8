"""The command line of publish.py; nothing heavy is imported for it."""

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from pretraining.settings import CACHE


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
    license: str | None
    example: str | None
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
        "--license", metavar="ID", help="The license on the card, by the Hub's name for it: apache-2.0, cc-by-4.0."
    )
    parser.add_argument(
        "--example",
        metavar="TEXT",
        help="A text that the card's examples read. Default: one that tells nothing of your data.",
    )
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
    for argument in given:
        if not argument.isascii() and argument != argument.encode(errors="replace").decode():
            parser.error(f"{argument!r} is not in UTF-8: write it so.")
    options = parser.parse_args(given)
    for name in ("private", "branch", "tag"):
        if getattr(options, name) not in (None, False) and options.repo is None:
            parser.error(f"--{name} is about a push: give --repo ME/NAME too.")
    return Options(**vars(options), command=shlex.join(["python", "publish.py", *given]))
