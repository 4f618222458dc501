"""The products of one step of decoding by themselves: what bounds the tokens/s of `generate.py`, in XLA and in PyTorch.

  python -m experiments.speed.products --model=W2 --batches=1,16 --jax-python=PYTHON312

Multiplies `batch` rows by the matrices of all layers and of the head of W1 or W2, of random weights, as a step does: four
width x width of attention, and two of the feed-forward layer. Contenders take turns. Prints the median time of a step, the
weights read per second, and the tokens/s that a step of products alone would give.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.speed.worker import ROOT
from experiments.speed.workloads import VOCAB, WORKLOADS
from lm import cli

CONTENDERS = ("torch float32", "torch bfloat16", "xla float32", "xla bfloat16")
REPEATS = 20  # steps of a round, of which the median counts


def sizes(name: str) -> list[tuple[int, int]]:
    """[inputs, outputs] of each matrix of a step."""
    w = WORKLOADS[name]
    return [(w.width, w.width)] * 4 * w.layers + [(w.width, w.hidden), (w.hidden, w.width)] * w.layers + [(w.width, VOCAB)]


def by_torch(shapes: list[tuple[int, int]], batch: int, dtype: str) -> Callable[[], Any]:
    import torch

    kind = getattr(torch, dtype)
    rows = {i: torch.randn(batch, i, dtype=kind) for i, _ in shapes}
    matrices = [torch.randn(o, i, dtype=kind) for i, o in shapes]

    def step() -> Any:
        with torch.inference_mode():
            return [torch.nn.functional.linear(rows[w.shape[1]], w) for w in matrices]

    return step


def by_xla(shapes: list[tuple[int, int]], batch: int, dtype: str) -> Callable[[], Any]:
    from lm import startup

    startup.before_jax()
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0)
    rows = {i: jax.random.normal(key, (batch, i), jnp.dtype(dtype)) for i, _ in shapes}
    matrices = [jax.random.normal(key, shape, jnp.dtype(dtype)) for shape in shapes]
    step = jax.jit(lambda rows, matrices: [rows[w.shape[0]] @ w for w in matrices], compiler_options=startup.decoding_options())
    return lambda: jax.block_until_ready(step(rows, matrices))


def work(contender: str, name: str, batch: int) -> None:
    """A contender's process: the median seconds of a step for each line that it reads."""
    library, dtype = contender.split()
    step = (by_torch if library == "torch" else by_xla)(sizes(name), batch, dtype)
    step()
    for _ in sys.stdin:
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(json.dumps(statistics.median(times)), flush=True)


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.speed.products", __doc__)
    p.add_argument("--model", default="W2", choices=("W1", "W2"), help="whose matrices")
    p.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16], help="rows: 1,16")
    p.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    p.add_argument("--jax-python", default=sys.executable, help="interpreter of XLA's side")
    p.add_argument("--torch-python", default=sys.executable, help="interpreter of PyTorch's side")
    p.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    flags = p.parse(argv)
    if flags.worker:
        work(flags.worker[0], flags.worker[1], int(flags.worker[2]))
        return 0
    weights = sum(i * o for i, o in sizes(flags.model))
    print(f"| {flags.model}, rows | contender | ms | GB/s | tokens/s |\n|---:|---|---:|---:|---:|")
    pythons = {"torch": flags.torch_python, "xla": flags.jax_python}
    pipes: dict[str, Any] = dict(cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for batch in flags.batches:
        given = [flags.model, str(batch)]
        command = {c: [pythons[c.split()[0]], "-m", "experiments.speed.products", "--worker", c, *given] for c in CONTENDERS}
        workers = {c: subprocess.Popen(command[c], **pipes) for c in CONTENDERS}
        seconds: dict[str, list[float]] = {c: [] for c in CONTENDERS}
        for _ in range(flags.rounds):
            for c, worker in workers.items():
                assert worker.stdin and worker.stdout
                worker.stdin.write("\n")
                worker.stdin.flush()
                seconds[c].append(json.loads(worker.stdout.readline()))
        for c, worker in workers.items():
            worker.communicate()
            median = statistics.median(seconds[c])
            size = weights * (4 if c.endswith("float32") else 2)
            print(f"| {batch} | {c} | {median * 1e3:.2f} | {size / median / 1e9:.1f} | {batch / median:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    cli.enter(main)
