"""The allocator: what is set reaches the C library, what the user set outside stays, and no step changes."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretraining.errors import UserError
from pretraining.launch import set_allocator

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
HAS_GLIBC = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
OUTSIDE = ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD"]

# A fresh process, which no run has set yet, and children of it in each state. A child takes a block of 64 MiB, frees it
# and takes it again: which share of its pages had to come from the system the second time?
STATES = """
import ctypes, json, mmap, os, resource
from pretraining.launch import set_allocator
import torch

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size = 64 * 2**20
for allocator, outside in (("auto", {}), ("system", {}), ("auto", {"MALLOC_TRIM_THRESHOLD_": "65536"})):
    child = os.fork()
    if not child:
        os.environ.update(outside)
        line = set_allocator(allocator, torch.device("cpu"))
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            block = libc.malloc(ctypes.c_size_t(size))
            ctypes.memset(block, 1, size)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            libc.free(block)
        print(json.dumps([line, faults * mmap.PAGESIZE / size]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not HAS_GLIBC, reason="the C library is not glibc")
def test_a_freed_block_is_kept_unless_the_user_has_it_otherwise():
    environment = {name: value for name, value in os.environ.items() if name not in OUTSIDE}
    done = subprocess.run(
        [sys.executable, "-c", STATES], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    (line, share), (without, share_without), (outside, share_outside) = map(json.loads, done.stdout.splitlines())
    assert line.startswith("allocator: freed memory is kept") and share < 0.1
    assert without == "" and share_without > 0.9
    assert "MALLOC_TRIM_THRESHOLD_ already decides" in outside and share_outside > 0.9


@pytest.mark.parametrize("name", OUTSIDE)
def test_asking_twice_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    for other in OUTSIDE:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=libjemalloc.so")
    with pytest.raises(UserError, match=f"allocator is keep, but the environment's {name}"):
        set_allocator("keep", CPU)
    assert f"{name} already decides" in set_allocator("auto", CPU)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert set_allocator("auto", CPU) == "allocator: as the system has it, for the C library is not glibc"
    with pytest.raises(UserError, match="the C library is not glibc: set"):
        set_allocator("keep", CPU)
    assert set_allocator("system", CPU) == "" and set_allocator("auto", torch.device("cuda")) == ""
