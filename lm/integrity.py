"""Checks that a saved directory is complete and unchanged. Its `SHA256.json` lists every file with its digest:

    {"step": 8, "files": {"config/metadata": "9f86d0...", "state/manifest.ocdbt": "2c26b4...", ...}}

It is written before the directory gets its final name, so a directory without it is incomplete. It contains the step, so
that a renamed directory is detected. Earlier versions wrote only the mapping that is now under "files".
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from lm.errors import UserError

DIGESTS = "SHA256.json"
UNDIGESTED = {DIGESTS, "_CHECKPOINT_METADATA", "commit_success.txt"}  # Orbax writes the other two after the digests
# Held-out metrics. A run can resume without them, so a step whose metrics are damaged still counts as intact.
SIDE = "metrics"
# TensorStore keeps arrays in an OCDBT database: a manifest, and data files named by a hash.
ARRAYS = re.compile(r"(?:.*/)?d/[0-9a-f]{32}")


def files(directory: epath.Path) -> list[str]:
    """Sorted relative paths of all files in a directory and its subdirectories, except UNDIGESTED ones."""

    def below(d: epath.Path) -> Iterator[epath.Path]:  # epath has no `rglob`
        for p in d.iterdir():
            yield from below(p) if p.is_dir() else [] if p.name in UNDIGESTED else [p]

    return sorted(p.relative_to(directory).as_posix() for p in below(directory))


def digests(directory: epath.Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Relative path -> SHA-256 of the file on disk, for `names` or for all files."""

    def one(name: str) -> str:
        digest = hashlib.sha256()
        with (directory / name).open("rb") as file:  # in blocks, since a file may be larger than the free memory
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    names = files(directory) if names is None else list(names)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def write(directory: epath.Path, *, step: int) -> None:
    """Writes SHA256.json into the directory of a saved step. OSError if the arrays are not among its files."""
    found = digests(directory)
    if fault := lacks_arrays(found):
        raise OSError(f"the save of step {step} in {directory.parent} is incomplete: {fault}")
    (directory / DIGESTS).write_text(json.dumps({"step": step, "files": found}, indent=1), encoding="utf-8")


def changed(directory: epath.Path, name: str) -> bool:
    """Whether a file of a step differs from its digest in SHA256.json; False if either the file or the digest is missing."""
    try:
        listing = json.loads((directory / DIGESTS).read_bytes())
        expected = listing.get("files", listing).get(name)
        return isinstance(expected, str) and digests(directory, [name])[name] != expected
    except (OSError, ValueError, RecursionError, AttributeError):
        return False


def damage(directory: epath.Path, *, step: int) -> str | None:
    """Describes what is wrong with a step's directory, or returns None if it is intact.

    It is damaged if SHA256.json is missing, unreadable or of another step, or if a listed file is missing or changed; the
    first such file is named. Files that are not listed are ignored.
    """
    try:
        listing = json.loads((directory / DIGESTS).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return f"{DIGESTS} is missing: the save was not finished"
    except (OSError, ValueError, RecursionError):
        return f"{DIGESTS} is not readable"
    expected = listing.get("files", listing) if isinstance(listing, dict) else None
    if not isinstance(expected, dict) or not all(isinstance(digest, str) for digest in expected.values()):
        return f"{DIGESTS} is not readable"
    if expected is not listing and listing.get("step") != step:
        return f"it is step {listing.get('step')}, and was renamed"
    if fault := lacks_arrays(expected):
        return fault
    names = [name for name in sorted(expected) if name.split("/")[0] != SIDE]
    if missing := next((name for name in names if not (directory / name).is_file()), None):
        return f"{missing} is missing"
    try:
        found = digests(directory, names)
    except OSError as error:
        return f"{error.filename or 'a file'} cannot be read ({error.strerror})"
    changed = next((name for name in names if found[name] != expected[name]), None)
    return f"{changed} was changed or cut short" if changed else None


def latest(directory: epath.Path, steps: Iterable[int], *, cure: str) -> tuple[int, dict[int, str]]:
    """Returns the latest intact step below `directory` (a run's `checkpoints/`), and {step: fault} of the later ones.

    UserError if no step is intact; its message ends with `cure`.
    """
    faults: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        fault = damage(directory / str(step), step=step)
        if fault is None:
            return step, faults
        faults[step] = fault
    listed = "; ".join(f"{step}: {fault}" for step, fault in faults.items())
    raise UserError(f"{directory.parent} has no intact checkpoint ({listed}); restore one from a copy, or {cure}")


def lacks_arrays(found: Iterable[str]) -> str | None:
    """Returns the fault if these file names include no arrays, otherwise None."""
    if any(name.endswith("manifest.ocdbt") for name in found) and any(ARRAYS.fullmatch(name) for name in found):
        return None
    return "the arrays are not among its files"
