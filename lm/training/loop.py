"""The training loop of every recipe, and a clock that counts what its time went into."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from lm.data.loader import batches as prefetch

Source = Callable[[int, Any], Any]  # (step, state before it) -> batch, a function of (seed, step, state) alone
Hook = Callable[[int, Any, dict[str, Any]], None]  # (steps done, state, metrics of the last step)


class Clock:
    """Seconds by kind, as `with clock("kind"):`; seconds of no kind count as `train`."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.kinds: dict[str, float] = {}

    @contextmanager
    def __call__(self, kind: str) -> Generator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.kinds[kind] = self.kinds.get(kind, 0.0) + time.perf_counter() - began

    @property
    def train(self) -> float:
        return time.perf_counter() - self.start - sum(self.kinds.values())

    def seconds(self) -> dict[str, float]:
        return {k: round(v, 3) for k, v in (self.kinds | {"train": self.train}).items()}


def run(
    state: Any,
    step_fn: Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]],
    source: Source,
    hooks: Sequence[Hook],
    *,
    steps: range,
    frozen: Any = None,
    clock: Clock,
) -> Any:
    """Takes the steps numbered `steps` (the first of a run is 0), calls all hooks after each, and returns the last state."""
    for step in steps:
        with clock("data_wait"):
            batch = source(step, state)
        with clock("compile") if step == steps.start else nullcontext():
            state, metrics = step_fn(state, frozen, batch)
        for hook in hooks:
            hook(step + 1, state, metrics)
    return state


def prefetched(make: Callable[[int], Any], steps: range) -> Source:
    """A source of `make(step)`, which ignores the state, so that a background thread can make batches ahead of time. It must be
    asked for `steps` in order."""
    batches = prefetch(make, first=steps.start, last=steps.stop)
    return lambda step, state: next(batches)
