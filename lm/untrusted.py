"""Reads files of unknown origin: only regular files inside their own folder, up to a size limit, and strict JSON."""

import ipaddress
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.errors import UserError

JSON_BYTES = 64 * 2**20  # the weight index of the largest published checkpoint has about 10 MB


def inside(folder: Path, name: str, *, largest: int | None = None) -> Path:
    """Returns the path of the regular file `name` in `folder`. UserError if it is missing or larger than `largest` bytes.

    `name` may come from a file of unknown origin, so it must not contain a path, and a symbolic link must point into the same
    folder. The only exception are links of a hub cache, `snapshots/<revision>/<file> -> blobs/<hash>`.
    """
    if name in ("", ".", "..") or any(c in "/\\\0" for c in name):
        raise UserError(f"{folder} names a file {name!r}, which must be a plain name of a file in that folder")
    path, home = folder / name, folder.resolve()
    try:
        real = path.resolve(strict=True)
    except RuntimeError:  # Python 3.11 and 3.12 raise it for a cycle of links
        raise UserError(f"{path} is a symbolic link to itself") from None
    except OSError as error:
        why = f"{path} does not exist" if isinstance(error, FileNotFoundError) else f"{path} cannot be read: {error.strerror}"
        raise UserError(f"{why}{', a broken link' if path.is_symlink() else ''}; download it again") from None
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if not real.is_relative_to(home) and real.parent != blobs:
        raise UserError(f"{path} is a symbolic link that leaves its folder, to {real}; put the file itself there")
    if not real.is_file():
        raise UserError(f"{path} is not a regular file; give a folder of plain files")
    if largest is not None and real.stat().st_size > largest:
        raise UserError(
            f"{path} has {real.stat().st_size / 1e6:,.0f} MB; at most {largest / 1e6:,.0f} MB are read of such a file"
        )
    return path


def has(folder: Path, name: str) -> bool:
    """Whether `folder` has an entry of this name; a broken link counts."""
    return (folder / name).is_symlink() or (folder / name).exists()


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in a file of `folder`. UserError as of `inside` and `parse_json`."""
    return parse_json(inside(folder, name, largest=JSON_BYTES).read_bytes(), folder / name)


def parse_json(data: bytes, path: Any) -> dict[str, Any]:
    """Returns the JSON object in `data` (UTF-8), see `strict_json`. UserError, with the file's `path`, if it is not valid."""
    try:
        value = strict_json(data.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is not valid JSON: {why}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not valid JSON: it must be an object in braces, not {type(value).__name__}")
    return value


def parse_lines(text: str, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects in the lines of a text, with what errors call each: `file` and the number of its line. UserError for a
    line that is none; blank lines are passed over."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, parse_json(line.encode(), where)


def strict_json(text: str) -> Any:
    """Parses JSON. Raises ValueError, or RecursionError if it is nested too deeply.

    Numbers must be finite, and keys unique within their object. Python's own parser accepts `NaN`, returns infinity for 1e999,
    and silently uses the last of several equal keys.
    """
    return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant, parse_float=_finite)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {repeated[:100]!r} appears twice")
    return result


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
