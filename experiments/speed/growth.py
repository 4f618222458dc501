"""How a run's costs grow: what a step takes, its memory, its compilation and its start, along one setting at a time.

  python -m experiments.speed.growth
  python -m experiments.speed.growth --along=length,batch

All settings take half an hour on two cores; `devices` needs libtpu (docs/pods.md).

Each point is a process of its own. A growth is an exponent: doubling the setting multiplies the cost by 2^exponent, between the
last two points. Beside a measured one stands what is expected: of a step that of its FLOPs (lm/flops.py), of the others what
growth.md says. What grows by more than a quarter above that is marked. Writes growth.json, growth.md and growth.png to --out;
settings that are not measured again stay as they are there.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.speed.run import machine
from experiments.speed.worker import ROOT
from lm import atomic, cli, config, startup
from lm.errors import UserError

FAR = 0.25  # an exponent this much above what is expected is marked
STEPS = 5  # of which the median counts, after two


@dataclass(frozen=True)
class Axis:
    """Points along one setting. `expected`: cost -> exponent; that of a step's seconds is of its FLOPs where it is not here."""

    name: str
    points: tuple[int, ...]
    base: dict[str, Any]
    expected: dict[str, float]
    why: str


SMALL = dict(layers=2, width=128, length=128, batch=4, vocabulary=1024)
AXES = {
    axis.name: axis
    for axis in (
        Axis("layers", (2, 8, 32, 64), SMALL | dict(scan=True), dict(memory=1, compile=0), "scanned: one layer is compiled"),
        Axis("layers_unrolled", (2, 8, 32, 64), SMALL, dict(memory=1, compile=1), "each layer is compiled"),
        Axis("width", (128, 256, 512, 1024), SMALL, dict(memory=2, compile=0), "parameters and gradients grow with its square"),
        Axis("length", (256, 1024, 4096, 8192), SMALL | dict(batch=1), dict(memory=2, compile=0), "scores of all pairs"),
        Axis(
            "length_windows",
            (256, 1024, 4096, 16384, 32768),
            SMALL | dict(batch=1, window=256),
            dict(memory=1, compile=0),
            "each token sees 256",
        ),
        Axis("batch", (1, 4, 16, 64), SMALL, dict(memory=1, compile=0), "activations"),
        Axis("vocabulary", (1024, 8192, 65536, 262144), SMALL, dict(memory=1, compile=0), "the table, its gradient and logits"),
        Axis(
            "devices",
            (8, 16, 64, 256, 512),
            {},
            dict(step=0, memory=0, compile=0),
            "rows grow with the devices: the table's SmolLM2-135M under fsdp and, from 64 on, data parallel, for TPU v5e",
        ),
        Axis(
            "documents",
            (1_000, 100_000, 1_000_000, 10_000_000),
            {},
            dict(start=1, memory=1),
            "where each begins and how long it was are read, 16 bytes a document",
        ),
    )
}
TOPOLOGIES = {8: ("v5e:2x4", 1), 16: ("v5e:4x4", 1), 64: ("v5e:8x8", 1), 256: ("v5e:16x16", 1), 512: ("v5e:16x16", 2)}
LABELS = {"step": "s a step", "memory": "memory, MiB", "compile": "s to compile", "trace": "s to trace", "start": "s to open"}


