"""Atomic writes of files and folders: whenever the process is killed, the old or the new one exists, complete."""

import errno
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from lm.errors import Busy, UserError

AnyPath = TypeVar("AnyPath", bound=Any)  # a pathlib.Path, or an epath.Path of a bucket


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a temporary file `<name>.<process id>.tmp` and renames it. An error removes it; after a kill it remains."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same at once
    temporary.unlink(missing_ok=True)  # left by a killed process with the same id, or a link to another file
    try:
        with temporary.open("xb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON and keeps the order of keys, which matters: the order of a run's data sources decides its rows."""
    write_bytes(path, (json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def strict(value: Any) -> Any:
    """`value` with the strings "nan", "inf" and "-inf" instead of such floats. Python would write NaN, for which other programs
    reject the file."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def new_folder(target: Path) -> Generator[Path]:
    """Yields the folder `.<name>.partial` beside `target` to write into, and renames it to `target` when the block ends. An
    error removes it, and the folders above it that were made for it; after a kill it remains until the next call with the same
    target."""
    target = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; give another, nothing is overwritten")
    if target.is_mount():
        raise UserError(f"{target} is a mount point, which cannot be replaced; give a folder in it")
    folder = target.with_name(f".{target.name}.partial")
    made = missing(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        try:
            yield folder
            folder.rename(target)
        except BaseException:
            _remove(folder)
            remove_empty(made)
            raise


def missing(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, from the inside out."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those of the folders, given from the inside out, that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Creates or empties the folder and locks it; raises Busy if another process has it. The system frees the lock of a process
    that dies."""
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process is writing {folder}; wait for it, or give another target") from None
        _empty(folder)
        yield
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(folder: Path) -> None:
    """Removes the folder, with retries for 2 s, because threads may still be writing to it. The next `new_folder` removes
    what is left."""
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def put_aside(path: AnyPath, folder: AnyPath, *, name: str | None = None) -> AnyPath:
    """Moves a file or folder into `folder`, which is created if needed, and returns its new path: `name` (default: its own),
    with `.2`, `.3`, ... appended if that exists. Overwrites nothing.

    If `folder` is on another disk, a folder of the same name beside `path` is used instead, because a checkpoint may be too
    large to copy.
    """
    if folder.exists() and not folder.is_dir():
        put_aside(folder, folder.parent / f"{folder.name}.2")
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.exists():  # a bucket has no empty folders, and etils renames only into an existing one
        (folder / ".keep").write_bytes(b"")
    name = name or path.name
    names = (name if i == 1 else f"{name}.{i}" for i in count(1))
    target = next(target for name in names if not (target := folder / name).exists())
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = path.parent / folder.name
        if beside != folder:
            return put_aside(path, beside, name=name)
        shutil.move(path, target)  # `folder` is a link to another disk
    return target
