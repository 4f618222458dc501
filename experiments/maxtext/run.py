"""Compares our compiled training step with MaxText's, using the same compiler and the same analysis.

  python -m experiments.maxtext.run --python=VENV/bin/python --work=D
  python -m experiments.maxtext.run --work=D --cases=llama2_7b_v5e_256

What D has already is not compiled again.

Each side is compiled in its own process (worker.py), which saves the program in D. The figures are computed from the programs
by `tpu.hlo`, `tpu.program` and `tpu.collectives`, without jax or MaxText. Writes results.json and table.md next to this file.
The README in this folder says what is compared and how to install MaxText.
"""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from experiments.maxtext.cases import CASES
from lm import atomic, cli
from tpu import hlo, libtpu, program
from tpu.collectives import Collective, collectives
from tpu.report import roofline, summed
from tpu.topologies import GIB, parse

HERE = Path(__file__).parent
CAUSAL = 0.5  # share of all query-key pairs that the attention kernels of both sides compute
LEAST = 2**20  # bytes that a device sends in a step; kinds of collectives with less have no row


def compile_side(python: str, case: str, side: str, out: Path) -> bool:
    """Compiles a side unless its program exists. Returns whether there is one; the compiler's output is in OUT.log."""
    if not out.with_suffix(".json").exists():
        with open(out.with_suffix(".log"), "w") as log:
            words = [python, "-m", "experiments.maxtext.worker", case, side, str(out.resolve())]
            subprocess.run(words, cwd=HERE.parents[1], stdout=log, stderr=log)
    return out.with_suffix(".json").exists()


def figures(text: str, facts: dict[str, Any], topology: str, model_flops: float) -> dict[str, Any]:
    """The memory, FLOPs and communication of a program. FLOPs are of all devices, bytes of one."""
    read, mesh = hlo.parse(text), {axis: n for axis, n in facts["mesh"].items() if n > 1}
    devices, memory = parse(topology).devices, facts["memory"]
    found, twice = collectives(text, mesh), facts["fragmentation"] or 0.0
    executed = program.executed_flops(read, facts["flops_of_xla"], pairs=CAUSAL) * devices
    dims = {axis: frozenset(facts["dims"][axis]) for axis in mesh}
    costs = dict(executed_flops=executed, hbm_bytes=program.hbm_traffic(read), collectives=found, dims=dims)
    roof = roofline(parse(topology), 1, model_flops=model_flops, **costs)
    return dict(
        peak=libtpu.peak(memory, twice),
        arguments=memory["argument"],
        results_apart=memory["output"] - memory["alias"],
        code=memory["generated_code"],
        temporaries=memory["temp"] - twice,
        kept=program.activations(read),
        model_flops=model_flops,
        executed_flops=executed,
        product_flops=devices * sum(s.times * program.matmul_flops(read, s.instruction) for s in read.walk()),
        kernel_calls=kernels(read),
        hbm_traffic=program.hbm_traffic(read),
        sent=sum(c.bytes for c in found),
        collectives=summed(found),
        largest=largest(found),
        roofline=vars(roof),
        instructions=sum(len(inside) for inside in read.computations.values()),
        **{name: facts[name] for name in ("compile_seconds", "compile_cpu_seconds", "jax", "libtpu")},
    )


def kernels(read: hlo.Program) -> dict[str, int]:
    """How often each kernel runs in a step: {"splash_mha_fwd_segmented_residuals.2 bf16[4, 32, 4096, 128]": 64}."""
    found: Counter[str] = Counter()
    for step in read.walk():
        i = step.instruction
        if i.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in i.rest:
            array = i.arrays[0]
            name = i.op_name.split("/")[-1] or i.name
            found[f"{name} {array.dtype}{list(array.shape)}"] += step.times
    return dict(sorted(found.items()))


def largest(found: list[Collective], count: int = 12) -> list[str]:
    """The collectives' arrays with the most bytes sent, one line each."""
    sizes: Counter[str] = Counter()
    for c in found:
        sizes[f"{c.kind} {c.dtype}{list(c.shape)} {c.op_name}"] += c.bytes
    return [f"{size / 2**20:.1f} MiB {name}" for name, size in sizes.most_common(count)]


