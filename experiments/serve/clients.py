"""Clients of a server: what they ask for, and what they get."""

import asyncio
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

SECONDS = 900.0  # in which a part must be done
WORDS = "the people of a state and their government shall have power to make laws".split()


@dataclass
class Answer:
    """What a client got: the status, the text, why it ended ("" if it does not say), and what an error says."""

    status: int
    text: str = ""
    finish: str = ""
    error: str = ""
    events: int = 0


def asked(number: int, tokens: int) -> dict[str, Any]:
    """The request of client `number`: prompts of several lengths, greedy and drawn."""
    prompt = " ".join(itertools.islice(itertools.cycle(WORDS), number % 7, number % 7 + 1 + number % 5))
    return {"prompt": prompt, "max_tokens": tokens, "seed": number, "temperature": (0.0, 0.8, 1.0)[number % 3]}


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
