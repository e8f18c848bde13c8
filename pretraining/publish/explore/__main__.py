"""Look into a model: python -m pretraining.publish.explore MODEL [INPUT ...]"""

import argparse
from pathlib import Path

from pretraining.errors import one_sentence_errors


def main(arguments: list[str] | None = None) -> None:
    """`arguments` instead of the command line's."""
    parser = argparse.ArgumentParser(
        prog="explore",
        description="Write one page that opens in any browser, with no network: where each layer and head looks, how "
        "alike positions and tokens are, and what the model puts in place of what is masked.",
    )
    parser.add_argument("model", type=Path, help="A run, runs/NAME, or its model, runs/NAME/model.")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="Texts, or image files for a ViT. 'One text. ||| Another.' is a pair for a BERT. Without any, the page "
        "shows held-out examples of the run if its data come with Python, or else neutral ones.",
    )
    parser.add_argument("--out", type=Path, help="The page; default: publish/explore.html beside the model.")
    parser.add_argument("--png", action="store_true", help="Draw pictures too, as .png files beside the page.")
    parser.add_argument(
        "--mask-ratio",
        type=float,
        help="Share of the patches that a model of masked images does not see; default: the run's.",
    )
    options = parser.parse_args(arguments)
    with one_sentence_errors("explore"):
        from pretraining.publish.explore.page import write_page  # heavy, and not needed for --help
        from pretraining.publish.explore.pictures import draw_pictures
        from pretraining.publish.source import find_source

        source = find_source(options.model)
        out = options.out or source.folder.parent / "publish" / "explore.html"
        paths = [write_page(source, options.inputs, out, options.mask_ratio)]
        if options.png:
            paths += draw_pictures(source, options.inputs, out.parent, options.mask_ratio)
        print(*paths, sep="\n")


if __name__ == "__main__":
    main()
