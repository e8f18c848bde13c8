"""Pretrain a model: accelerate launch pretrain.py --config configs/pretrain/bert-pydocs.yaml [--section.key value]"""

from pretraining.cli import parse
from pretraining.errors import one_sentence_errors
from pretraining.train import train


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    with one_sentence_errors("pretrain.py"):
        train(parse(arguments))


if __name__ == "__main__":
    main()
