"""A server in a thread of the tests' own process."""

import asyncio
import json
import threading
import time

import httpx2 as httpx  # what the openai client uses
import openai

from lm import serve
from lm.serving import run

SLOTS, QUEUE = 3, 9


class Running:
    """A server in a thread of this process: its parts, and clients of it."""

    def __init__(self, folder, *flags):
        given = serve.parser().parse([f"--from={folder}", f"--slots={SLOTS}", f"--queue={QUEUE}", "--name=tiny", *flags])
        self.server, self.gate = serve.made(given, None, local=True)
        self.model, self.worker = self.server.models["tiny"], self.server.workers["tiny"]
        listening = run.bound("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.listener = run.Listener(self.gate, [self.worker], grace=30.0)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.listener.serve(sockets=[listening])))
        self.thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=300)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def post(self, path, **body):
        return self.http.post(path, json=body)

    def complete(self, **body):
        answer = self.post("/v1/completions", **body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"]

    def streamed(self, path="/v1/completions", **body):
        """The chunks of a stream."""
        with self.http.stream("POST", path, json=body | {"stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            lines = [line for line in answer.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]

    def idle(self):
        """Waits until nothing is being written."""
        for _ in range(3000):
            if not (self.worker.open or self.worker.busy or self.worker._live or self.worker.engine.waiting):
                return True
            time.sleep(0.02)
        return False

    def stop(self):
        self.http.close()
        self.openai.close()
        self.listener.finish()
        self.thread.join()
