"""A plan's steps as tensors: what one process computes, micro-batch by micro-batch."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from torch.utils.data import DataLoader, Dataset

from pretraining.data.plan import Plan, share
from pretraining.objectives.base import Batch, Examples


class Steps(Dataset):
    """Item (step, progress) is this process's micro-batches of that step: a pure function of both.

    `progress` is the share of the budget that is spent, for what changes over a run, such as the rate of masking.
    """

    def __init__(self, examples: Examples, split: str, epoch: int, plan: Plan, micro_batch: int, rank: int, ranks: int):
        self.examples, self.split, self.epoch, self.plan = examples, split, epoch, plan
        most_rows = int(np.diff(plan.bounds).max())
        self.micro_batch = min(micro_batch, -(-most_rows // ranks))  # more would be empty rows
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, at: tuple[int, float]) -> list[Batch]:
        step, progress = at
        # plan.step decides what a step sees. The plan has packed the whole step before any cut, so ranks and
        # micro-batches decide who computes a row, and never what is in it. All ranks get as many micro-batches, for
        # they reduce gradients together.
        micro_batches = share(self.plan.step(step), self.rank, self.ranks, self.micro_batch)
        return [self.batch(rows, progress) for rows in micro_batches]

    def batch(self, rows: list[np.ndarray], progress: float) -> Batch:
        # The examples of all rows are drawn in one call, vectorised; each row then takes its own, in order.
        drawn = iter(self.examples.examples(self.split, self.epoch, np.concatenate(rows), progress))
        examples = [list(islice(drawn, len(row))) for row in rows]
        return self.examples.collate(examples, self.plan.sequences_per_row)

    def since(
        self, first: int, workers: int, pin_memory: bool = False, progress: Callable[[int], float] = lambda step: 0.0
    ) -> Iterator[list[Batch]]:
        """The steps from `first` on, prepared ahead by `workers` processes (0: by this one, when asked).

        Args:
            progress: the share of the budget that is spent before a step; asked in this process.
        """
        # Workers prepare ahead, so a step's progress is that of the moment it was asked for. Only a budget in minutes
        # makes a difference of that.
        order = ((step, progress(step)) for step in range(first, len(self)))
        return iter(DataLoader(self, batch_size=None, sampler=order, num_workers=workers, pin_memory=pin_memory))
