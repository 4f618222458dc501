"""One thread that owns the engine, and everything else that computes; the event loop talks to it through queues.

    worker = Worker(engine, tokenizer, ends, capacity=72)
    worker.start(asyncio.get_running_loop())
    ticket = worker.submit([Ask(Request(prompt, 64), stop=("\\n",))])
    async for piece in ticket: ...
    vectors = await worker.call(lambda: embedder(texts))
    worker.stop()

Between two steps of the engine the thread begins and cancels requests and does one call. The texts of a step are decoded and
handed out while the device computes the next one. What is written waits in the tickets: at most the tokens that were asked
for, however slowly a client reads.
"""

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

from lm.errors import UserError
from lm.generation.engine import Engine, Request, Written
from lm.generation.texts import Streamed
from lm.serving import errors
from lm.serving.errors import ApiError

log = logging.getLogger("lm.serve")


@dataclass(eq=False)
class Ask:
    """A request for the engine, and what ends its texts beside the engine's own ends."""

    request: Request
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What is new of a text: of the ask `ask` of a ticket, its sample `sample`."""

    ask: int
    sample: int
    text: str
    tokens: list[Written]
    finish: str | None = None  # "stop" or "length" in the last piece


class Ticket:
    """What was asked for together. Iterating gives its pieces until all of its texts have ended; an error is raised."""

    def __init__(self, worker: "Worker", asks: Sequence[Ask]) -> None:
        self.asks, self._worker = list(asks), worker
        self.texts = sum(ask.request.samples for ask in asks)
        self.open = self.texts  # those whose last piece is not in `news` yet
        self.news: asyncio.Queue[Piece | ApiError] = asyncio.Queue()
        self.began: Callable[[], Any] | None = None  # is called when the first tokens are there

    async def __aiter__(self) -> AsyncIterator[Piece]:
        left = self.texts
        while left:
            piece = await self.news.get()
            if isinstance(piece, ApiError):
                raise piece
            left -= piece.finish is not None
            yield piece

    def close(self) -> None:
        """Writes no more of it. It may have ended."""
        if self.open:
            self._worker.cancel(self)


@dataclass(eq=False)
class _Live:
    """An ask in the engine, and its texts so far."""

    ticket: Ticket
    number: int
    ask: Ask
    texts: dict[int, Streamed] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)  # samples

    def add(self, sample: int, new: list[Written], tokenizer: Any, ends: frozenset[int]) -> Piece:
        """The piece that these tokens make; no token behind the one that completes a stop string is in it."""
        request = self.ask.request
        if sample not in self.texts:
            # The text of an encoder-decoder begins with its answer.
            self.texts[sample] = Streamed(tokenizer, request.prompt if request.encoder is None else (), self.ask.stop)
        text, said, kept = self.texts[sample], "", []
        for some in [[w] for w in new] if text.stop else [new]:
            said += text.add([w.token for w in some if w.token not in ends]) + (text.end() if some[-1].last else "")
            kept += some
            if text.stopped is not None:
                return Piece(self.number, sample, said, kept, "stop")
        finish = None if not new[-1].last else "stop" if new[-1].token in ends else "length"
        return Piece(self.number, sample, said, kept, finish)


class Worker:
    """`engine` makes an engine; None: the model writes nothing from left to right. `ends`: tokens that end a text. `capacity`:
    texts and calls that may be there at once, those that are being written included."""

    def __init__(self, engine: Callable[[], Engine] | None, tokenizer: Any, ends: Sequence[int], *, capacity: int) -> None:
        self._make, self.tokenizer, self.ends, self.capacity = engine, tokenizer, frozenset(ends), capacity
        self.engine = engine() if engine else None
        self.open = 0  # texts and calls, counted in the event loop
        self._tickets: set[Ticket] = set()
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._calls: deque[Callable[[], None]] = deque()
        self._live: dict[int, _Live] = {}  # by the id of the request, which the entry keeps alive
        self._written: list[Written] = []  # in the last step, and not told yet
        self._cut: list[tuple[Request, int | None]] = []  # samples that are still being written, and for nobody
        self._news: list[tuple[Ticket, Piece | ApiError]] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="lm.serve worker", daemon=True)

    # ----------------------------------------------------------------------------------------------------- event loop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after what it is doing now."""
        self._inbox.put(self._stop)
        self._thread.join()

    def _stop(self) -> None:
        self._stopped = True

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy(self) -> int:
        """Slots in which a text is being written."""
        return self.engine.busy if self.engine else 0

    @property
    def waiting(self) -> int:
        """Texts and calls that wait."""
        return max(0, self.open - self.busy)

    def room(self, count: int) -> None:
        """ApiError if so many more texts or calls have no room: 400 if they never have, 429 if not now."""
        if not self.alive:
            raise errors.stopping()
        if count > self.capacity:
            raise ApiError(
                400, f"{count} texts are asked for at once, and {self.capacity} may be: divide the request", code="too_many"
            )
        if self.open + count > self.capacity:
            raise errors.busy()

    def submit(self, asks: Sequence[Ask]) -> Ticket:
        """Puts requests into the queue. ApiError if there is no room."""
        ticket = Ticket(self, asks)
        self.room(ticket.open)
        self.open += ticket.open
        self._tickets.add(ticket)
        self._inbox.put(partial(self._begin, ticket))
        return ticket

    async def call(self, fn: Callable[[], Any]) -> Any:
        """The result of a function, which the thread calls."""
        self.room(1)
        self.open += 1
        future = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if not future.cancelled():
                future.set_exception(error) if error is not None else future.set_result(result)

        def run() -> None:
            if future.cancelled():
                return
            try:
                found = fn(), None
            except Exception as error:
                if not isinstance(error, UserError | ApiError):
                    log.exception("a call failed")
                found = None, error
            self._loop.call_soon_threadsafe(done, *found)

        try:
            self._inbox.put(partial(self._calls.append, run))
            return await future
        finally:
            self.open -= 1

    def cancel(self, ticket: Ticket) -> None:
        self._close(ticket)
        self._inbox.put(partial(self._forget, ticket))

    def cancel_all(self, error: ApiError) -> None:
        """Ends everything that is being written with an error."""
        for ticket in list(self._tickets):
            self.cancel(ticket)
            ticket.news.put_nowait(error)

    def _close(self, ticket: Ticket) -> None:
        self.open -= ticket.open
        ticket.open = 0
        self._tickets.discard(ticket)

    def _hand_out(self, news: list[tuple[Ticket, Piece | ApiError]]) -> None:
        for ticket, piece in news:
            if not ticket.open:  # cancelled meanwhile
                continue
            if ticket.began and isinstance(piece, Piece):
                ticket.began()
                ticket.began = None
            ticket.news.put_nowait(piece)
            if isinstance(piece, ApiError):
                self._close(ticket)
            elif piece.finish is not None:
                self.open -= 1
                ticket.open -= 1
                if not ticket.open:
                    self._tickets.discard(ticket)

    # --------------------------------------------------------------------------------------------------------- thread

    def _run(self) -> None:
        while not self._stopped:
            if not (self._live or self._calls) or not self._inbox.empty():
                self._inbox.get()()
            else:
                if self._calls:
                    self._tell()
                    self._calls.popleft()()
                if self._live:
                    self._step()
            self._free()
            self._send()

    def _send(self) -> None:
        if self._news:
            self._loop.call_soon_threadsafe(self._hand_out, self._news)
            self._news = []

    def _begin(self, ticket: Ticket) -> None:
        assert self.engine is not None
        for number, ask in enumerate(ticket.asks):
            try:
                self.engine.submit(ask.request)
            except Exception as error:
                self._fail(ticket, error)
                return
            self._live[id(ask.request)] = _Live(ticket, number, ask)

    def _step(self) -> None:
        assert self.engine is not None
        if not (self.engine.busy or self.engine.waiting):  # nothing follows the tokens of the last step
            self._tell()
            return
        try:
            self._written = self.engine.step(self._tell)
        except Exception as error:
            log.exception("the engine failed; a new one takes its place")
            self._tell()  # what the step before has written is whole
            for ticket in {id(live.ticket): live.ticket for live in self._live.values()}.values():
                self._news.append((ticket, errors.of(error)))
            self._live.clear()
            self._written, self._cut = [], []
            assert self._make is not None
            self.engine = self._make()

    def _tell(self) -> None:
        """Makes pieces of the tokens of the last step, and hands them out."""
        written, self._written = self._written, []
        for (key, sample), some in itertools.groupby(sorted(written, key=_of), key=_of):
            live, new = self._live.get(key), list(some)
            if live is None or sample in live.ended:  # its ticket is closed, or it was written on behind a stop string
                continue
            try:
                piece = live.add(sample, new, self.tokenizer, self.ends)
            except Exception as error:
                self._fail(live.ticket, error)
                continue
            if piece.finish is not None:
                live.ended.add(sample)
                self._cut += [] if new[-1].last else [(live.ask.request, sample)]
                if len(live.ended) == live.ask.request.samples:
                    del self._live[key]
            self._news.append((live.ticket, piece))
        self._send()

    def _free(self) -> None:
        """Frees the slots of samples that nobody waits for."""
        for request, sample in self._cut:
            assert self.engine is not None
            self.engine.cancel(request, sample)
        self._cut = []

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if not isinstance(error, UserError | ApiError):
            log.error("a request failed", exc_info=error)
        self._forget(ticket)
        self._news.append((ticket, errors.of(error)))

    def _forget(self, ticket: Ticket) -> None:
        for ask in ticket.asks:
            if self._live.pop(id(ask.request), None) is not None:
                self._cut.append((ask.request, None))


def _of(written: Written) -> tuple[int, int]:
    return id(written.request), written.sample
