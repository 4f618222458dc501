"""Goodput: the share of a run's wall time, over all its processes, that went into steps whose result was kept.

`goodput.jsonl` is append-only, so a kill loses at most the time since the last complete row:

    {"event": "start", "time": 1000.0}                                                a process starts
    {"event": "step", "time": 1020.0, "step": 40, "seconds": {"compile": 9, ...}}     it is at step 40; its clock so far
    {"event": "step", "time": 1090.0, "step": 60, "seconds": {...}}                   at every log, and at its end
    {"event": "start", "time": 1200.0}                                                the next process starts 110 s later
    {"event": "step", "time": 1215.0, "step": 50, "seconds": {...}}                   at step 50: ten steps run a second time
    {"event": "done", "time": 1300.0, "step": 90, "seconds": {...}}                   finished; time after this is not `down`

Kinds, in seconds of wall time:
    productive   steps whose result was kept
    lost         steps that ran again after a restart; all steps between two rows count as equally long
    data_wait    waiting for a batch
    compile      the first step of each process
    prepare      everything before the first step: data, model, tracing
    checkpoint   saving, waiting for a save, restoring
    evaluate     held-out evaluation, samples, baselines, report.html
    profile      starting and writing a trace
    down         from the last row of a process to the start of the next: killed, waiting for machines, or unlogged work
"""

from itertools import pairwise
from typing import Any

Row = dict[str, Any]
KINDS = ("productive", "lost", "data_wait", "compile", "prepare", "checkpoint", "evaluate", "profile", "down")
# Kinds of `lm.training.loop.Clock` that have another name here. Its `train` is divided into productive and lost.
NAMES = {"restore": "checkpoint", "sample": "evaluate", "baselines": "evaluate", "report": "evaluate"}


def account(rows: list[Row]) -> dict[str, Any]:
    """Sums up the rows of goodput.jsonl: {"starts": processes, "wall_seconds", "share": productive share, "seconds": {kind:
    s}}.

    The seconds add up to wall_seconds, and none is negative, whichever rows were lost."""
    lives = _lives(rows)
    seconds = dict.fromkeys(KINDS, 0.0)
    kept = float("inf")  # the step from which a later process ran the steps again
    for life in reversed(lives):
        steps = [row for row in life if "step" in row]
        if steps:
            for kind, spent in steps[-1]["seconds"].items():
                if kind != "train":
                    name = NAMES.get(kind, kind)
                    seconds[name] = seconds.get(name, 0.0) + max(0.0, spent)
            end = max(0.0, _train(steps[-1]))
            begun = min(max(0.0, _train(steps[0])), end)  # time before the first step that the clock put under no other kind
            counted = min(max(begun, _trained(steps, kept)), end)
            seconds["prepare"] += begun
            seconds["productive"] += counted - begun
            seconds["lost"] += end - counted
            kept = min(kept, steps[0]["step"])
    for before, after in pairwise(lives):
        if before[-1]["event"] != "done":
            seconds["down"] += max(0.0, after[0]["time"] - before[-1]["time"])
    wall = sum(seconds.values())
    share = seconds["productive"] / wall if wall else 0.0
    rounded = {kind: round(spent, 3) for kind, spent in seconds.items()}
    return {"starts": len(lives), "wall_seconds": round(wall, 3), "share": round(share, 4), "seconds": rounded}


def elapsed(rows: list[Row]) -> list[tuple[int, float]]:
    """(step, seconds of all processes until it was first reached) for each step of goodput.jsonl whose result was kept, without
    the time in which no process ran. Both increase."""
    reached: dict[int, float] = {}
    spent = 0.0  # by the processes before
    for life in _lives(rows):
        if steps := [row for row in life if "step" in row]:
            seconds = [spent + sum(max(0.0, s) for s in row["seconds"].values()) for row in steps]
            reached = {step: at for step, at in reached.items() if step <= steps[0]["step"]}  # later ones ran again
            for row, at in zip(steps, seconds, strict=True):
                reached.setdefault(row["step"], at)
            spent = seconds[-1]
    return sorted(reached.items())


def _lives(rows: list[Row]) -> list[list[Row]]:
    """The rows of each process, its start first. A lost start is reconstructed from the clock of the process's first row,
    except at the beginning of the file, where rows before the first start are dropped."""
    lives: list[list[Row]] = []
    for row in rows:
        if row["event"] == "start":
            lives.append([row])
        elif lives:
            if _another_process(lives[-1][-1], row):
                lives.append([{"event": "start", "time": row["time"] - sum(row["seconds"].values())}])
            lives[-1].append(row)
    return lives


def _another_process(before: Row, row: Row) -> bool:
    """Whether the step or a clock decreased between two rows, which happens only between processes."""
    if "step" not in before or "step" not in row:
        return False
    rounding = 0.002  # seconds: clocks are written to the millisecond
    return row["step"] < before["step"] or any(
        row["seconds"].get(kind, 0.0) < spent - rounding for kind, spent in before["seconds"].items()
    )


def _train(row: Row) -> float:
    return row["seconds"].get("train", 0.0)


def _trained(steps: list[Row], kept: float) -> float:
    """Seconds of training that a process had done by step `kept`, or by its end if that comes first; linear between rows."""
    if kept <= steps[0]["step"]:
        return _train(steps[0])
    for a, b in pairwise(steps):
        if a["step"] <= kept < b["step"]:
            return _train(a) + (_train(b) - _train(a)) * (kept - a["step"]) / (b["step"] - a["step"])
    return _train(steps[-1])
