"""shim"""

from pretraining.hardware import choose_linear  # noqa: F401
