"""Files and folders written whole or not at all: whenever the process is killed, the old one or the new one is there."""

import errno
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from lm.errors import Busy, UserError

AnyPath = TypeVar("AnyPath", bound=Any)  # a pathlib.Path, or an epath.Path of a bucket


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `<name>.<process>.tmp` and renames it. An error removes that file; after a kill it stays."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same at once
    temporary.unlink(missing_ok=True)  # of a killed process with the same number, or a link that leads elsewhere
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
    """In the order that `value` has: that of a run's data sources, for one, decides its rows."""
    write_bytes(path, (json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def strict(value: Any) -> Any:
    """`value` with what JSON has no number for as a text, "nan", "inf" or "-inf": Python writes NaN, and other programs
    refuse the whole file."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def new_folder(target: Path) -> Generator[Path]:
    """Gives a folder to write in, `.<name>.partial` beside `target`, and renames it to `target` when the block ends. An error
    removes it; after a kill it stays there, and the next call for the same target removes it."""
    target = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; give another, nothing is overwritten")
    if target.is_mount():
        raise UserError(f"{target} is where a file system is mounted, which cannot be replaced; give a folder in it")
    folder = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        try:
            yield folder
            folder.rename(target)
        except BaseException:
            _remove(folder)
            raise


@contextmanager
def _held(folder: Path) -> Generator[None]:
    """The folder, made or emptied, while no other process has it; a lock that the system frees when its holder dies."""
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process is writing {folder}; wait for it, or give another target") from None
        _emptied(folder)
        yield
    finally:
        os.close(lock)


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(folder: Path) -> None:
    """Threads that were writing when the error came may write on for a moment. What stays after 2 s the next call removes."""
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def put_aside(path: AnyPath, folder: AnyPath, *, name: str | None = None) -> AnyPath:
    """Moves a file or folder into `folder`, which is made, and returns its new path: under `name` (default: its own), or
    with `.2`, `.3`, ... where that is taken. Nothing is overwritten.

    Where `folder` is on another disk, a folder of the same name beside `path` takes its place: a checkpoint may be too large
    to copy.
    """
    if folder.exists() and not folder.is_dir():
        put_aside(folder, folder.parent / f"{folder.name}.2")
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.exists():  # a bucket has no folders, and etils renames only into one that holds a file
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
        shutil.move(path, target)  # `folder` is itself a link to another disk
    return target
