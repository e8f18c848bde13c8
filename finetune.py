"""Fine-tune a model: accelerate launch finetune.py --config configs/finetune/pydocs-package.yaml --model DIR_OR_NAME"""

from finetuning.cli import parse_finetune
from pretraining.errors import one_sentence_errors


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    with one_sentence_errors("finetune.py", "--model"):
        settings = parse_finetune(arguments)
        from finetuning.run import finetune  # heavy, and not needed for --help or a wrong key

        finetune(settings)


if __name__ == "__main__":
    main()
