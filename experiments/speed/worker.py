"""A contender in its own process: both ends of the protocol between it and the command.

    parent                         worker
    starts it                  ->  imports, builds, runs one step
                               <-  {"parameters": ..., "versions": ...}
    {"steps": 10}              ->  runs ten steps
                               <-  {"seconds": 3.1, "others": 0.02, "loss": 9.0, "rss_mb": 812}
    end of input               ->  exits

Messages are lines of JSON. Between its turns a worker waits for input, so only one works at any time.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[2]
CONTENDERS = ("torch_eager", "torch_compiled", "ours")


class Contender(Protocol):
    """The interface of what `peers.build` and `ours.build` return."""

    parameters: int
    versions: dict[str, str]

    def run(self, steps: int) -> float:
        """Trains for `steps` steps, waits until they are done, and returns the last loss."""
        ...

    def device_mb(self) -> int | None:
        """The most memory of the GPU that was in use; None without one."""
        ...


class Worker:
    """The parent's end of the protocol."""

    def __init__(self, contender: str, workload: str, dtype: str, python: str):
        command = [python, "-m", "experiments.speed.worker", contender, workload, dtype]
        start = time.perf_counter()
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self._read()
        self.first_step = time.perf_counter() - start
        self.rss_mb = 0
        self.device_mb: int | None = None

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)} ended with {self.process.wait()}; see its output above")
        return json.loads(line)

    def run(self, steps: int) -> tuple[float, float]:
        """(seconds that the steps took, average number of cores that other processes used meanwhile)."""
        self.process.stdin.write(json.dumps({"steps": steps}) + "\n")
        self.process.stdin.flush()
        reply = self._read()
        self.rss_mb = reply["rss_mb"]
        self.device_mb = reply["device_mb"]
        return reply["seconds"], reply["others"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def busy_elsewhere() -> float:
    """CPU seconds of other processes since the machine started, including time stolen by the hypervisor; 0.0 without /proc."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def serve(build: Callable[[], Contender]) -> None:
    """The worker's end of the protocol. Redirects stdout to stderr, so that the output of libraries does not mix with
    replies."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**fields: Any) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    contender = build()
    contender.run(1)
    reply(parameters=contender.parameters, versions={"python": sys.version.split()[0]} | contender.versions)
    for line in sys.stdin:
        steps = json.loads(line)["steps"]
        start, elsewhere = time.perf_counter(), busy_elsewhere()
        loss = contender.run(steps)
        seconds = time.perf_counter() - start
        others = max(0.0, busy_elsewhere() - elsewhere) / seconds
        rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        reply(seconds=seconds, others=others, loss=loss, rss_mb=rss_mb, device_mb=contender.device_mb())


def main() -> None:
    contender, workload, dtype = sys.argv[1:]

    def build() -> Contender:
        if contender == "ours":
            from experiments.speed import ours

            return ours.build(workload, dtype)
        from experiments.speed import peers

        return peers.build(workload, dtype, compiled=contender == "torch_compiled")

    serve(build)


if __name__ == "__main__":
    main()
