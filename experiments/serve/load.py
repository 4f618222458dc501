"""Puts the server under load and says what was wrong, and how fast it is beside the bare engine.

  python -m experiments.serve.load --from=runs/quickstart
  python -m experiments.serve.load --from=D --clients=16 --rounds=0

The server is `python -m lm.serve` on a free port of this machine, and ends with the command. First --clients stream a text
each, half of them leave in the middle, while malformed and oversized requests come in and some clients read slowly; what is
written must be what the bare engine writes. Then --streams clients and the bare engine take turns for --rounds rounds. At last
SIGTERM comes under load.

Exits with 1 if anything was wrong. Speed is only shown.
"""

import asyncio
import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm import cli
from lm.config.ranges import Count, Natural
from lm.errors import UserError

SECONDS = 900.0  # in which a part must be done
SLOTS, QUEUE = 8, 256
WORDS = "the people of a state and their government shall have power to make laws".split()
MALFORMED: list[tuple[bytes, int]] = [
    (b"{", 400),
    (b'{"prompt": "a", "temperature": "hot"}', 400),
    (b'{"prompt": "a", "max_tokens": 100000}', 400),
    (b'{"prompt": [[]]}', 400),
    (b'{"prompt": "a", "beams": 3}', 400),
    (b'{"prompt": "a", "model": "another"}', 404),
    (b" " * (1 << 21), 413),
]


@dataclass
class Answer:
    """What a client got: the status, the text, why it ended ("" if it does not say), and what an error says."""

    status: int
    text: str = ""
    finish: str = ""
    error: str = ""
    events: int = 0


@dataclass
class Found:
    """What a load showed. `wrong` has a line for each fault."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, true: bool, fault: str) -> None:
        if not true:
            self.wrong.append(fault)


def asked(number: int, tokens: int) -> dict[str, Any]:
    """The request of client `number`: prompts of several lengths, greedy and drawn."""
    prompt = " ".join(itertools.islice(itertools.cycle(WORDS), number % 7, number % 7 + 1 + number % 5))
    return {"prompt": prompt, "max_tokens": tokens, "seed": number, "temperature": (0.0, 0.8, 1.0)[number % 3]}


# -------------------------------------------------------------------------------------------------------------- clients


async def request(port: int, data: bytes, *, leave: int | None = None, pause: float = 0.0) -> Answer:
    """Posts a completion and reads its events; `leave`: goes away after so many; `pause`: seconds before each is read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    try:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + data)
        await writer.drain()
        answer = Answer(int((await reader.readline()).split()[1]))
        async for line in reader:
            if answer.status != 200 and line.startswith(b'{"error"'):
                answer.error = json.loads(line)["error"]["message"]
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            answer.error = event.get("error", {}).get("message", "")
            for choice in event.get("choices", ()):
                answer.text += choice["text"]
                answer.finish = choice["finish_reason"] or answer.finish
            answer.events += 1
            if leave is not None and answer.events >= leave:
                break
            await asyncio.sleep(pause)
        return answer
    finally:
        writer.close()


async def stream(port: int, number: int, tokens: int, **how: Any) -> Answer:
    return await request(port, json.dumps(asked(number, tokens) | {"stream": True}).encode(), **how)


