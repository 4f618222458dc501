"""Batches by step, made ahead of time by a background thread (Grain). There is nothing to remember but the step."""

from collections.abc import Callable, Iterator
from typing import Any

import grain


def batches(make: Callable[[int], Any], *, first: int, last: int, ahead: int = 2) -> Iterator[Any]:
    """`make(step)` for steps first .. last - 1; `ahead` of them are ready before they are asked for."""
    if first >= last:
        return iter(())
    steps = grain.MapDataset.range(first, last).map(lambda step: make(int(step)))
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)))
