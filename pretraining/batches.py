"""A plan's steps as tensors: what one process computes, micro-batch by micro-batch."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DataLoader, Dataset

from pretraining.data.plan import Plan, share
from pretraining.objectives.base import Batch, Examples


class Steps(Dataset):
    """Item (n, progress) is step n of the plan, at a share of the run's budget: this process's micro-batches.

    A pure function of both; the progress decides what an objective changes in the course of a run.
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
        # The plan has packed the whole step before any cut, so ranks and micro-batches decide who computes a row, and
        # never what is in it. All ranks get as many micro-batches, for they reduce gradients together.
        micro_batches = share(self.plan.step(step), self.rank, self.ranks, self.micro_batch)
        return [self.batch(rows, progress) for rows in micro_batches]

    def batch(self, rows: list[np.ndarray], progress: float) -> Batch:
        index = np.concatenate(rows)  # examples of all rows at once: drawn vectorised, then dealt out to their rows
        examples = iter(self.examples.examples(self.split, self.epoch, index, progress))
        return self.examples.collate([[next(examples) for _ in row] for row in rows], self.plan.sequences_per_row)

    def since(
        self,
        first: int,
        workers: int,
        pin_memory: bool = False,
        progress: Callable[[int], float] = lambda step: 0.0,
    ) -> Iterator[list[Batch]]:
        """The steps from `first` on, prepared ahead by `workers` processes (0: by this one, when asked).

        Args:
            progress: the share of the budget that is spent before a step; asked in this process.
        """
        # A sampler may look ahead, but it runs in this process: with workers a step's progress is that of when it was
        # asked for, which only a budget in minutes can tell apart.
        order = ((step, progress(step)) for step in range(first, len(self)))
        return iter(DataLoader(self, batch_size=None, sampler=order, num_workers=workers, pin_memory=pin_memory))
