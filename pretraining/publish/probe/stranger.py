"""Runs a program as somebody who has no Keel: python -I stranger.py PROGRAM"""

import runpy
import sys

OURS = {"modeling", "pretraining", "finetuning"}


class NoKeel:
    """Keeps Python from finding Keel, which may be installed where the program runs."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def forget_keel() -> None:
    """From here on none of Keel's packages can be imported."""
    sys.meta_path.insert(0, NoKeel)  # type: ignore[arg-type]
    assert not sys.modules.keys() & OURS


if __name__ == "__main__":
    forget_keel()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
