"""Puts the server under load and says what was wrong, and how fast it is beside the bare engine.

  python -m experiments.serve.load --from=runs/quickstart
  python -m experiments.serve.load --from=D --clients=16 --rounds=0
  python -m experiments.serve.load --from=D --clients=0 --out=results.json

The server is `python -m lm.serve` on a free port of this machine, and ends with the command. First --clients stream a text
each, half of them leave in the middle, while malformed and oversized requests come in and some clients read slowly; what is
written must be what the bare engine writes. Then --streams clients and the bare engine take turns for --rounds rounds. At last
SIGTERM comes under load.

Exits with 1 if anything was wrong. Speed is only shown. With --out what was found replaces what that file has of this model.
"""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.serve.clients import SECONDS, asked, metrics, request, stream
from experiments.serve.speed import Bare, measured, summary
from lm import atomic, cli
from lm.config.ranges import Count, Natural
from lm.errors import UserError

SLOTS, QUEUE = 8, 256
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
class Found:
    """What a load showed. `wrong` has a line for each fault."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, true: bool, fault: str) -> None:
        if not true:
            self.wrong.append(fault)


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


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    cli.start_jax()
    bare = Bare(flags.source, flags.tokens, SLOTS, flags.length)
    process, port = started(flags.source, flags.length)
    try:
        results, wrong = found(flags, bare, process, port)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    if flags.out:
        file, name = Path(flags.out), Path(flags.source.rstrip("/")).name
        every = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        atomic.write_json(file, every | {name: every.get(name, {}) | results})
    return 1 if wrong else 0


def found(flags: Any, bare: Bare, process: subprocess.Popen[str], port: int) -> tuple[dict[str, Any], list[str]]:
    """What is written to --out, and what was wrong."""
    results: dict[str, Any] = {}
    wrong: list[str] = []

    def noted(name: str, title: str, found: Found) -> None:
        print(f"{title}: {', '.join(f'{count} {what}' for what, count in sorted(found.counts.items()))}")
        print("\n".join(f"  WRONG {line}" for line in found.wrong) or "  nothing wrong", flush=True)
        wrong.extend(found.wrong)
        results[name] = {"clients": flags.clients, "tokens": flags.tokens, "wrong": found.wrong, **found.counts}

    wanted = bare.texts(flags.clients)
    if flags.clients:
        noted("crowd", f"{flags.clients} clients", asyncio.run(crowd(port, wanted, flags.tokens)))
    rounds = []
    for _ in range(flags.rounds):
        rounds.append(r := measured(bare, port, process.pid, streams=flags.streams, each=flags.each))
        beside = f"{r.bare_beside_a_busy_core:.0f} beside a busy core"
        print(f"tokens/s: bare engine {r.bare:.0f}, {beside}, {flags.streams} streams {r.server:.0f}", flush=True)
    if rounds:
        results["speed"] = s = {"streams": flags.streams, "tokens": flags.tokens, "each": flags.each} | summary(rounds)
        ratios = f"{s['server_of_bare']:.2f} ({s['server_of_bare_beside_a_busy_core']:.2f} beside a busy core)"
        print(f"server / bare engine: {ratios}; one text alone: {s['one']:.1f} tokens/s")
    if flags.clients:
        noted("sigterm", "SIGTERM under load", asyncio.run(ending(port, process, wanted[: 2 * SLOTS], flags.tokens)))
    return results, wrong


def parser() -> cli.Parser:
    p = cli.parser("experiments.serve.load", __doc__)
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a decoder's run, or converted")
    p.add_argument("--clients", hint=Natural, default=64, help="of which half leave in the middle; 0: speed alone")
    p.add_argument("--tokens", hint=Count, default=64, help="tokens of a text")
    p.add_argument("--length", hint=Count, help="tokens of a slot, as of lm.serve")
    p.add_argument("--streams", hint=Count, default=32, help="clients whose speed is measured")
    p.add_argument("--each", hint=Count, default=4, help="texts that each of these asks for, one after another")
    p.add_argument("--rounds", hint=Natural, default=5, help="in which server and bare engine take turns; 0: not measured")
    p.add_argument("--out", metavar="FILE", help="JSON in which the figures are noted")
    return p


if __name__ == "__main__":
    cli.enter(main)
