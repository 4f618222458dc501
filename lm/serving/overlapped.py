"""An engine that leaves the host something to do while the device computes."""

from collections.abc import Callable
from typing import Any

from lm.generation.engine import Engine, Written


def _nothing() -> None:
    pass


class Overlapped(Engine):
    """`step(meanwhile)` calls `meanwhile` once its program runs, before it waits for what that writes. The slots are not
    settled then: nothing may be submitted or cancelled in it."""

    _meanwhile: Callable[[], None] = staticmethod(_nothing)

    def step(self, meanwhile: Callable[[], None] = _nothing) -> list[Written]:
        self._meanwhile = meanwhile
        return super().step()

    def _call(self, name: str, *arguments: Any, **settings: Any) -> Any:
        out = super()._call(name, *arguments, **settings)
        if name == "decode":
            self._meanwhile()
        return out