def a_run(layers: int, width: int, length: int, batch: int, vocabulary: int, window: int | None = None, scan: bool = False):
    """A causal decoder with rope and a gated feed-forward layer."""
    attention = config.Attention(max(1, width // 64), window=window)
    block = config.Block(attention, config.Mlp(4 * width, gated=True))
    stack = config.Stack(layers, {"L": block}, position=config.Rope(), scan=scan)
    data = config.Data(decoder_length=length, encoder_length=None)
    return config.Run(config.Model(vocabulary, width, decoder=stack), data=data, train=config.Train(batch_size=batch))


def of_a_step(settings: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step, and to trace and to compile it; MiB of arguments and working memory as XLA counts them; FLOPs."""
    startup.before_jax()
    import jax
    import numpy as np

    from lm import sharding
    from lm.training.recipe import abstract_batch
    from tpu.planned import computation_of, forward_flops

    jax.config.update("jax_enable_compilation_cache", False)
    run = a_run(**settings)
    mesh = sharding.make_mesh(run.mesh)
    made = computation_of(run, mesh)
    rng = np.random.default_rng(0)

    def filled(x: Any) -> np.ndarray:
        return rng.integers(1, 2, x.shape).astype(x.dtype)  # one document, and weights of 1

    batch = jax.tree.map(filled, abstract_batch(made.row, run.train.batch_size))
    with sharding.use(mesh):
        state = made.plan.create(0)
        began = time.perf_counter()
        lowered = made.step.lower(state, None, batch)
        traced = time.perf_counter()
        program = lowered.compile()
        compiled = time.perf_counter()
        seconds = []
        for _ in range(2 + STEPS):
            start = time.perf_counter()
            state, metrics = program(state, None, batch)
            float(metrics["loss"])
            seconds.append(time.perf_counter() - start)
    memory = program.memory_analysis()
    return {
        "step": statistics.median(seconds[2:]),
        "trace": traced - began,
        "compile": compiled - traced,
        "memory": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20,
        "flops": forward_flops(run)[1].train,
    }


def of_devices(count: int) -> dict[str, float]:
    """Of the step compiled ahead of time: the seconds at best, those to compile, and MiB a device."""
    topology, slices = TOPOLOGIES[count]
    sharded = min(count, 64)  # what divides the model's width of 576
    rows = {"train.batch_size": 8 * count, "mesh.fsdp": sharded, "mesh.data": count // slices // sharded, "mesh.slice": slices}
    with tempfile.TemporaryDirectory() as folder:
        words = [f"--topology={topology}", f"--slices={slices}", f"--json={folder}/report.json"]
        words += [f"--config.{name}={value}" for name, value in rows.items()]
        command = [sys.executable, "-m", "tpu.compile", "--config=configs/pod.py:smollm2_135m_v5e", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        file = Path(folder, "report.json")
        if not file.exists():
            raise UserError(f"{count} devices are not compiled for: {(done.stderr.strip() or done.stdout.strip())[-200:]}")
        report = json.loads(file.read_text(encoding="utf-8"))
    peak = report["hbm"]["peak"] / 2**20
    return {"step": report["roofline"]["step_s"], "compile": report["compile_seconds"], "memory": peak}


def of_documents(count: int) -> dict[str, float]:
    """Seconds to open a store of so many documents of eight tokens and to make the first row, and the MiB that this adds."""
    import resource

    import numpy as np

    from lm.data.corpus import store as stores
    from lm.data.rows import permute

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/store"
        child = os.fork()  # what writing takes is not of the process that is measured
        if not child:
            stores.create(path, tokens=8 * count, vocab_size=1024, loss=False)
            stores.fill(path, "tokens", 0, np.tile(np.arange(8, dtype=np.uint16), count))
            stores.finish(path, [np.full(count, 8)], [np.full(count, 20)], [], None)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise UserError(f"a store of {count:,} documents was not written: is there disk space below {folder}?")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        store = stores.Store.open(path, in_memory=0)
        store.read(128 * permute(np.arange(4), store.num_tokens // 128, (0, 0)), 128)
        seconds = time.perf_counter() - start
        return {"start": seconds, "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def point(axis: Axis, value: int) -> dict[str, float]:
    if axis.name == "devices":
        return of_devices(value)
    if axis.name == "documents":
        return of_documents(value)
    return of_a_step(axis.base | {axis.name.split("_")[0]: value})


def measured(axis: Axis, value: int) -> dict[str, float]:
    """`point` in a process of its own."""
    command = [sys.executable, "-m", "experiments.speed.growth", "--point", axis.name, str(value)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{axis.name}={value} ended with {done.returncode}; see its output above")
    return json.loads(done.stdout.splitlines()[-1])


def exponent(points: dict[int, dict[str, float]], cost: str) -> float:
    """Of `cost` between the last two points."""
    (x, a), (y, b) = list(points.items())[-2:]
    return math.log(max(b[cost], 1e-9) / max(a[cost], 1e-9)) / math.log(y / x)


def expected(axis: Axis, points: dict[int, dict[str, float]], cost: str) -> float | None:
    return exponent(points, "flops") if cost == "step" and "step" not in axis.expected else axis.expected.get(cost)


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "| along | from, to | cost | at the first | at the last | exponent | expected |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for name, given in report["axes"].items():
        axis, points = AXES[name], {int(value): costs for value, costs in given.items()}
        first, last = next(iter(points.values())), list(points.values())[-1]
        for cost in (cost for cost in LABELS if cost in first):
            due, found = expected(axis, points, cost), exponent(points, cost)
            mark = " **!**" if due is not None and found > due + FAR else ""
            known = "" if due is None else f"{due:.1f}, {axis.why}" if cost in axis.expected else f"{due:.1f}, of its FLOPs"
            span = f"{min(points):,} to {max(points):,}"
            cells = [name, span, LABELS[cost], f"{first[cost]:,.3g}", f"{last[cost]:,.3g}", f"{found:.2f}{mark}", known]
            lines.append("| " + " | ".join(cells) + " |")
    about = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    return "\n".join([*lines, "", f"**!**: more than {FAR} above what is expected. {about}."]) + "\n"


def draw(report: dict[str, Any], path: Path) -> None:
    """A panel for each setting; each cost by its value at the first point, on logarithmic axes."""
    from experiments.pictures import COLOURS, pyplot

    plt = pyplot()
    columns = min(3, len(report["axes"]))
    rows = -(-len(report["axes"]) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False)
    for panel, (name, given) in zip(panels.flat, report["axes"].items(), strict=False):
        points = {int(value): costs for value, costs in given.items()}
        first = next(iter(points.values()))
        for colour, marker, cost in zip(COLOURS, "osv^D", LABELS, strict=False):
            values = [costs[cost] / max(first[cost], 1e-9) for costs in points.values()] if cost in first else []
            if values:
                panel.plot(list(points), values, color=colour, marker=marker, label=LABELS[cost])
        setting = name.partition("_")[0]
        panel.set(xscale="log", yscale="log", title=name.replace("_", ", "), xlabel=setting, ylabel="times the first")
        panel.set_xticks(list(points), [f"{value:,}" for value in points], fontsize=7)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    for panel in list(panels.flat)[len(report["axes"]) :]:
        panel.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.speed.growth", __doc__)
    p.add_argument("--along", default=",".join(AXES), help=f"settings: {', '.join(AXES)}")
    p.add_argument("--points", type=int, default=9, help="at most so many of each setting")
    p.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the results")
    p.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    flags = p.parse(argv)
    if flags.point:
        print(json.dumps(point(AXES[flags.point[0]], int(flags.point[1]))))
        return 0
    names = flags.along.split(",")
    if unknown := [name for name in names if name not in AXES]:
        p.error(f"--along={unknown[0]}: known are {', '.join(AXES)}")
    if flags.points < 2:
        p.error(f"--points={flags.points}: a growth needs two or more")
    flags.out.mkdir(parents=True, exist_ok=True)
    file = flags.out / "growth.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["axes"] if file.exists() else {}
    report: dict[str, Any] = {
        "machine": machine(),
        "axes": {name: kept.get(name, {}) for name in AXES if name in {*kept, *names}},
    }
    for name in names:
        report["axes"][name] = {}
        for value in AXES[name].points[: flags.points]:
            report["axes"][name][str(value)] = found = measured(AXES[name], value)
            print(f"{name}={value:,}  " + "  ".join(f"{cost} {found[cost]:.4g}" for cost in found), flush=True)
        report["axes"] = {name: points for name, points in report["axes"].items() if points}
        atomic.write_json(file, report)
    text = markdown(report)
    atomic.write_bytes(flags.out / "growth.md", text.encode())
    draw(report, flags.out / "growth.png")
    print(text)
    return 0


if __name__ == "__main__":
    cli.enter(main)
