"""Training speed of this library and of PyTorch in tokens/s, on workloads W1-W4; G1-G5 are for a GPU (gpu.sh).

  python -m experiments.speed.run --workloads=W1,W2 --dtypes=float32 --rounds=5

Prints a table; writes results.json and results.md next to this file. The README in this folder says what is measured and how.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.speed.worker import CONTENDERS, Worker
from experiments.speed.workloads import ON_CPU, WORKLOADS, Workload
from lm import cli

COLUMNS = (
    "workload",
    "dtype",
    "contender",
    "tokens/s",
    "ours / peer",
    "range",
    "others",
    "first step, s",
    "peak MB",
    "GPU MB",
    "parameters",
)
QUIET = 0.1  # cores that other processes may use before a figure counts as disturbed


def measure(
    w: Workload, dtype: str, contenders: list[str], *, pythons: dict[str, str], rounds: int, steps: int
) -> dict[str, Any]:
    """Measures the contenders on a workload: they are started and warmed up one by one, then take turns in every round."""
    workers: dict[str, Worker] = {}
    try:
        for name in contenders:
            workers[name] = Worker(name, w.name, dtype, pythons[name])
            workers[name].run(2)
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        others: dict[str, list[float]] = {name: [] for name in contenders}
        for i in range(rounds):
            turn = i % len(contenders)  # another one goes first in each round
            for name in contenders[turn:] + contenders[:turn]:
                seconds, busy = workers[name].run(steps)
                speeds[name].append(steps * w.tokens / seconds)
                others[name].append(busy)
    finally:
        for worker in workers.values():
            worker.close()
    rows = {
        name: {
            "tokens_per_second": statistics.median(speeds[name]),
            "rounds": speeds[name],
            "others": statistics.median(others[name]),
            "first_step_seconds": worker.first_step,
            "peak_rss_mb": worker.rss_mb,
            "device_mb": worker.device_mb,
            **worker.hello,
        }
        for name, worker in workers.items()
    }
    return {"workload": w.name, "dtype": dtype, "tokens_per_step": w.tokens, "contenders": rows, "ratio": ratio(rows)}


def ratio(rows: dict[str, Any]) -> dict[str, Any] | None:
    """The ratio of our speed to the better peer's, per round, because disturbances of the machine affect all in a round."""
    peers = [name for name in rows if name != "ours"]
    if "ours" not in rows or not peers:
        return None
    better = max(peers, key=lambda name: rows[name]["tokens_per_second"])
    each = [a / b for a, b in zip(rows["ours"]["rounds"], rows[better]["rounds"], strict=True)]
    return {"peer": better, "median": statistics.median(each), "min": min(each), "max": max(each)}


def machine() -> dict[str, Any]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    found = {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "load_at_start": os.getloadavg()[0]}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return found


def cells(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows of the table, printed and in Markdown."""
    rows = []
    for r in results:
        for name, c in r["contenders"].items():
            share = r["ratio"] if name == "ours" else None
            rows.append(
                (
                    r["workload"],
                    r["dtype"],
                    name,
                    f"{c['tokens_per_second']:,.0f}",
                    f"{share['median']:.2f} ({share['peer']})" if share else "",
                    f"{share['min']:.2f}-{share['max']:.2f}" if share else "",
                    f"{c['others']:.2f}" + ("!" if c["others"] > QUIET else ""),
                    f"{c['first_step_seconds']:.1f}",
                    f"{c['peak_rss_mb']:,}",
                    f"{c['device_mb']:,}" if c.get("device_mb") else "",
                    f"{c['parameters']:,}",
                )
            )
    return rows


def markdown(report: dict[str, Any]) -> str:
    m, results = report["machine"], report["results"]
    versions = {
        f"{n}: " + " ".join(f"{k} {v}" for k, v in c["versions"].items()): 0
        for r in results
        for n, c in r["contenders"].items()
    }
    lines = [
        f"{m.get('gpu') or m['cpu']}, {m['cores']} cores; {report['rounds']} rounds of {report['steps']} steps.  ",
        *(f"{line}  " for line in versions),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * 3 + "---:|" * (len(COLUMNS) - 3),
        *("| " + " | ".join(row) + " |" for row in cells(results)),
    ]
    return "\n".join(lines) + "\n"


def show(console: Console, results: list[dict[str, Any]]) -> None:
    table = Table(title="training, tokens/s")
    for i, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if i < 3 else "right")
    for row in cells(results):
        table.add_row(*row, style="bold" if row[2] == "ours" else "")
    console.print(table)


def check_known(parser: cli.Parser, given: Iterable[str], known: Collection[str]) -> None:
    """Leaves with an error for a name that is not known."""
    if unknown := [name for name in given if name not in known]:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(known)}")


def python_version(interpreter: str) -> str:
    """What an interpreter says of itself: "Python 3.12.1"."""
    return subprocess.run([interpreter, "--version"], capture_output=True, text=True, check=True).stdout.strip()


@cli.command
def main(argv: list[str] | None = None) -> int:
    parser = cli.parser("experiments.speed.run", __doc__)
    parser.add_argument("--workloads", default=",".join(ON_CPU))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--jax-python", default=sys.executable, help="interpreter of ours")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    flags = parser.parse(argv)
    contenders = flags.contenders.split(",")
    for given, known in (
        (flags.workloads.split(","), WORKLOADS),
        (contenders, CONTENDERS),
        (flags.dtypes.split(","), ("float32", "bfloat16")),
    ):
        check_known(parser, given, known)
    pythons = {name: flags.jax_python if name == "ours" else flags.torch_python for name in contenders}
    console = Console(width=None if sys.stdout.isatty() else 140)
    report: dict[str, Any] = {"machine": machine(), "rounds": flags.rounds, "steps": flags.steps, "results": []}
    for dtype in flags.dtypes.split(","):
        for name in flags.workloads.split(","):
            console.print(f"{name} {dtype} ...")
            row = measure(WORKLOADS[name], dtype, contenders, pythons=pythons, rounds=flags.rounds, steps=flags.steps)
            report["results"].append(row)
            # Written after every row: a long run that is cut short keeps what it has.
            flags.out.write_text(json.dumps(report, indent=2) + "\n")
            flags.out.with_suffix(".md").write_text(markdown(report))
            show(console, [row])
    show(console, report["results"])
    console.print(f"{flags.out}, {flags.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    cli.enter(main)
