"""Search for the settings under which a model learns a task best:

    python -m finetuning.search --config configs/finetune/pydocs-package.yaml --model DIR --space space.yaml --trials 20

The file space.yaml names the settings that differ between trials: `optim.learning_rate: {low: 1e-5, high: 1e-3, log:
true}`, `train.rows_per_step: [4, 8, 16]`. Everything else is as finetune.py takes it. Each trial is a run in a folder
of its own, runs/NAME/trial-0000 and so on. The same command goes on where it was ended. Given again while it runs, it
is a second worker, which shares the trials (on another GPU by CUDA_VISIBLE_DEVICES). At the end there is a report.
"""

import argparse
import os
import sys
from typing import NoReturn

from finetuning.cli import parse_finetune
from finetuning.search.space import points, read_space
from pretraining.errors import UserError, one_sentence_errors

PROGRAM = "finetuning.search"
SAMPLERS = ("random", "grid", "tpe")
PRUNERS = ("none", "median", "halving")


class Options(argparse.ArgumentParser):
    """What the search itself is told; a mistake is one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists every setting).")


def make_parser() -> Options:
    parser = Options(
        prog=f"python -m {PROGRAM}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "--space", required=True, help="A YAML file: the settings that are searched, with lists or ranges."
    )
    parser.add_argument(
        "--trials",
        type=int,
        help="Trials in all, those of earlier starts and of other workers included. For a grid the default is all of "
        "its points.",
    )
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="random",
        help="random: evenly from the space, by --seed and the trial's number (Bergstra 2012). grid: every "
        "combination. tpe: by what earlier trials gave (Bergstra 2011).",
    )
    parser.add_argument(
        "--pruner",
        choices=PRUNERS,
        default="none",
        help="Ends trials that are worse than others, at an evaluation: median: than half of them at the same step, "
        "from the sixth trial on. halving: than three quarters of them, at evaluation 1, 4, 16, ... (Li 2018).",
    )
    return parser


def show_help(parser: Options) -> None:
    """Both parts of the settings."""
    parser.print_help()
    print("\nand the settings of finetune.py:\n", flush=True)
    parse_finetune(["--help"])


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    with one_sentence_errors(PROGRAM):
        arguments = sys.argv[1:] if arguments is None else arguments
        parser = make_parser()
        if {"-h", "--help"} & set(arguments):
            show_help(parser)
        told, rest = parser.parse_known_args(arguments)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(
                "a trial is trained by one process: start the search by python, once for each worker that shall share "
                "its trials, and not by a launcher."
            )
        settings = parse_finetune(rest)
        if settings.resume != "auto":
            raise UserError(f"--resume is {settings.resume}, and a search always goes on by itself: leave it out.")
        if settings.start == "both" or settings.seeds > 1:
            what = "--start both" if settings.start == "both" else "--seeds"
            raise UserError(f"{what}: a trial is one run: leave it out, or search over start or seed.")
        settings.hub.check_runs(None)
        space = read_space(told.space, settings)
        grid = points(space) if told.sampler == "grid" else []
        if told.trials is None and not grid:
            raise UserError("--trials: say how many trials there shall be.")
        trials = len(grid) if told.trials is None else told.trials
        if trials < 1:
            raise UserError(f"--trials is {trials}: it must be at least 1.")
        trials = min(trials, len(grid)) if grid else trials
        if told.pruner != "none" and not settings.evaluation.every:
            raise UserError(f"--pruner {told.pruner} looks at evaluations before the end: set evaluation.every.")
        try:
            from finetuning.search.study import Search
            from finetuning.search.trials import run_search
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise UserError("a search needs the package optuna: pip install 'keel[search]'.") from error
        run_search(Search(settings, rest, told.space, space, grid, trials, told.sampler, told.pruner))


if __name__ == "__main__":
    main()
