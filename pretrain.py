"""Pretrain a model: accelerate launch pretrain.py --config configs/pretrain/bert-pydocs.yaml [--section.key value]"""

from pretraining.cli import parse
from pretraining.errors import one_sentence_errors


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    with one_sentence_errors("pretrain.py"):
        settings = parse(arguments)
        from pretraining.loop import train  # heavy, and not needed for --help or a wrong key
        from pretraining.objectives import make_objective

        train(settings, make_objective(settings))


if __name__ == "__main__":
    main()
