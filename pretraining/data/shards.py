"""Shards of the data through several processes: results come in order, few of them in memory.

joblib is not enough: its workers outlive a run that is killed; while one shard is slow it goes on, so that all later
results wait in memory; and it sends `work`, with the arrays of all the data, along with every shard.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import TypeVar

from tqdm import tqdm

from pretraining.errors import UserError

Result = TypeVar("Result")

_work: Callable[[range], object]  # in a worker: what it does with each shard


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _start_worker(work: Callable[[range], object]) -> None:
    global _work
    _work = work
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A run that is killed cannot tell its workers, which would wait for ever.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _work_on(shard: range) -> object:
    return _work(shard)


def count_processes(processes: int) -> int:
    """`processes`, or for 0 this machine's CPU cores divided by the training processes on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processes or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def in_order(
    work: Callable[[range], Result], shards: list[range], processes: int, title: str, unit: str
) -> Iterator[tuple[range, Result]]:
    """Each shard with what `work` makes of it, in the order of the shards whatever the number of processes.

    Args:
        work: can be pickled, and depends on nothing but the shard.
        processes: 1, or a single shard: this process does it.
        unit: what is in a shard, in the plural.

    Raises:
        UserError: a process was ended from outside.
    """
    processes = min(processes, len(shards))
    with tqdm(total=sum(map(len, shards)), desc=title, unit=f" {unit}", disable=None, leave=False) as bar:
        if processes <= 1:
            for shard in shards:
                yield shard, work(shard)
                bar.update(len(shard))
            return
        waiting: deque[tuple[range, Future]] = deque()
        remaining = iter(shards)
        with ProcessPoolExecutor(processes, initializer=_start_worker, initargs=(work,)) as pool:
            try:
                while True:
                    # Two for each process: none is idle while this one writes, and no more results pile up.
                    for shard in islice(remaining, 2 * processes - len(waiting)):
                        waiting.append((shard, pool.submit(_work_on, shard)))
                    if not waiting:
                        return
                    shard, future = waiting.popleft()
                    yield shard, future.result()
                    bar.update(len(shard))
            except BrokenProcessPool as error:
                raise UserError(
                    f"One of {processes} processes that prepare the {unit} was ended from outside, most likely for "
                    "want of memory: set data.processes lower."
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)
