"""Goodput: of the hours that a run took, over all its starts, how much became steps that count.

`goodput.jsonl` is only ever added to, so a kill loses no more than what came after its last row (and that row, if it is cut):

    {"event": "start", "time": 1000.0}                                                a process begins
    {"event": "step", "time": 1020.0, "step": 40, "seconds": {"compile": 9, ...}}     it stands at step 40; its clock so far
    {"event": "step", "time": 1090.0, "step": 60, "seconds": {...}}                   at every log, and at its end
    {"event": "start", "time": 1200.0}                                                110 s later the next begins
    {"event": "step", "time": 1215.0, "step": 50, "seconds": {...}}                   from step 50: ten steps are done again
    {"event": "done", "time": 1300.0, "step": 90, "seconds": {...}}                   all steps; what waits after it is not down

What the kinds mean, in seconds of wall time:
    productive   steps whose result the run goes on from
    lost         steps done again after a restart: between rows a step counts as long as its neighbours
    data_wait    waiting for a batch
    compile      the first step of each process
    prepare      data, model and step before the first one
    checkpoint   saving, waiting for it, restoring
    evaluate     held-out figures, samples, baselines
    profile      starting and writing a trace
    down         from the last row of a process to the start of the next: killed, waiting for machines, or unlogged work
"""

from itertools import pairwise
from typing import Any

Row = dict[str, Any]
KINDS = ("productive", "lost", "data_wait", "compile", "prepare", "checkpoint", "evaluate", "profile", "down")
# The kinds of lm.training.loop.Clock by the name that they have here; what is not listed keeps its own, and `train` is divided.
NAMES = {"restore": "checkpoint", "sample": "evaluate", "baselines": "evaluate"}


def account(rows: list[Row]) -> dict[str, Any]:
    """`{"starts", "wall_seconds", "share", "seconds": {kind: seconds}}` of what goodput.jsonl holds. The seconds add up to the
    wall time, and none is negative whatever rows were lost."""
    lives = _lives(rows)
    seconds = dict.fromkeys(KINDS, 0.0)
    kept = float("inf")  # of a process, the step up to which no later one did its steps again
    for life in reversed(lives):
        steps = [row for row in life if "step" in row]
        if steps:
            for kind, spent in steps[-1]["seconds"].items():
                if kind != "train":
                    name = NAMES.get(kind, kind)
                    seconds[name] = seconds.get(name, 0.0) + max(0.0, spent)
            end = max(0.0, _train(steps[-1]))
            begun = min(max(0.0, _train(steps[0])), end)  # what belonged to no kind before there were steps
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


def _lives(rows: list[Row]) -> list[list[Row]]:
    """Rows of each process, its start first. Where the line of a start was lost, the start is worked out from the clock of the
    next row; rows at the beginning of a file that has lost its first start are left out."""
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
    """Whether the step or any clock went back from one row to the next, which within a process none does."""
    if "step" not in before or "step" not in row:
        return False
    rounding = 0.002  # seconds: clocks are written to the millisecond
    return row["step"] < before["step"] or any(
        row["seconds"].get(kind, 0.0) < spent - rounding for kind, spent in before["seconds"].items()
    )


def _train(row: Row) -> float:
    return row["seconds"].get("train", 0.0)


def _trained(steps: list[Row], kept: float) -> float:
    """Seconds of training that a process had behind it at step `kept`, or at its end if that comes first."""
    if kept <= steps[0]["step"]:
        return _train(steps[0])
    for a, b in pairwise(steps):
        if a["step"] <= kept < b["step"]:
            return _train(a) + (_train(b) - _train(a)) * (kept - a["step"]) / (b["step"] - a["step"])
    return _train(steps[-1])
