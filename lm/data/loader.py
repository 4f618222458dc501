"""Batches by step, made ahead of time by a background thread (Grain), and which rows are in them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np


@dataclass(frozen=True)
class Position:
    """Where a process begins in the data, in rows: a step number alone would not say it, as a run may go on with another
    batch size. After `step` steps `rows` rows have been read, and each step from there on reads the next `size`."""

    step: int
    rows: int
    size: int

    def after(self, step: int) -> int:
        """Rows that have been read when `step` steps are done."""
        return self.rows + (step - self.step) * self.size

    def of(self, step: int) -> np.ndarray:
        """The numbers of the rows that the step after `step` steps reads: int64 [size]."""
        return np.arange(self.after(step), self.after(step + 1))


def batches(make: Callable[[int], Any], *, first: int, last: int, ahead: int = 2) -> Iterator[Any]:
    """`make(step)` for steps first .. last - 1; `ahead` of them are ready before they are asked for."""
    if first >= last:
        return iter(())
    steps = grain.MapDataset.range(first, last).map(lambda step: make(int(step)))
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)))
