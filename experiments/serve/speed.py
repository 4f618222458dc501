"""How fast the server writes beside the bare engine, and what else takes part: the clients, and the other core.

Who holds the second core matters more than how much: see experiments/serve/README.md. So the bare engine is measured alone, and
beside a process that does nothing but spin.
"""

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from experiments.serve.clients import SECONDS, asked, request
from lm.errors import UserError


@dataclass(frozen=True)
class Round:
    """Tokens/s, and seconds of CPU."""

    one: float  # a text alone, in an engine with one slot
    bare: float
    bare_beside_a_busy_core: float
    server: float
    server_cpu: float
    clients_cpu: float


class Bare:
    """The engine of the server, without a server."""

    def __init__(self, folder: str, tokens: int, slots: int, length: int | None) -> None:
        from lm.serving.served import Served

        self.model = Served("bare", folder, slots=slots, length=length, top=5)
        self.engine, self.tokens = self.model.engine(), tokens
        self.engine.warm()
        self._one: Any = None
        self.endless = dict.fromkeys(self.model.ends, -100.0)  # a bias by which no text ends before its length

    def request(self, number: int, bias: Mapping[int, float] | None = None) -> Any:
        from lm.config import Sampling
        from lm.generation.engine import Request

        body = asked(number, self.tokens)
        sampling = Sampling(temperature=body["temperature"], seed=body["seed"])
        return Request(self.model.read(body["prompt"]).tokens, self.tokens, sampling, bias=bias or {})

    def texts(self, count: int) -> list[tuple[str, str]]:
        """The text of each client, one alone at a time, and why it ends."""
        from lm.generation.texts import Streamed

        out = []
        for number in range(count):
            request = self.request(number)
            self.engine.submit(request)
            written = [w.token for w in self.engine.run()]
            ends = written[-1] in self.model.ends
            text = Streamed(self.model.tokenizer, request.prompt)
            said = text.add(written[:-1] if ends else written) + text.end()
            out.append((said, "stop" if ends else "length"))
        return out

    def speed(self, streams: int, each: int) -> float:
        """Tokens/s of so many texts at the same time, `each` times over."""
        return _speed(self.engine, [self.request(i % streams, self.endless) for i in range(streams * each)])

    def one(self) -> float:
        """Tokens/s of one text in an engine with one slot."""
        if self._one is None:
            self.model.slots = 1
            self._one = self.model.engine()
            self._one.warm()
        return _speed(self._one, [self.request(0, self.endless)])


def _speed(engine: Any, requests: list[Any]) -> float:
    start = time.perf_counter()
    for each in requests:
        engine.submit(each)
    return sum(1 for _ in engine.run()) / (time.perf_counter() - start)


async def together(port: int, streams: int, tokens: int, bias: Mapping[int, float], each: int) -> float:
    """Tokens/s that so many clients get, each of which asks for `each` texts, one after another."""
    more = {"stream": True, "logit_bias": {str(token): value for token, value in bias.items()}}

    async def one(number: int) -> None:
        data = json.dumps(asked(number, tokens) | more).encode()
        for _ in range(each):
            answer = await request(port, data)
            if answer.finish != "length":
                raise UserError(f"a stream ended early: {answer.finish or answer.error}")

    start = time.perf_counter()
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*map(one, range(streams)))
    return streams * each * tokens / (time.perf_counter() - start)


def measured(bare: Bare, port: int, server: int, *, streams: int, each: int) -> Round:
    """A round of all three. `server`: its process."""
    alone = bare.speed(streams, each)
    with busy():
        beside = bare.speed(streams, each)
    before, mine = _cpu(server), resource.getrusage(resource.RUSAGE_SELF)
    served = asyncio.run(together(port, streams, bare.tokens, bare.endless, each))
    now = resource.getrusage(resource.RUSAGE_SELF)
    clients = now.ru_utime + now.ru_stime - mine.ru_utime - mine.ru_stime
    return Round(bare.one(), alone, beside, served, _cpu(server) - before, clients)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Another process spins meanwhile."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _cpu(process: int) -> float:
    """Seconds that a process has run, on Linux."""
    with open(f"/proc/{process}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(rounds: list[Round]) -> dict[str, Any]:
    """Medians of rounds, and of the ratios in each."""
    of = lambda fn: round(median(map(fn, rounds)), 3)
    return {
        "rounds": len(rounds),
        "one": of(lambda r: r.one),
        "bare": of(lambda r: r.bare),
        "bare_beside_a_busy_core": of(lambda r: r.bare_beside_a_busy_core),
        "server": of(lambda r: r.server),
        "server_of_bare": of(lambda r: r.server / r.bare),
        "server_of_bare_beside_a_busy_core": of(lambda r: r.server / r.bare_beside_a_busy_core),
        "server_cpu": of(lambda r: r.server_cpu),
        "clients_cpu": of(lambda r: r.clients_cpu),
    }
