"""The report of a sweep, of what is done so far: the table of its trials, the curves, and the best setting as a command."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from experiments import pages, pictures
from experiments.pages import Block, Code, Heading, Paragraph, Picture, Table, Text
from experiments.sweep import curves, space
from experiments.sweep.trials import Sweep, Trial, ranked
from experiments.units import Failed
from lm import atomic


@dataclass(frozen=True)
class Row:
    """What became of a trial, at the last rung that it has reached."""

    number: int
    value: float | None = None
    step: int = 0
    seconds: float | None = None  # of training, on all devices
    flops: float | None = None
    core_seconds: float = 0.0  # of the process, with compilation and evaluation
    state: str = "to do"
    why: str = ""


def write(sweep: Sweep, workdir: Path) -> str:
    """Writes report.md, report.html and pictures into the folder. Returns what a terminal shows of it."""
    rows, metric = table_of(sweep, workdir), sweep.metrics[0]
    drawn = {f"against {key}": curves.against(sweep, workdir, key) for key in sweep.keys}
    if sweep.rungs:
        drawn["at each rung"] = curves.halving(sweep, workdir)
    pictured = [Picture(path.name, f"{metric.label} {name}") for name, path in drawn.items() if path]
    best = rows[0] if rows[0].value is not None else None
    blocks: list[Block] = [
        Heading(f"Sweep of {sweep.config}", 1),
        *(Paragraph(text) for text in _status(sweep, rows)),
        *([Heading("Best setting"), Code(command(sweep, best)), *_edges(sweep, best)] if best else []),
        Heading("Trials"),
        _table(sweep, rows),
        *(Paragraph(f"Trial {row.number}: {row.why}") for row in rows if row.why),
        *([Heading("Curves"), *pictured] if pictured else []),
        Heading("The runs side by side, step by step"),
        Code(f"python -m lm.report {workdir}/trial*/run"),
    ]
    title = f"Sweep of {sweep.config}"
    atomic.write_bytes(workdir / "report.md", pages.markdown(blocks).encode())
    atomic.write_bytes(workdir / "report.html", pages.page(title, blocks, workdir).encode())
    shown = [str(workdir / "report.md")]
    if best:
        said = f"best: trial {best.number}, {sweep.label(best.number)}: {metric.label} {best.value:.4f}"
        shown = [said, command(sweep, best), *shown]
    return "\n".join(shown)


def table_of(sweep: Sweep, workdir: Path) -> list[Row]:
    """The trials, the best first; of halving those first that went further. Then those without a figure."""
    order = [t.number for rung in range(len(sweep.rungs), -1, -1) for t in ranked(sweep, workdir, rung)]
    return [_row(sweep, workdir, k) for k in dict.fromkeys([*order, *range(len(sweep.trials))])]


def _row(sweep: Sweep, workdir: Path, number: int) -> Row:
    row = Row(number)
    for rung in range(len(sweep.rungs) + 1):
        trial = Trial(sweep, workdir, number, rung)
        found = trial.outcome()
        if found is None:
            return row
        if isinstance(found, Failed):
            return replace(row, state="failed", why=found.why)
        if "left" in found["flags"]:
            return replace(row, state="left")
        ledger = found["ledger"]
        row = replace(row, step=trial.steps, core_seconds=row.core_seconds + ledger["core_seconds"])
        row = replace(row, seconds=ledger.get("seconds"), flops=ledger.get("model_flops"))
        if "diverged" in found["flags"]:
            return replace(row, value=None, state="diverged", why=found["flags"]["diverged"])
        row = replace(row, value=found["metrics"][sweep.metric])
    return replace(row, state="done")


def command(sweep: Sweep, row: Row) -> str:
    """The command that trains a trial's setting."""
    words = space.command(sweep.config, dict(sweep.overrides) | dict(sweep.trials[row.number].flags))
    return shlex.join([*words, "--workdir=runs/best"])


def _status(sweep: Sweep, rows: list[Row]) -> list[str]:
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    spent = sum(row.core_seconds for row in rows)
    texts = [
        f"{len(rows)} trials ({sweep.search}, seed {sweep.seed}): {counts}. Judged by {pictures.measured(sweep.metrics[0])}. "
        f"They took {spent:,.0f} core-seconds."
    ]
    if sweep.rungs:
        steps = " and ".join(f"{step:,}" for step in sweep.rungs)
        texts.append(
            f"Successive halving (arXiv 1502.07943): after {steps} steps the best of every {sweep.eta} trials went on from its "
            "checkpoint, under the schedule of the whole run. Figures after different numbers of steps do not compare."
        )
    return texts


def _edges(sweep: Sweep, best: Row) -> list[Block]:
    """Says which values of the best setting are the least or the largest that were tried."""
    found: list[Block] = []
    for key in sweep.keys:
        tried = {curves.figure(setting.flags[key]) for setting in sweep.trials}
        at = curves.figure(sweep.trials[best.number].flags[key])
        if None not in tried and len(tried) > 2 and at in (min(tried), max(tried)):
            which, other = ("least", "smaller") if at == min(tried) else ("largest", "larger")
            found.append(Paragraph(f"{key}={at:g} is the {which} that was tried; a {other} one may be better."))
    return found


def _table(sweep: Sweep, rows: list[Row]) -> Table:
    shown = lambda x, form: "" if x is None else format(x, form)
    lines = [
        [
            *(str(row.number), *sweep.trials[row.number].flags.values(), shown(row.value, ".4f"), f"{row.step:,}"),
            *(shown(row.seconds, ",.1f"), shown(row.flops, ".3g"), f"{row.core_seconds:,.1f}", row.state),
        ]
        for row in rows
    ]
    header = ["trial", *sweep.keys, sweep.metric, "step", "seconds", "FLOPs", "core-seconds", "state"]
    cells = [[Text(text, bold=i == 0 and rows[0].value is not None) for text in line] for i, line in enumerate(lines)]
    about = "Seconds are of training alone; core-seconds have compilation and evaluation too."
    align = "r" * (len(header) - 1) + "l"
    return Table("trials", "Trials, the best first", align, [Text(name) for name in header], cells, about=about)
