"""A page that shows what a model does with given inputs: one file, which opens in any browser with no network."""

from pretraining.publish.explore.page import write_page

__all__ = ["write_page"]
