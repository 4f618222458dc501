"""Listens, and ends gracefully: what has begun is finished within a time, and nothing new is taken."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from types import FrameType

import uvicorn

from lm.errors import UserError
from lm.serving import errors
from lm.serving.gate import Gate
from lm.serving.worker import Worker

CONNECTIONS = 1024  # open ones, at most; more get 503
KEPT = 5  # seconds that a connection without a request stays open


class Listener(uvicorn.Server):
    """A signal makes the gate refuse what is new. The server ends when all else is answered, or after `grace` seconds, when
    what is still being written is cut off. A second signal ends it at once."""

    def __init__(self, gate: Gate, workers: Iterable[Worker], *, grace: float) -> None:
        settings = uvicorn.Config(
            gate,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEPT,
            timeout_graceful_shutdown=5,
            lifespan="on",
            ws="none",
        )
        super().__init__(settings)
        self._gate, self._workers, self._grace = gate, list(workers), grace
        self._end: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._end is None:
            self._captured_signals.append(sig)
            self.finish()
        else:
            super().handle_exit(sig, frame)

    def finish(self) -> None:
        """Begins to end."""
        self._gate.stopping, self._end = True, time.monotonic() + self._grace

    async def on_tick(self, counter: int) -> bool:
        if self._end is not None and not self.should_exit:
            late = time.monotonic() > self._end
            if late:
                for worker in self._workers:
                    worker.cancel_all(errors.stopping())
                await asyncio.sleep(0.2)  # for the last events to be written
            self.should_exit = late or not self._gate.active
        return await super().on_tick(counter)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. UserError if it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(CONNECTIONS)
    except OSError as error:
        raise UserError(f"--host={host} --port={port} cannot be listened at ({error.strerror}): give another") from None
    return found


def serve(gate: Gate, workers: Iterable[Worker], listening: socket.socket, *, grace: float, ready: Callable[[], None]) -> None:
    """Serves until a signal."""
    listener = Listener(gate, workers, grace=grace)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

    async def run() -> None:
        asyncio.get_running_loop().call_soon(ready)
        await listener.serve(sockets=[listening])

    with asyncio.Runner(loop_factory=listener.config.get_loop_factory()) as runner:  # uvloop's, where it is installed
        runner.run(run())
