"""Predict over a file of any size: python -m finetuning.predict MODEL FILE --out FILE

MODEL is the model/ of a run, or a native bert, vit or marian. Killed at any moment, the same command goes on.
"""

import sys

from finetuning.prediction.settings import PredictSettings
from pretraining.cli import Parser, gather_lists
from pretraining.errors import one_sentence_errors

PROGRAM = "python -m finetuning.predict"


def make_parser() -> Parser:
    from jsonargparse import set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(
        prog=PROGRAM,
        description="Predict every line of a file of any size: classes, numbers, tags, answers, choices, translations "
        "or classes of images, as the model's head says. OUT has one line for each line of FILE, in its order. When it "
        "is killed, the same command goes on where it was, and OUT has the same bytes.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=str, help="The model/ of a run, or the folder of a native bert, vit or marian.")
    parser.add_argument(
        "file",
        type=str,
        help="What is predicted: .jsonl, .csv, .tsv or .txt (each also as .gz), .parquet, or a folder of images.",
    )
    parser.add_argument("--out", type=str, required=True, help="Where predictions go: .jsonl, .csv or .parquet.")
    parser.add_argument("--skip_bad", action="store_true", help=SKIP_BAD)
    parser.add_class_arguments(PredictSettings, skip={"skip_bad"})
    return parser


SKIP_BAD = "Write a line with what is wrong in the column error for each bad line of FILE, instead of ending there."


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    parser = make_parser()
    given = parser.parse_args(gather_lists(parser, sys.argv[1:] if arguments is None else arguments))
    values = vars(given)
    model, file, out = (values.pop(name) for name in ("model", "file", "out"))
    with one_sentence_errors(PROGRAM):
        settings = PredictSettings(**values)
        from finetuning.prediction.run import predict  # heavy, and not needed for --help or a wrong option

        predict(model, file, out, settings)


if __name__ == "__main__":
    main()
