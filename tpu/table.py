"""The table of pods: compiles the entries of configs/pod.py ahead of time, one after the other, each in its own process.

  python -m tpu.table                    all entries without a current result:
                                         minutes each, on two cores
  python -m tpu.table llama2_7b_v5e      this one, if it has no current result
  python -m tpu.table --again NAME       this one in any case

Writes the report of `tpu.compile` on each entry to tpu/results/NAME.json, and a table of all of them to tpu/results/table.md
and between two markers in docs/pods.md. A result is current if its hash of the entry's settings (model, rows, objective,
optimizer, mesh, machine) matches. Only settings that are not defaults are hashed, so that new fields keep old results current.
Changes of the code, jax or libtpu are not noticed: use `--again`.
"""

import hashlib
import json
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm import atomic, cli, config
from lm.config import resolve
from lm.errors import UserError, nearest

ROOT = Path(__file__).parents[1]
FILE, RESULTS = "configs/pod.py", "tpu/results"
COMPILE = (sys.executable, "-m", "tpu.compile")
MARKS = "<!-- pods -->\n", "<!-- /pods -->"
HEAD = (
    "| config | parameters | chips | mesh | rows x tokens | HBM, GiB a device | fits | bound by | MFU at most "
    "| collectives, GB a device and step | compiled in |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def made_of(run: config.Run) -> str:
    """16 hex digits: a hash of all settings that a compiled step depends on. Only those that are not defaults, so that a new
    field keeps old hashes."""
    assert run.pod
    rows = run.data.encoder_length, run.data.decoder_length
    machine = run.pod.topology, run.pod.slices
    settings = [resolve.non_defaults(part) for part in (run.model, run.objective, run.optimizer, run.train, run.mesh)]
    settings += [resolve.non_defaults(part) for part in (run.recipe, run.adapter) if part not in (config.Pretrain(), None)]
    return hashlib.sha256(json.dumps([settings, rows, machine], sort_keys=True).encode()).hexdigest()[:16]


def read(path: Path) -> dict[str, Any] | None:
    """A report; None if the file is missing or not valid JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def compile_entry(name: str, target: Path, mark: str, command: Sequence[str], root: Path) -> str | None:
    """Compiles the entry and writes its report, with `mark` as "made_of", to `target`. Returns None, or the error on one
    line."""
    fresh = target.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    words = [*command, f"--config={FILE}:{name}", f"--json={fresh.resolve()}"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    report = read(fresh)  # an entry that does not fit has one as well, despite its exit code
    fresh.unlink(missing_ok=True)
    if report is None:
        return (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
    atomic.write_json(target, report | {"made_of": mark})
    return None


def update(
    names: Sequence[str],
    out: Path,
    *,
    again: bool = False,
    command: Sequence[str] = COMPILE,
    root: Path = ROOT,
) -> dict[str, str]:
    """Compiles those of `names` (empty: all) that have no current result, and writes the table. Returns entry -> error."""
    pods = list(runpy.run_path(str(root / FILE))["PODS"])
    for name in names:
        if name not in pods:
            raise UserError(f"{FILE} has no {name}{nearest(name, pods)}")
    out.mkdir(parents=True, exist_ok=True)
    failed = {}
    for name in names or pods:
        target, mark = out / f"{name}.json", made_of(resolve.load(f"{root / FILE}:{name}"))
        if (read(target) or {}).get("made_of") == mark and not again:
            print(f"{name}: has a current result")
            continue
        print(f"{name}: compiling", flush=True)
        error = compile_entry(name, target, mark, command, root)
        if error is not None:
            failed[name] = error
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    text = table({name: report for name in pods if (report := read(out / f"{name}.json")) is not None})
    atomic.write_bytes(out / "table.md", text.encode())
    page = root / "docs/pods.md"
    updated = between(page.read_text(), text) if out.resolve() == (root / RESULTS).resolve() else None
    if updated is not None:
        atomic.write_bytes(page, updated.encode())
    return failed


def table(reports: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with a row for each report, and the versions that they were compiled with."""
    versions = sorted({f"jax {r['jax']} and libtpu {r['libtpu']}" for r in reports.values()})
    rows = [row(name, each) for name, report in reports.items() for each in (report, *engine_steps(report))]
    return "\n".join([HEAD, *rows, "", f"Compiled with {', '.join(versions)}." if versions else "Nothing compiled yet."]) + "\n"


def engine_steps(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The reports of an engine's programs beside a policy's update."""
    return [report[name] for name in ("decode", "prefill") if name in report]


def row(name: str, r: dict[str, Any]) -> str:
    """A row of the table. An entry that does not fit has no program, and then neither a bound nor collectives."""
    gib, roof = 2**30, r.get("roofline") or {}
    memory = r["hbm"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in r["mesh"].items() if size > 1)
    split = f" in {r['microbatches']}" if r["microbatches"] > 1 else ""
    peak = "?" if memory.get("peak") is None else f"{memory['peak'] / gib:.1f}"
    short = f" ({r['short_by'] / gib:.1f} short)" if r.get("short_by") else ""
    ceiling = roof.get("mfu_ceiling")
    millions = lambda n: f"{n / 1e9:.1f} B" if n >= 1e9 else f"{n / 1e6:.0f} M"
    frozen, beside = r.get("frozen_parameters"), memory.get("beside")
    cells = [
        f"`{name}`" if r.get("step", "train") == "train" else f"`{name}`, {r['step']}",
        millions(r["parameters"]) + (f", {millions(frozen)} frozen" if frozen else ""),
        f"{r['chips']:,} ({r['slices']} x {r['topology']})",
        mesh or "one device",
        f"{r['batch_size']:,} x {r['tokens_per_step'] // r['batch_size']:,}{split}",
        f"{peak}{f' + {beside / gib:.1f}' if beside else ''} of {memory['capacity'] / gib:.1f}",
        "yes" if r["fits"] else f"**no**{short}",
        str(roof.get("bound") or "?"),
        "?" if ceiling is None else f"{ceiling:.0%}",
        travelling(r.get("collectives") or []) or "none",
        f"{r['compile_seconds']:,.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def travelling(collectives: list[dict[str, Any]]) -> str:
    """`fsdp 41, slice 0.5`: GB by mesh axes, the most first, without those below 1 MB."""
    total: Counter[str] = Counter()
    for one in collectives:
        axes = one["axes"]
        total[axes if isinstance(axes, str) else "+".join(axes)] += one["bytes"]
    number = lambda size: f"{size / 1e9:,.0f}" if size >= 1e10 else f"{size / 1e9:.2g}"
    return ", ".join(f"{axes} {number(size)}" for axes, size in total.most_common() if size >= 1e6)


def between(text: str, new: str) -> str | None:
    """`text` with `new` between the two MARKS; None if it lacks one of them."""
    before, first, rest = text.partition(MARKS[0])
    _, second, after = rest.partition(MARKS[1])
    return f"{before}{first}{new}{second}{after}" if first and second else None


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    failed = update(flags.names, Path(flags.out), again=flags.again)
    print(f"{flags.out}/table.md")
    return 1 if failed else 0


def parser() -> cli.Parser:
    p = cli.parser("tpu.table", __doc__, exits={1: "one of them did not compile"})
    p.add_argument("names", nargs="*", help=f"entries of {FILE}; by default all")
    p.add_argument(
        "--out", default=str(ROOT / RESULTS), help="folder of the reports and the table; docs/pods.md has those of %(default)s"
    )
    p.add_argument("--again", action="store_true", help="compile also what is there")
    return p


if __name__ == "__main__":
    cli.enter(main)
