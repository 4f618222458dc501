"""The loop of every recipe, and the clock that says where the time went."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

Hook = Callable[[int, Any, dict[str, Any]], None]  # (steps done, state, metrics of the last step)


class Clock:
    """Seconds by kind; what belongs to none is `train`."""

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
    state: Any, step_fn: Callable[[Any, Any], Any], batches: Iterator[Any], hooks: list[Hook], *, first: int, clock: Clock
) -> Any:
    """Steps until the batches end; every hook after every step."""
    step = first
    while True:
        with clock("data_wait"):
            batch = next(batches, None)
        if batch is None:
            return state
        with clock("compile") if step == first else nullcontext():
            state, metrics = step_fn(state, batch)
        step += 1
        for hook in hooks:
            hook(step, state, metrics)