async def metrics(port: int) -> dict[str, float]:
    """The gauges of /metrics without their labels."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    found = re.findall(r"^lm_(slots_busy|queue|compilations)(?:\{.*\})? (\S+)$", text, re.M)
    return {name: float(value) for name, value in found}


async def crowd(port: int, wanted: Sequence[tuple[str, str]], tokens: int) -> Found:
    """Clients that stay, leave, send nonsense or read slowly, all at once."""
    found = Found()
    before = (await metrics(port))["compilations"]

    async def one(number: int) -> None:
        leaves = number % 2
        answer = await stream(port, number, tokens, leave=1 if leaves else None, pause=0.3 if number % 16 == 0 else 0.0)
        found.counts["left" if leaves else "read slowly" if number % 16 == 0 else "read"] += 1
        found.check(answer.status == 200 and not answer.error, f"client {number}: {answer.status} {answer.error}")
        text, finish = wanted[number]
        if not leaves:
            found.check((answer.text, answer.finish) == (text, finish), f"client {number} got another text: {answer.text!r}")
        else:
            found.check(text.startswith(answer.text), f"client {number} got another beginning: {answer.text!r}")

    async def nonsense(data: bytes, status: int) -> None:
        answer = await request(port, data)
        found.counts["refused"] += 1
        found.check(answer.status == status and bool(answer.error), f"{data[:60]!r} got {answer.status} {answer.error!r}")

    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*map(one, range(len(wanted))), *(nonsense(*each) for each in MALFORMED * 4))
        now = await metrics(port)
        while now["slots_busy"] or now["queue"]:
            await asyncio.sleep(0.05)
            now = await metrics(port)
    found.check(now["compilations"] == before, f"{now['compilations'] - before:g} programs were compiled")
    return found


async def ending(port: int, process: subprocess.Popen[str], wanted: Sequence[tuple[str, str]], tokens: int) -> Found:
    """SIGTERM while texts are written: they are finished, and new requests are told."""
    found, begun = Found(), asyncio.Event()

    async def one(number: int) -> None:
        answer = await stream(port, number, tokens)
        found.counts["finished"] += answer.finish == wanted[number][1] and answer.text == wanted[number][0]
        found.check(
            (answer.text, answer.finish) == wanted[number], f"SIGTERM: client {number} got {answer.text!r} {answer.error}"
        )

    async def first() -> None:
        await stream(port, 0, tokens, leave=1)
        begun.set()

    async def late() -> None:
        await begun.wait()
        process.send_signal(signal.SIGTERM)
        for _ in range(200):
            try:
                answer = await request(port, json.dumps(asked(0, 1)).encode())
            except (OSError, IndexError):  # it listens no more
                break
            if answer.status == 503:
                found.counts["refused while stopping"] += 1
                break

    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*map(one, range(len(wanted))), first(), late())
    code = await asyncio.to_thread(process.wait, 60)
    found.check(code == 75, f"the server ended with {code}")
    return found


async def together(port: int, streams: int, tokens: int, bias: Mapping[int, float]) -> float:
    """Tokens/s that so many clients get."""
    start, more = time.perf_counter(), {"stream": True, "logit_bias": {str(token): value for token, value in bias.items()}}
    async with asyncio.timeout(SECONDS):
        sent = (json.dumps(asked(i, tokens) | more).encode() for i in range(streams))
        answers = await asyncio.gather(*(request(port, data) for data in sent))
    seconds = time.perf_counter() - start
    if any(answer.finish != "length" for answer in answers):
        raise UserError(f"a stream ended early: {Counter(a.finish or a.error for a in answers)}")
    return streams * tokens / seconds


# --------------------------------------------------------------------------------------------------------- bare engine


class Bare:
    """The engine of the server, without a server."""

    def __init__(self, folder: str, tokens: int, slots: int, length: int | None) -> None:
        from lm.serving.served import Served

        self.model = Served("bare", folder, slots=slots, length=length, top=5)
        self.engine, self.tokens = self.model.engine(), tokens
        self.engine.warm()
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

    def speed(self, streams: int) -> float:
        """Tokens/s of so many texts."""
        requests = [self.request(i, self.endless) for i in range(streams)]
        start = time.perf_counter()
        for request in requests:
            self.engine.submit(request)
        count = sum(1 for _ in self.engine.run())
        return count / (time.perf_counter() - start)


# ---------------------------------------------------------------------------------------------------------------- command


def started(folder: str, length: int | None) -> tuple[subprocess.Popen[str], int]:
    """A server of its own process, and its port."""
    words = [sys.executable, "-m", "lm.serve", f"--from={folder}", "--port=0", f"--slots={SLOTS}", f"--queue={QUEUE}"]
    words += ["--name=load", *([] if length is None else [f"--length={length}"])]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("load: http://"):
            return process, int(line.strip().rpartition(":")[2])
    raise UserError(f"the server did not start: exit code {process.wait()}")


def show(title: str, found: Found) -> None:
    print(f"{title}: {', '.join(f'{count} {what}' for what, count in sorted(found.counts.items()))}")
    print("\n".join(f"  WRONG {line}" for line in found.wrong) or "  nothing wrong", flush=True)


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    cli.start_jax()
    bare = Bare(flags.source, flags.tokens, SLOTS, flags.length)
    wanted = bare.texts(flags.clients)
    process, port = started(flags.source, flags.length)
    try:
        crowded = asyncio.run(crowd(port, wanted, flags.tokens))
        show(f"{flags.clients} clients", crowded)
        rounds = []
        for _ in range(flags.rounds):
            streamed = together(port, flags.streams, flags.tokens, bare.endless)
            rounds.append((bare.speed(flags.streams), asyncio.run(streamed)))
            print(f"bare engine {rounds[-1][0]:.0f} tokens/s, {flags.streams} streams {rounds[-1][1]:.0f} tokens/s", flush=True)
        if rounds:
            ratios = [ours / alone for alone, ours in rounds]
            print(f"server / bare engine: {statistics.median(ratios):.2f} (median of {len(ratios)} rounds)")
        ended = asyncio.run(ending(port, process, wanted[: 2 * SLOTS], flags.tokens))
        show("SIGTERM under load", ended)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    return 1 if crowded.wrong or ended.wrong else 0


def parser() -> cli.Parser:
    p = cli.parser("experiments.serve.load", __doc__)
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a decoder's run, or converted")
    p.add_argument("--clients", hint=Count, default=64, help="at the same time, of which half leave in the middle")
    p.add_argument("--tokens", hint=Count, default=64, help="tokens of a text")
    p.add_argument("--length", hint=Count, help="tokens of a slot, as of lm.serve")
    p.add_argument("--streams", hint=Count, default=32, help="clients whose speed is measured")
    p.add_argument("--rounds", hint=Natural, default=5, help="in which server and bare engine take turns; 0: not measured")
    return p


if __name__ == "__main__":
    cli.enter(main)
