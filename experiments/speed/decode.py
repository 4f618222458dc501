"""Decoding speed on a CPU in tokens/s: `lm.generation` with its own flags, with all training flags, and without oneDNN.

  python -m experiments.speed.decode --workloads=W1,W2 --batches=1,2,8,16

Greedy decoding of 128 tokens after a prompt of 32, with random parameters. The variants take turns in every round, in one
process; `others` is the number of cores that the rest of the machine used meanwhile (median over rounds). Needs jaxlib 0.12 or
later, because earlier versions get no flags. Prints a Markdown table.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.speed.ours import make_config
from experiments.speed.worker import busy_elsewhere
from experiments.speed.workloads import WORKLOADS
from lm import cli, startup

PROMPT, NEW = 32, 128
# Compiler options of `jax.jit` in addition to the flags of the process; None: those that `lm.generation` chooses for this
# batch.
VARIANTS: dict[str, dict[str, bool] | None] = {
    "lm.generation": None,
    "training flags": {},
    "no oneDNN": {"xla_cpu_use_onednn": False},
}


def programs(workload: str, dtype: str, batch: int) -> dict[str, Callable[[], Any]]:
    """Variant -> a function that runs it once, compiled and warmed up; variants that do not compile are left out."""
    import flax.linen as nn
    import jax

    from lm.generation.decoding import decode, jitted_decode, left_padded
    from lm.models.transformer import Transformer
    from lm.types import Example

    model = Transformer(make_config(WORKLOADS[workload], dtype).model)
    prompt = left_padded([np.arange(PROMPT, dtype=np.int32) + 7 * i for i in range(batch)])
    init = jax.jit(lambda key: nn.unbox(model.init(key, Example(None, prompt, None, None))["params"]))
    params = jax.tree.map(lambda x: x.astype(dtype), init(jax.random.key(0)))
    found = {}
    for name, options in VARIANTS.items():
        jitted = jitted_decode(single=batch == 1)
        if options is not None:
            jitted = jax.jit(decode, static_argnames=("model", "new_tokens"), compiler_options=options)
        given = {"new_tokens": NEW, "temperature": 0.0}
        run = lambda jitted=jitted, given=given: jax.block_until_ready(
            jitted(model, params, prompt, jax.random.key(0), **given)
        )
        try:
            run()
        except jax.errors.JaxRuntimeError:
            continue
        found[name] = run
    return found


def measure(workload: str, dtype: str, batch: int, rounds: int) -> str:
    """A row of the table: for each variant, the median tokens/s and, in brackets, tokens per second of CPU time."""
    run = programs(workload, dtype, batch)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in run}
    others = []
    for i in range(rounds):
        turn = i % len(run)
        for name in [*run][turn:] + [*run][:turn]:
            start, cpu, elsewhere = time.perf_counter(), time.process_time(), busy_elsewhere()
            run[name]()
            seconds = time.perf_counter() - start
            speeds[name].append((batch * NEW / seconds, batch * NEW / (time.process_time() - cpu)))
            others.append(max(0.0, busy_elsewhere() - elsewhere) / seconds)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in speeds.items()}
    shown = (f"{medians[n][0]:,.0f} ({medians[n][1]:,.0f})" if n in medians else "does not compile" for n in VARIANTS)
    return " | ".join(["| " + workload, dtype, str(batch), *shown, f"{statistics.median(others):.2f} |"])


@cli.command
def main(argv: list[str] | None = None) -> int:
    split = lambda text: text.split(",")
    p = cli.parser("experiments.speed.decode", __doc__)
    p.add_argument("--workloads", type=split, default=["W1"], help="decoders alone: W1, W2")
    p.add_argument("--dtypes", type=split, default=["float32", "bfloat16"])
    p.add_argument("--batches", type=lambda text: [int(n) for n in split(text)], default=[1, 2, 8, 16])
    p.add_argument("--rounds", type=int, default=5)
    flags = p.parse(argv)
    startup.before_jax()
    columns = ["workload", "dtype", "batch", *VARIANTS, "others"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * 2 + "---:|" * (len(columns) - 2))
    for workload in flags.workloads:
        for dtype in flags.dtypes:
            for batch in flags.batches:
                print(measure(workload, dtype, batch, flags.rounds), flush=True)
    return 0


if __name__ == "__main__":
    cli.enter(main)
