"""Verify, convert, explain and push a model: python publish.py runs/NAME --verify --native --repo me/name"""

from pretraining.errors import one_sentence_errors
from pretraining.publish.endpoint import prepare_hub_client


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    with one_sentence_errors("publish.py"):
        prepare_hub_client()  # before anything imports the client, which reads its variables once

        from pretraining.publish.cli import parse

        options = parse(arguments)

        from pretraining.publish.run import publish  # heavy, and not needed for --help or a wrong option

        publish(options)


if __name__ == "__main__":
    main()
