"""Tells whether a saved directory is complete and unchanged: `SHA256.json` lists every file in it with its digest.

    {"step": 8, "files": {"config/metadata": "9f86d0...", "state/manifest.ocdbt": "2c26b4...", ...}}

It is written before the directory gets its final name, so a directory without it is incomplete. It names the step, so a
renamed directory is detected. Earlier versions wrote the content of "files" only.
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
# Held-out metrics, which a run does not need to go on: a step with damaged ones is still intact.
SIDE = "metrics"
# TensorStore keeps arrays in a database (OCDBT): a manifest, and files of data named by a hash.
ARRAYS = re.compile(r"(?:.*/)?d/[0-9a-f]{32}")


def files(directory: epath.Path) -> list[str]:
    """Sorted relative paths of all files in a directory and its subdirectories, except those that have no digest."""

    def below(d: epath.Path) -> Iterator[epath.Path]:  # epath has no `rglob`
        for p in d.iterdir():
            yield from below(p) if p.is_dir() else [] if p.name in UNDIGESTED else [p]

    return sorted(p.relative_to(directory).as_posix() for p in below(directory))


def digests(directory: epath.Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Relative path -> SHA-256 of the file on disk, for `names` or for all files."""

    def one(name: str) -> str:
        digest = hashlib.sha256()
        with (directory / name).open("rb") as file:  # in pieces, since a file may be larger than the free memory
            while piece := file.read(2**20):
                digest.update(piece)
        return digest.hexdigest()

    names = files(directory) if names is None else list(names)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def write(directory: epath.Path, *, step: int) -> None:
    """Writes SHA256.json of a saved step. OSError where its arrays are missing."""
    found = digests(directory)
    if fault := lacks_arrays(found):
        raise OSError(f"the save of step {step} in {directory.parent} is not complete: {fault}")
    (directory / DIGESTS).write_text(json.dumps({"step": step, "files": found}, indent=1), encoding="utf-8")


def changed(directory: epath.Path, name: str) -> bool:
    """Whether a file of a step differs from its digest in SHA256.json; False where there is no such file or no such digest."""
    try:
        said = json.loads((directory / DIGESTS).read_bytes())
        expected = said.get("files", said).get(name)
        return isinstance(expected, str) and digests(directory, [name])[name] != expected
    except (OSError, ValueError, RecursionError, AttributeError):
        return False


def damage(directory: epath.Path, *, step: int) -> str | None:
    """What is wrong with a step's directory: it is another step, or the first listed file that is missing or changed. None if
    nothing is. Files that are not listed are ignored."""
    try:
        said = json.loads((directory / DIGESTS).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return f"{DIGESTS} is missing: the save was not finished"
    except (OSError, ValueError, RecursionError):
        return f"{DIGESTS} is not readable"
    expected = said.get("files", said) if isinstance(said, dict) else None
    if not isinstance(expected, dict) or not all(isinstance(digest, str) for digest in expected.values()):
        return f"{DIGESTS} is not readable"
    if expected is not said and said.get("step") != step:
        return f"it is step {said.get('step')}, and was renamed"
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
    """The latest of the steps in `checkpoints/` that is intact, and step -> what is wrong for those after it. UserError where
    none is intact."""
    faults: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        fault = damage(directory / str(step), step=step)
        if fault is None:
            return step, faults
        faults[step] = fault
    said = "; ".join(f"{step}: {fault}" for step, fault in faults.items())
    raise UserError(f"{directory.parent} has no intact checkpoint ({said}); bring one back, or {cure}")


def lacks_arrays(found: Iterable[str]) -> str | None:
    """What is wrong if these file names include no arrays, otherwise None."""
    if any(name.endswith("manifest.ocdbt") for name in found) and any(ARRAYS.fullmatch(name) for name in found):
        return None
    return "the arrays are not among its files"
