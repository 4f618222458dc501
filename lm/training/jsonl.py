"""The logs of a run: append-only files with one JSON object per line.

A kill, a full disk or another program may leave anything in them. They are repaired when a run starts, and never prevent it
from starting."""

import json
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm import atomic
from lm.data.corpus.places import Unreachable
from lm.errors import printable

Row = dict[str, Any]


def _number(value: Any) -> bool:
    """Whether it is a float of moderate size or a 64-bit integer. Python's JSON parser accepts integers of any length, and
    converting those to float fails."""
    if isinstance(value, float):
        return abs(value) < 1e100  # float32 ends at 3.4e38; False for NaN
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _step(row: Row) -> bool:
    return isinstance(row.get("step"), int) and _number(row["step"]) and row["step"] >= 0


def _metrics(row: Row) -> bool:
    return _step(row) and all(_number(v) for v in row.values() if isinstance(v, (int, float)))


def _goodput(row: Row) -> bool:
    if not (isinstance(row.get("event"), str) and _number(row.get("time"))):
        return False
    if "step" not in row:
        return True
    seconds = row.get("seconds")
    return _step(row) and isinstance(seconds, dict) and all(_number(spent) for spent in seconds.values())


# Log -> predicate: whether a row has the fields that its readers need.
LOGS: dict[str, Callable[[Row], bool]] = {
    "metrics.jsonl": _metrics,
    "samples.jsonl": lambda row: _step(row) and all(isinstance(row.get(name), str) for name in ("prompt", "text")),
    "goodput.jsonl": _goodput,
}


def read(path: Path) -> list[Row]:
    """The valid rows of a log; none if the file is missing or cannot be read. Raises `Unreachable` for a network that fails."""
    try:
        return _parsed(path.read_bytes(), path.name)[0]
    except Unreachable:
        raise
    except OSError:
        return []


def _parsed(content: bytes, name: str) -> tuple[list[Row], int]:
    """The valid rows and the number of invalid lines. A truncated last line, as a kill leaves it, is not counted."""
    valid, lines = LOGS.get(name, lambda row: True), content.split(b"\n")
    rows, invalid = [], 0
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and valid(row):
            rows.append(row)
        elif i < len(lines) - 1 or row is not None:
            invalid += 1
    return rows, invalid


def append(path: Path, row: Row) -> None:
    with open(path, "ab") as file:
        file.write(_line(row))


def rewrite(path: Path, rows: list[Row]) -> None:
    atomic.write_bytes(path, b"".join(map(_line, rows)))


def _line(row: Row) -> bytes:
    return json.dumps(atomic.strict(row), allow_nan=False).encode() + b"\n"


def repair(path: Path, aside: Path) -> None:
    """Makes sure that rows can be appended to a log. Invalid lines are dropped with a warning, and the original file is moved
    to `aside`. A truncated last line is dropped silently."""
    if not regular(path, aside):
        return
    content = path.read_bytes()
    rows, invalid = _parsed(content, path.name)
    if invalid:
        kept = atomic.put_aside(path, aside)
        text = f"dropped {invalid} invalid line{'s' * (invalid > 1)} from {path}; the original is in {kept}"
        warnings.warn(printable(text), stacklevel=2)
    if invalid or path.is_symlink() or (content and not content.endswith(b"\n")) or not os.access(path, os.W_OK):
        rewrite(path, rows)


def regular(path: Path, aside: Path) -> bool:
    """Whether `path` is a readable file. Anything else at `path` is moved to `aside`, with a warning."""
    try:
        if stat.S_ISREG(path.stat().st_mode) and os.access(path, os.R_OK):
            return True
    except OSError:
        if not path.is_symlink() and not os.path.lexists(path):
            return False
    kept = atomic.put_aside(path, aside)
    warnings.warn(printable(f"{path} is not a readable file; moved to {kept}; a new one is started"), stacklevel=2)
    return False