def rows(found: dict[str, dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The rows of the table: a name, and a cell for each side."""
    sides = list(found.values())
    gib = lambda key: [f"{s[key] / GIB:.3f}" for s in sides]
    kinds = sorted({(c["kind"], *c["axes"]) for s in sides for c in s["collectives"] if c["bytes"] >= LEAST})

    def sent(s: dict[str, Any], kind: tuple[str, ...]) -> str:
        each = [c for c in s["collectives"] if (c["kind"], *c["axes"]) == kind]
        return f"{sum(c['bytes'] for c in each) / GIB:.3f} ({sum(c['count'] for c in each)})"

    ms = lambda key: [f"{(s['roofline'][key] or 0) * 1e3:.0f}" for s in sides]
    return [
        ("HBM peak, GiB a device", gib("peak")),
        ("of it arguments", gib("arguments")),
        ("of it temporaries", gib("temporaries")),
        ("kept for the backward pass", gib("kept")),
        ("executed FLOPs (XLA's, turns and kernels counted)", [f"{s['executed_flops']:.4e}" for s in sides]),
        ("of products outside of kernels", [f"{s['product_flops']:.4e}" for s in sides]),
        ("over model FLOPs", [f"{s['executed_flops'] / s['model_flops']:.3f}" for s in sides]),
        ("attention kernels, calls a step", [str(sum(s["kernel_calls"].values())) for s in sides]),
        ("HBM traffic, GiB a device", gib("hbm_traffic")),
        ("sent, GiB a device", gib("sent")),
        *(
            (f"{kind} along {' and '.join(axes)}, GiB (count)", [sent(s, (kind, *axes)) for s in sides])
            for kind, *axes in kinds
        ),
        ("compute, ms at best", ms("compute_s")),
        ("HBM, ms", ms("hbm_s")),
        ("links, ms", ms("ici_s")),
        ("bound by", [s["roofline"]["bound"] for s in sides]),
        ("MFU at most", [f"{s['roofline']['mfu_ceiling']:.1%}" for s in sides]),
        ("compiled in, s (CPU s)", [f"{s['compile_seconds']:.0f} ({s['compile_cpu_seconds']:.0f})" for s in sides]),
    ]


def table(results: dict[str, dict[str, Any]]) -> str:
    lines: list[str] = []
    for case, found in results.items():
        versions = {(s["jax"], s["libtpu"]) for s in found.values()}
        compilers = " and ".join(f"jax {jax}, libtpu {libtpu}" for jax, libtpu in sorted(versions))
        lines += [f"**{case}**, {CASES[case].topology}, {compilers}", ""]
        lines += [f"| | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows(found)]
        lines.append("")
    return "\n".join(lines)


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.maxtext.run", __doc__)
    p.add_argument("--python", default=sys.executable, help="with MaxText, jax and libtpu; compiles ours as well")
    p.add_argument("--work", required=True, type=Path, help="folder for the compiled programs")
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--sides", help="by default all of a case")
    p.add_argument("--out", default=HERE, type=Path)
    flags = p.parse(argv)
    flags.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for case in flags.cases.split(","):
        sides = flags.sides.split(",") if flags.sides else ["ours", *CASES[case].theirs]
        programs = {side: flags.work / f"{case}-{side}" for side in sides}
        there = {side: out for side, out in programs.items() if compile_side(flags.python, case, side, out)}
        for side in programs.keys() - there.keys():
            print(f"{case}, {side}: no program; see {programs[side]}.log", file=sys.stderr)
        facts = {side: json.loads(out.with_suffix(".json").read_text()) for side, out in there.items()}
        if "ours" not in there:
            continue
        model_flops, results[case] = facts["ours"]["model_flops"], {}
        for side, out in there.items():
            text = gzip.decompress(out.with_suffix(".hlo.gz").read_bytes()).decode()
            results[case][side] = figures(text, facts[side], CASES[case].topology, model_flops)
    atomic.write_json(flags.out / "results.json", results)
    (flags.out / "table.md").write_text(table(results))
    print(table(results))
    return 0


if __name__ == "__main__":
    cli.enter(main)
