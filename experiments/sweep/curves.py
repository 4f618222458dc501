"""The pictures of a sweep: its figure against each key, and at each rung."""

import math
from pathlib import Path
from typing import Any

from experiments.pictures import COLOURS, GREY, log_ticks, measured, pyplot, save, slug
from experiments.sweep.trials import Sweep, Trial, results
from lm.config import resolve

FEW = 6  # values of a second key for which a curve each is drawn
WIDE = 10.0  # ratio of the largest to the smallest value from which an axis is logarithmic


def figure(text: str) -> float | None:
    """The number that a flag's text is; None for another value."""
    value = resolve.literal(text)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def against(sweep: Sweep, workdir: Path, key: str) -> Path | None:
    """Draws the figure of each trial against its value of a key, as one series, or one for each rung, or for each value of a
    second key if these are few. Diverged trials are crosses above. Returns the path, or None without results."""
    found = results(sweep, workdir)
    if not any(found.values()):
        return None
    texts = list(dict.fromkeys(setting.flags[key] for setting in sweep.trials))
    numbers = [x for text in texts if (x := figure(text)) is not None]
    numeric = len(numbers) == len(texts)
    place = dict(zip(texts, numbers if numeric else range(len(texts)), strict=True))
    at = lambda trial: place[sweep.trials[trial.number].flags[key]]
    series: dict[str, list[tuple[float, float]]] = {}
    for trial, result in found.items():
        if sweep.metric in result["metrics"]:
            series.setdefault(_series(sweep, key, trial), []).append((at(trial), result["metrics"][sweep.metric]))
    drawing, axis = pyplot().subplots(figsize=(6.5, 4.2))
    for i, (name, points) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(*zip(*points, strict=True), "o", color=colour, ms=5, label=name)
        if name or len(sweep.keys) == 1 or len({x for x, _ in points}) < len(points):
            axis.plot(*_best(points, max if sweep.higher else min), color=colour, lw=1.4)
    for trial, result in found.items():
        if "diverged" in result["flags"]:
            axis.plot(at(trial), 0.97, "X", color=COLOURS[1], ms=8, transform=axis.get_xaxis_transform())
    axis.set_xlabel(key + ("; a cross diverged" if any("diverged" in r["flags"] for r in found.values()) else ""))
    if numeric and min(numbers) > 0 and (sweep.keys[key] or max(numbers) / min(numbers) >= WIDE):
        axis.set_xscale("log")
        log_ticks(axis)
    elif not numeric:
        axis.set_xticks(range(len(texts)), texts)
    return _finished(drawing, axis, sweep, workdir / f"over_{slug(key)}.png", legend=len(series) > 1)


def _series(sweep: Sweep, key: str, trial: Trial) -> str:
    if sweep.rungs:
        return f"step {trial.steps:,}"
    others = [other for other in sweep.keys if other != key]
    if len(others) == 1 and len({setting.flags[others[0]] for setting in sweep.trials}) <= FEW:
        return f"{sweep.short(others[0])} {sweep.trials[trial.number].flags[others[0]]}"
    return ""


def _best(points: list[tuple[float, float]], best: Any) -> tuple[list[float], list[float]]:
    """The best figure at each place, from left to right."""
    at: dict[float, float] = {}
    for x, y in points:
        at[x] = best(y, at.get(x, y))
    return sorted(at), [at[x] for x in sorted(at)]


def halving(sweep: Sweep, workdir: Path) -> Path | None:
    """Draws the figure of each trial at the rungs that it reached, those that went to the end in colour. Returns the path, or
    None without results."""
    lines: dict[int, list[tuple[int, float]]] = {}
    for trial, result in results(sweep, workdir).items():
        if sweep.metric in result["metrics"]:
            lines.setdefault(trial.number, []).append((trial.steps, result["metrics"][sweep.metric]))
    if not lines:
        return None
    whole = [k for k, points in lines.items() if len(points) > len(sweep.rungs)]
    drawing, axis = pyplot().subplots(figsize=(6.5, 4.2))
    for k, points in lines.items():
        chosen = k in whole
        colour = COLOURS[whole.index(k) % len(COLOURS)] if chosen else GREY
        style = dict(color=colour, lw=1.8 if chosen else 0.9, ms=5, zorder=3 if chosen else 2)
        axis.plot(*zip(*points, strict=True), "o-", label=sweep.label(k) if chosen else None, **style)
    axis.set_xlabel("step of a rung")
    axis.set_xscale("log")
    axis.set_xticks([*sweep.rungs, sweep.trials[0].run.train.steps], [], minor=False)
    axis.set_xticklabels([f"{s:,}" for s in (*sweep.rungs, sweep.trials[0].run.train.steps)])
    axis.minorticks_off()
    return _finished(drawing, axis, sweep, workdir / "rungs.png", legend=bool(whole))


def _finished(drawing: Any, axis: Any, sweep: Sweep, path: Path, *, legend: bool) -> Path:
    """Labels the figure's axis, logarithmic where it spans much, and writes the picture."""
    low, high = axis.dataLim.intervaly
    if 0 < low < math.inf and high / low > WIDE:
        axis.set_yscale("log")
    axis.set_ylabel(measured(sweep.metrics[0]))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(frameon=False, fontsize=8)
    return save(drawing, path)
