"""The pictures of a report. Colours are Okabe and Ito's, which colour-blind readers can distinguish; words or shapes repeat
them."""

import math
import re
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import stats
from experiments.judge import Judged, values
from experiments.study import Metric, Results, Study
from lm.errors import UserError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
VERDICTS = {
    "reproduced": ("#009E73", "o"),
    "reversed": ("#D55E00", "X"),
    "unresolved": ("#6E6E6E", "s"),
    "not judged": ("#6E6E6E", "P"),
}
GREY = "#6E6E6E"


def pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("the report draws with matplotlib, which is missing; pip install -e '.[report]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def save(figure: Any, path: Path) -> Path:
    """Writes a figure as a PNG, and returns its path."""
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot().close(figure)
    return path


def dots(study: Study, results: Results, metric: Metric, path: Path) -> Path | None:
    """Draws a row per cell: a ring for each seed (at the same height in all rows), the mean as a diamond, its 95 % interval as
    a bar. Means with a flag, such as upper bounds, are hollow, and the flag is said below. What `Metric.chance` gives is a line
    too. Returns the path, or None without results."""
    found = {name: v for name in study.labels if (v := values(results, name, metric.name))}
    if not found:
        return None
    notes = [metric.flag] if metric.flag else []
    marked = {name: _flag(results[name], metric, notes) for name in found}
    labels = [textwrap.fill(study.labels[name], 34) + marked[name] for name in found]
    height = 0.24 + 0.2 * max(label.count("\n") + 1 for label in labels)  # inches per row
    figure, axis = pyplot().subplots(figsize=(5.5, 0.4 + height * len(found)))
    seeds = sorted({seed for v in found.values() for seed in v})
    offset = dict(zip(seeds, np.linspace(0.14, 0.36, len(seeds)), strict=True))  # below the mean, which would hide rings
    for y, (name, v) in enumerate(found.items()):
        interval = stats.t_interval(list(v.values()))
        if interval.low is not None:
            axis.plot([interval.low, interval.high], [y, y], color=COLOURS[0], lw=2, alpha=0.6, solid_capstyle="butt", zorder=2)
        axis.plot(list(v.values()), [y + offset[s] for s in v], "o", mfc="none", mec=GREY, ms=4.5, zorder=3)
        axis.plot(interval.mean, y, "D", color=COLOURS[0], mfc="white" if marked[name] else COLOURS[0], ms=6, zorder=4)
    free = [v for name in found for v in values(results, name, metric.chance).values()] if metric.chance else []
    _lines(axis, replace(metric, lines={**metric.lines, "commonest class": float(np.mean(free))}) if free else metric, "x")
    axis.set_yticks(range(len(found)), labels)
    below = "\n".join(textwrap.fill(f"{'*' * (i + 1 - bool(metric.flag))} {note}".strip(), 80) for i, note in enumerate(notes))
    axis.set(ylim=(len(found) - 0.5, -0.5), xlabel=measured(metric) + (f"\n{below}" if below else ""))
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def _flag(runs: dict[int, dict[str, Any]], metric: Metric, notes: list[str]) -> str:
    """The mark of the flag that a cell's runs have on the metric, such as " *"; its text is added to `notes`."""
    texts = sorted({str(text) for r in runs.values() if (text := r["flags"].get(metric.name))})
    if not texts:
        return ""
    if texts[0] not in notes:
        notes.append(texts[0])
    return " " + "*" * (notes.index(texts[0]) + 1 - bool(metric.flag))


def _lines(axis: Any, metric: Metric, along: str) -> None:
    """Draws the values that a reader compares with, such as chance or the text's entropy, across the axis `along`, with their
    names outside of the axes: a row for each above, or as far apart as lines of text on the right."""
    room = 0.04 * np.ptp(axis.get_ylim())
    place = -math.inf
    for i, (name, value) in enumerate(sorted(metric.lines.items(), key=lambda item: item[1])):
        style, text = {"color": COLOURS[1], "lw": 1.2, "ls": "--", "zorder": 1}, f"{name} {value:.4g}"
        if along == "x":
            axis.axvline(value, **style)
            beside = {"xytext": (0, 3 + 10 * i), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            axis.annotate(text, (value, 1.0), xycoords=axis.get_xaxis_transform(), color=COLOURS[1], size=8, **beside)
        else:
            place = max(value, place + room)
            axis.axhline(value, **style)
            axis.text(1.01, place, text, color=COLOURS[1], size=8, va="center", transform=axis.get_yaxis_transform())


def measured(metric: Metric) -> str:
    """An axis' label: what is measured, in which unit, and which direction is better where one is."""
    unit = f", {metric.unit}" if metric.unit and metric.unit not in metric.label else ""
    better = {True: " (more is better)", False: " (less is better)", None: ""}[metric.higher]
    return metric.label + unit + better


def log_ticks(axis: Any) -> None:
    """Labels 1, 2 and 5 of each power of ten, written as 2e11, on a logarithmic x axis; the default prints 2 x 10^11, 3 x
    10^11, ... over each other where the axis spans little more than one power."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axis.xaxis.set_major_locator(LogLocator(subs=subs))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _power(x)))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _power(x: float) -> str:
    """2e11, 1.5e-3: with a decimal where an axis spans less than a power of ten."""
    digits, _, power = f"{x:.1e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def forest(judged: list[Judged], path: Path) -> Path | None:
    """Draws the gains and their intervals, with a panel per metric. Right of 0 the first cell is better; a band is the margin
    of an equivalence. Returns the path, or None without results."""
    panels: dict[str, list[Judged]] = {}
    for j in judged:
        if j.interval is not None:
            panels.setdefault(j.metric.name, []).append(j)
    if not panels:
        return None
    rows = [len(p) for p in panels.values()]
    height = max(0.62, 0.3 + 0.15 * max(_below(j).count("\n") + 1 for p in panels.values() for j in p))  # inches per row
    figure, axes = pyplot().subplots(
        len(panels),
        figsize=(9.5, height * sum(rows) + 1.1 * len(rows)),
        layout="constrained",
        height_ratios=[n + 0.4 for n in rows],
        squeeze=False,
    )
    for axis, panel in zip(axes[:, 0], panels.values(), strict=True):
        _panel(axis, panel)
    return save(figure, path)


def _below(judged: Judged) -> str:
    """What is said below a verdict: why there is none, the published figures, and the margin of an equivalence."""
    relation, published = judged.relation, ""
    if relation.published is not None:
        published = f"published {relation.published[0]:g} against {relation.published[1]:g}, in the paper's unit"
    claim = f"claimed within ±{relation.margin:.4g} (band)" if relation.kind == "equivalent" else ""
    return "\n".join([*textwrap.wrap("" if judged.withdrawn else judged.why, 46), *filter(None, (published, claim))])


def _panel(axis: Any, panel: list[Judged]) -> None:
    for y, j in enumerate(panel):
        interval, (colour, shape) = j.interval, VERDICTS[j.verdict]
        assert interval is not None, "forest() leaves out relations without a pair"
        if j.relation.kind == "equivalent":
            axis.fill_betweenx([y - 0.42, y + 0.42], -j.relation.margin, j.relation.margin, color=COLOURS[5], alpha=0.25, lw=0)
        if interval.low is not None:
            axis.plot([interval.low, interval.high], [y, y], color=colour, lw=2.2, solid_capstyle="butt")
        axis.plot(interval.mean, y, shape, color=colour, mfc=colour if j.relation.primary else "white", ms=8, zorder=3)
        below = _below(j)
        beside = {"transform": axis.get_yaxis_transform(), "ha": "left"}
        axis.text(1.02, y, j.short, color=colour, weight="bold", size=9, va="bottom" if below else "center", **beside)
        axis.text(1.02, y + 0.06, below, color="#222", size=8, va="top", **beside)
    axis.axvline(0, color="black", lw=1)
    axis.set_yticks(range(len(panel)), [textwrap.fill(j.relation.name, 38) for j in panel])
    metric = panel[0].metric
    unit = f", {metric.unit}" if metric.unit and metric.unit not in metric.label else ""
    right = "larger" if metric.higher is None else "better"
    label = f"gain here: {metric.label}{unit}\n95 % interval; right of 0: the first is {right}"
    axis.set(ylim=(len(panel) - 0.5, -0.5), xlabel=label)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def curves(study: Study, results: Results, path: Path) -> Path | None:
    """Draws held-out loss over model FLOPs, without those of the cell that it started from: the mean over seeds at the steps
    that all have, with their range as a band. Returns the path, or None without results."""
    lines = {name: line for name in study.cells if (line := _mean_curve(results.get(name, {}))) and len(line[0]) > 1}
    if not lines:
        return None
    figure, axis = pyplot().subplots(figsize=(6.5, 4.6))
    for i, (name, (flops, loss)) in enumerate(lines.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "ls": STYLES[i // len(COLOURS) % len(STYLES)]}
        axis.fill_between(flops, loss.min(0), loss.max(0), color=style["color"], alpha=0.12, lw=0)
        axis.plot(flops, loss.mean(0), label=textwrap.fill(study.labels[name], 34), lw=1.6, **style)
    loss = next((m for m in study.metrics if m.name == "heldout/loss"), Metric("", "held-out loss", unit="nats a token"))
    axis.set(xscale="log", xlabel="model FLOPs", ylabel=f"held-out loss, each cell's own, {loss.unit or 'nats a token'}")
    log_ticks(axis)
    _lines(axis, loss, "y")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    beside = 1.01 if not loss.lines else 1.25  # the names of lines come first
    axis.legend(loc="upper left", bbox_to_anchor=(beside, 1), frameon=False, fontsize=8)
    return save(figure, path)


def _mean_curve(runs: dict[int, dict[str, Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """FLOPs [points] and losses [seeds, points] at the steps that all seeds logged."""
    tables = [{p["step"]: p for p in runs[seed].get("curve", ()) if p["flops"] > 0 and "loss" in p} for seed in sorted(runs)]
    tables = [t for t in tables if t]
    if not tables:
        return None
    steps = sorted(set.intersection(*(set(t) for t in tables)))
    if not steps:
        return None
    flops = np.array([np.mean([t[s]["flops"] for t in tables]) for s in steps])
    return flops, np.array([[t[s]["loss"] for s in steps] for t in tables])
