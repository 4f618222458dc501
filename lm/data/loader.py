"""Which rows of the data each step reads, and batches by step, prefetched by a background thread (Grain)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np


@dataclass(frozen=True)
class Position:
    """A position in the data: after `step` steps `rows` rows have been read, and each further step reads `size` more. The step
    alone does not determine it, because a run may be resumed with another batch size."""

    step: int
    rows: int
    size: int

    def after(self, step: int) -> int:
        """The number of rows read after `step` steps."""
        return self.rows + (step - self.step) * self.size

    def of(self, step: int) -> np.ndarray:
        """int64 [size]: the indices of the rows that the next step after `step` steps reads."""
        return np.arange(self.after(step), self.after(step + 1))


def batches(make: Callable[[int], Any], *, first: int, last: int, ahead: int = 2) -> Iterator[Any]:
    """Yields `make(step)` for steps first .. last - 1, and prefetches up to `ahead` of them."""
    if first >= last:
        return iter(())
    steps = grain.MapDataset.range(first, last).map(lambda step: make(int(step)))
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)))
