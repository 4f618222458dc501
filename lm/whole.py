"""Whether what Orbax wrote is whole: `SHA256.json` lists every file of a saved directory with its digest.

    {"step": 8, "files": {"config/metadata": "9f86d0...", "state/manifest.ocdbt": "2c26b4...", ...}}

It is written before the directory gets its final name, so a directory without it was not finished. It names the step, so a
directory that was renamed is noticed. Checkpoints of earlier versions list the files alone.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

DIGESTS = "SHA256.json"
UNDIGESTED = {DIGESTS, "_CHECKPOINT_METADATA", "commit_success.txt"}  # Orbax writes the other two after the digests
# Figures beside a state, of no use to whoever goes on from it: where they are damaged they are put aside, and the step stays.
SIDE = "metrics"
# TensorStore keeps arrays in a database (OCDBT): a manifest, and files of data named by a hash.
ARRAYS = re.compile(r"(?:.*/)?d/[0-9a-f]{32}")


def files(directory: epath.Path) -> list[str]:
    """All files below that have a digest, as sorted relative paths."""

    def below(d: epath.Path) -> Iterator[epath.Path]:  # epath has no `rglob`: a bucket has no directories to walk
        for p in d.iterdir():
            yield from below(p) if p.is_dir() else [] if p.name in UNDIGESTED else [p]

    return sorted(p.relative_to(directory).as_posix() for p in below(directory))


def digests(directory: epath.Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of all files, or of these, read from the disk again, by relative path."""

    def one(name: str) -> str:
        digest = hashlib.sha256()
        with (directory / name).open("rb") as file:  # piece by piece: a file may be larger than what memory is left
            while piece := file.read(2**20):
                digest.update(piece)
        return digest.hexdigest()

    names = files(directory) if names is None else list(names)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def write(directory: epath.Path, *, step: int) -> None:
    """Writes SHA256.json of a step that was saved. OSError where the arrays are not in its directory."""
    found = digests(directory)
    if fault := lacks_arrays(found):
        raise OSError(f"the save of step {step} in {directory.parent} is not whole: {fault}")
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
    """What is wrong with a step's directory: the first listed file that is missing or changed, or that it is of another step;
    None if it is whole. Files that are not listed do no harm and are passed over."""
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


def lacks_arrays(found: Iterable[str]) -> str | None:
    """What is wrong if there are no files of arrays among these names."""
    if any(name.endswith("manifest.ocdbt") for name in found) and any(ARRAYS.fullmatch(name) for name in found):
        return None
    return "the arrays are not among its files"
