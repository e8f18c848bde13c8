"""shim"""

from pretraining.hardware import SETTLED, settle

AUTOTUNED, autotune = SETTLED, settle
