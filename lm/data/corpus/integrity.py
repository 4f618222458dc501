"""Verifies a prepared folder: its report has the SHA-256 of each file, and of itself.

Two kinds of files are verified when they are read, not when the folder is opened, because they may have many gigabytes: the
chunks of token stores, which carry their own checksums, and the texts (.jsonl.gz), which training does not read.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm.data.corpus.places import Unreachable, Url
from lm.errors import UserError

REPORT = "report.json"
DROPPED = "dropped.jsonl"  # for people to read
_BLOCK = 1 << 20


class Damaged(Exception):
    """A report that is missing or was changed. Everything in it can be made again from the sources."""


def sealed(report: Mapping[str, Any], folder: Path, files: Iterable[Path]) -> dict[str, Any]:
    """The report with the SHA-256 of these files (`files`: path below the folder -> hex) and its own (`sha256`)."""
    digests = {str(file.relative_to(folder)): sha256(file) for file in sorted(files) if file != folder / REPORT}
    complete = {**report, "files": digests}
    return complete | {"sha256": _digest(complete)}


def read_report(folder: Path | Url, fingerprint: str) -> dict[str, Any]:
    """Reads the report of the folder. Raises Damaged, with the cause, if it is missing, changed, or of other data; Unreachable
    if that cannot be told."""
    try:
        report = json.loads((folder / REPORT).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{REPORT} is missing") from None
    except Unreachable:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{REPORT} cannot be read ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(report, dict) or report.get("sha256") != _digest(report):
        raise Damaged(f"{REPORT} is not as it was written")
    if report["fingerprint"] != fingerprint:
        raise Damaged(f"{REPORT} is of other data")
    return report


def check(folder: Path | Url, report: Mapping[str, Any]) -> None:
    """Raises UserError for the first file that is missing or changed, except for texts and chunks of stores. For the list of
    dropped documents, which no program reads, it only warns, and does not look at one that is elsewhere."""
    for name in report["files"]:
        if name.endswith(".jsonl.gz") or (name == DROPPED and isinstance(folder, Url)):
            continue
        try:
            check_file(folder, report, name)
        except UserError as error:
            if name != DROPPED:
                raise
            warnings.warn(str(error), stacklevel=2)


def check_file(folder: Path | Url, report: Mapping[str, Any], name: str) -> None:
    """Raises UserError if this file of the folder is missing or changed."""
    try:
        found = sha256(folder / name)
    except Unreachable as error:
        raise UserError(f"prepared data cannot be read now ({error}); check the network and the access to it") from None
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    else:
        if found == report["files"].get(name):
            return
        fault = "is not as it was written"
    raise UserError(f"corrupt prepared data: {folder / name} {fault}; {again(folder)}")


def again(folder: Path | Url | str) -> str:
    """The end of an error message: delete the folder, since a single file cannot be prepared again."""
    return f"delete {folder} and prepare the data again (python -m lm.prepare)"


def sha256(path: Path | Url) -> str:
    """The SHA-256 of a file of any size, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _digest(report: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in report.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
