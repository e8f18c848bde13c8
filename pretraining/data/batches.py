"""A plan's steps as tensors: what one process computes, micro-batch by micro-batch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretraining.data.plan import Plan, share

if TYPE_CHECKING:
    from pretraining.objectives import Objective

Batch = dict[str, Tensor]


class Steps(Dataset):
    """Item n is step n of the plan: this process's micro-batches, a pure function of n."""

    def __init__(
        self, objective: "Objective", split: str, epoch: int, plan: Plan, micro_batch: int, rank: int, ranks: int
    ):
        self.objective, self.split, self.epoch, self.plan = objective, split, epoch, plan
        self.micro_batch = min(micro_batch, -(-plan.rows_per_step // ranks))  # more would be empty rows
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> list[Batch]:
        return [self.batch(rows) for rows in share(self.plan.step(step), self.rank, self.ranks, self.micro_batch)]

    def batch(self, rows: list[np.ndarray]) -> Batch:
        index = np.concatenate(rows)
        examples = iter(self.objective.examples(self.split, self.epoch, index))
        return self.objective.collate([[next(examples) for _ in row] for row in rows], self.plan.sequences_per_row)

    def since(self, first: int, workers: int, pin_memory: bool = False) -> Iterator[list[Batch]]:
        """The steps from `first` on, prepared ahead by `workers` processes (0: by this one, when asked)."""
        order = range(first, len(self))
        return iter(DataLoader(self, batch_size=None, sampler=order, num_workers=workers, pin_memory=pin_memory))
