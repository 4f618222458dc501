"""Answers in conversations, by a saved model and one engine that is kept: a later turn reads only what is new in it, if the
model's cache allows that (`lm.generation.engine.Engine`, `reuse`).

talker = Talker(saved.open(folder), length=None)
answer = talker.answer([{"role": "user", "content": "Hello"}], Sampling(), new_tokens=64, stream=print)
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lm.config import Sampling, Weights
from lm.data import chat
from lm.errors import UserError
from lm.generation.engine import Engine, Request
from lm.generation.padding import source_length
from lm.generation.text_engine import text_engine
from lm.generation.texts import Streamed
from lm.models import quantized
from lm.models.positions import learned
from lm.models.transformer import Transformer
from lm.objectives import decoder_start
from lm.saved import Saved

LENGTH = 2048  # tokens of a conversation if the model reads as many: more take more memory, and more time for each token
REACH = ("max_position_embeddings", "n_positions", "n_ctx")  # in the config.json of a converted model

Messages = Sequence[Mapping[str, Any]]


class TooLong(UserError):
    """A conversation leaves no room for an answer."""


@dataclass(frozen=True)
class Answer:
    """`finish` says why it ended: at the "end" of the answer, at a "stop" string, by its "length", or "interrupted"."""

    text: str
    finish: str
    read: int  # tokens before it
    written: int  # tokens, its end included


class Talker:
    """A chat model. length: tokens of a conversation with its answer, at most; None: LENGTH, or fewer if it reads fewer."""

    def __init__(self, source: Saved, *, length: int | None, weights: Weights | None = None) -> None:
        if not source.model.head or source.model.head.outputs is not None or not source.model.decoder:
            raise UserError(f"--from={source.folder} writes no text: it has no decoder with a head over the vocabulary")
        self.chat, self.tokenizer = chat.of(source), source.tokenizer()
        most = reach(source)
        if length is not None and most is not None and length > most:
            raise UserError(f"--length={length} is more than the {most:,} tokens that the model reads: give so many or fewer")
        self.length = length or min(LENGTH, most or LENGTH)
        model = Transformer(source.model)
        self.whole = source.model.encoder is not None  # the encoder reads the conversation
        params = quantized.weights(model, source.params(device=jax.local_devices()[0]), weights)
        recipe = getattr(source.run, "recipe", None)
        room: dict[str, Any] = dict(slots=1, length=self.length, source=self.length if self.whole else 0)
        settings: dict[str, Any] = dict(ends=self.chat.ends, prefix=bool(getattr(recipe, "prefix", None)), reuse=True)
        self.engine = text_engine(Engine, model, params, self.tokenizer, **room, **settings)
        self._before = [i for i in (self.tokenizer.bos_id,) if i is not None]  # of a conversation trained on here

    @property
    def usual_answer(self) -> int:
        """Tokens of an answer at most, if nobody says how many."""
        return max(1, min(512, self.length // 2))

    def count(self, messages: Messages) -> int:
        """Tokens of a conversation up to where its answer begins."""
        return len(self.chat.ids(messages))

    def room(self, messages: Messages, new_tokens: int) -> int:
        """Tokens that are left beside a conversation and its answer; below 0: so many are too many."""
        return self.length - self.count(messages) - (0 if self.whole else new_tokens)

    def answer(
        self,
        messages: Messages,
        sampling: Sampling,
        *,
        new_tokens: int,
        stop: Sequence[str] = (),
        stream: Callable[[str], Any] = lambda text: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answers a conversation; `stream` gets the text as it comes, and `stopped` is asked after every few tokens.

        TooLong if the conversation leaves no room for `new_tokens`.
        """
        request = self._request(self.chat.ids(messages), new_tokens, sampling)
        text, tokens, finish = Streamed(self.tokenizer, () if self.whole else request.prompt, stop), 0, ""
        ends, out = set(self.chat.ends), _Begun(stream)
        self.engine.submit(request)
        try:
            while not finish:
                for written in self.engine.step():
                    tokens += 1
                    out(text.add([] if written.token in ends else [written.token]))
                    if text.stopped is not None:
                        finish = "stop"
                    elif written.last:
                        finish = "end" if written.token in ends else "length"
                    if finish:
                        break
                if not finish and stopped():
                    finish = "interrupted"
        finally:
            self.engine.cancel(request)
        out(text.end())
        read = len(request.prompt) if request.encoder is None else source_length(request.encoder)
        return Answer(out.text, finish, read, tokens)

    def _request(self, ids: np.ndarray, new_tokens: int, sampling: Sampling) -> Request:
        if (over := len(ids) + (0 if self.whole else new_tokens) - self.length) > 0:
            raise TooLong(
                f"the conversation has {len(ids):,} tokens, and {self.length:,} have room with the answer's {new_tokens:,}: "
                f"shorten it by {over:,}, or begin anew"
            )
        if not self.whole:
            return Request(ids, new_tokens, sampling)
        start = np.array([decoder_start(self.tokenizer)], np.int32)  # as in `lm.data.examples.ExampleBuilder.turn_example`
        return Request(start, min(new_tokens, self.length - 1), sampling, ids[len(self._before) :])


class _Begun:
    """Passes a text on as it comes, without white space at its beginning: after a role as text, an answer begins with some."""

    def __init__(self, stream: Callable[[str], Any]) -> None:
        self.stream, self.text = stream, ""

    def __call__(self, new: str) -> None:
        new = new if self.text else new.lstrip()
        self.text += new
        if new:
            self.stream(new)


def reach(source: Saved) -> int | None:
    """How many tokens the model reads at most; None if nothing says so."""
    known = [learned(source.model, stack) for stack in ("encoder", "decoder")]
    config = json.loads(source.carried("config.json") or b"{}")
    known += [config.get(name) for name in REACH]
    return min((n for n in known if type(n) is int and n > 0), default=None)
