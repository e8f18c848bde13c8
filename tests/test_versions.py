"""The ranges of pyproject.toml, and the lock that lies within them."""

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import versions

LINES = [line for line in versions.LOCK.read_text().splitlines() if not line.startswith("#")]
LOCKED = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}


@pytest.mark.parametrize("requirement", versions.requirements(), ids=str)
def test_a_range_has_two_ends_and_the_lock_lies_within(requirement: Requirement):
    operators = sorted(part.operator for part in requirement.specifier)
    assert operators == ["<", ">="]
    assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)])
    assert requirement.specifier.contains(versions.lower_end(requirement))


def test_every_dependency_has_a_range():
    named = {requirement.name for requirement in versions.requirements()}
    assert {"torch", "transformers", "datasets", "accelerate", "tokenizers", "peft", "ctranslate2"} <= named


def test_a_set_names_its_versions():
    assert "transformers==5.23\n" in versions.constraints("lowest")
    assert "transformers==5.24" in versions.constraints("locked") and not versions.constraints("newest")
