"""One check: what was asked, and what was found."""

from collections.abc import Callable
from dataclasses import dataclass


class Fault(Exception):
    """What a check finds wrong, in words."""


class Skip(Exception):
    """Why a check does not apply."""


@dataclass
class Check:
    """What one check found."""

    name: str
    result: str
    """passed, failed or skipped."""
    detail: str


def run_check(name: str, work: Callable[[], str]) -> Check:
    """Does the work of a check, which returns what it found in words."""
    try:
        return Check(name, "passed", work())
    except Skip as reason:
        return Check(name, "skipped", str(reason))
    except Fault as fault:
        return Check(name, "failed", str(fault))
    except (Exception, SystemExit) as error:  # a checkpoint can be wrong in any way, and its code is run
        return Check(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
