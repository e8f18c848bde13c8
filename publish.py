"""Verify, convert, explain and push a model: python publish.py runs/NAME --verify --native --repo me/name"""

from pretraining.publish.endpoint import prepare_hub_client


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    prepare_hub_client()  # before anything imports the client, which reads its variables once

    from pretraining.errors import one_sentence_errors
    from pretraining.publish.cli import parse

    options = parse(arguments)
    with one_sentence_errors("publish.py"):
        from pretraining.publish.run import publish  # heavy, and not needed for --help or a wrong option

        publish(options)


if __name__ == "__main__":
    main()
