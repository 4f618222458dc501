"""Cleaned documents, which a preparation leaves for the next one: below <cache>/cleaned/<digest>, a folder for each source.

Cleaning takes most of the time and depends on one source alone, whereas duplicates, the tokenizer and thus the tokens depend on
all. So with one more source, only that one is read and cleaned. A preparation moves the folder to its own work and, at its end,
back; another that needs it meanwhile cleans for itself. All of it may be deleted at any time.
"""

import json
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

from lm import atomic
from lm.data.corpus import integrity

KEPT = ("open.done.json", "clean.done.json", "clean")  # of the folder of work of a source
_FILES = "files.json"  # name -> SHA-256
_ROOM = 10  # times its size that must be free on the disk to keep a folder


def take(home: Path, work: Path) -> None:
    """Moves what was kept of a source to its folder of work, if that is not there yet. What is damaged is deleted."""
    if work.exists() or not home.is_dir():
        return
    if not _intact(home):
        if home.is_dir():  # or another process took it meanwhile
            warnings.warn(f"cleaned documents in {home} are not as they were written; they are cleaned again", stacklevel=2)
            shutil.rmtree(home, ignore_errors=True)
        return
    with suppress(OSError):  # another process has taken it
        home.rename(work)


def keep(work: Path, home: Path) -> None:
    """Moves the cleaned documents of a source from its folder of work, unless the disk is too full or another process was
    first."""
    for path in work.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    files = _files(work)
    if shutil.disk_usage(work).free < _ROOM * sum(path.stat().st_size for path in files.values()):
        return
    atomic.write_json(work / _FILES, {name: integrity.sha256(path) for name, path in files.items()})
    home.parent.mkdir(exist_ok=True)
    with suppress(OSError):
        work.rename(home)


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _FILES}


def _intact(folder: Path) -> bool:
    try:
        known = json.loads((folder / _FILES).read_bytes())
        return known == {name: integrity.sha256(path) for name, path in _files(folder).items()}
    except (OSError, ValueError):
        return False
