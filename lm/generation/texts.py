"""The text of a sample as its tokens come: what is given out is never taken back, and never part of a stop string."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

REPLACEMENT = "\ufffd"  # what decoding makes of bytes that are no complete character
CONTEXT = 8  # tokens that are decoded before new ones, so that a space between them is kept
WINDOW = 64  # tokens that are decoded at once, at most, unless their text has to wait


class Streamed:
    """Decodes a continuation of `prompt`, int [n].

        text = Streamed(tokenizer, prompt, stop=["\\n\\n"])
        text.add([17, 4])    what is certain after two more tokens: no bytes of half a character, no beginning of a stop string
        text.end()           the rest, once no token follows

    After a stop string has come nothing is given out any more, and `stopped` is that string.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] | np.ndarray = (), stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.stopped: str | None = None
        self.text = ""  # given out so far
        self._ids = [int(i) for i in prompt[-CONTEXT:]]
        self._given = len(tokenizer.decode(self._ids)) if self._ids else 0  # characters of their text that are given out

    def add(self, ids: Iterable[int]) -> str:
        self._ids += map(int, ids)
        return self._out(last=False)

    def end(self) -> str:
        return self._out(last=True)

    def _out(self, *, last: bool) -> str:
        if self.stopped is not None:
            return ""
        new = waiting = self.tokenizer.decode(self._ids)[self._given :]
        if not last:
            new = new.rstrip(REPLACEMENT)
        found = min(((at, text) for text in self.stop if (at := new.find(text)) >= 0), default=None)
        if found is not None:
            new, self.stopped = new[: found[0]], found[1]
        elif not last:
            new = new[: len(new) - self._begun(new)]
        self.text += new
        self._given += len(new)
        if len(self._ids) > WINDOW and new == waiting:
            self._ids = self._ids[-CONTEXT:]
            self._given = len(self.tokenizer.decode(self._ids))
        return new

    def _begun(self, text: str) -> int:
        """How many characters at the end of a text may be the beginning of a stop string."""
        return max(
            (n for stop in self.stop for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])), default=0
        )
