"""Prepared data at gs://, s3:// or another URL: one process prepares it on its disk and puts it there, all others wait for it.

The report is written last, and marks that the data is complete. Chunks of token stores are then read by TensorStore, everything
else through fsspec, so that a host reads the rows that it trains on and no more.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock

from lm import paths
from lm.data.corpus import integrity
from lm.data.corpus.documents import one_line
from lm.data.corpus.places import Unreachable, Url
from lm.errors import UserError

STAGING = "~/.cache/lm/buckets"  # local folder where data is prepared that goes elsewhere
SCHEMES = ("gs", "s3", "https", "http", "memory", "file")  # that TensorStore reads; of http only data that is there
WAIT = 24 * 3600  # seconds
_THREADS = 16
_POLLS = (0.2, 10.0)  # seconds between two looks, at first and at most


def home(cache: str, mark: str) -> Url:
    """Where the data of this fingerprint lies below `data.cache`. UserError if no data can lie there."""
    scheme = cache.partition("://")[0]
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(f"data.cache={cache}: prepared data is in a local folder, or at one of {known}")
    return Url(cache.rstrip("/")) / mark


def report_of(home: Url) -> dict[str, Any] | None:
    """The report of finished data, None if there is none. UserError if that cannot be told."""
    try:
        return integrity.read_report(home, home.name)
    except integrity.Damaged:
        return None
    except Unreachable as error:
        raise UserError(f"data.cache cannot be read ({one_line(error)}); check the network and the access to it") from None


def put(home: Url, make: Callable[[str], Path]) -> dict[str, Any]:
    """Makes the data by `make`, given a local cache, and puts it into the bucket unless another process did so meanwhile. What
    was made is removed from the disk at the end; after a kill, the next call goes on with it."""
    if home.url.startswith("http"):
        raise UserError(f"{home} has no prepared data, and a web server is only read: prepare it in a folder or a bucket first")
    staging = _staging()
    staging.mkdir(parents=True, exist_ok=True)
    with _lock(home):
        if report_of(home) is None:
            folder = make(str(staging))
            try:
                upload(folder, home)
            except OSError as error:
                raise UserError(
                    f"data.cache={home.url} cannot be written ({one_line(error)}); what was prepared is in {folder}, and the "
                    "same command goes on with it"
                ) from None
        for folder in _staged(home):
            shutil.rmtree(folder)
    if (report := report_of(home)) is None:
        raise UserError(f"{home / integrity.REPORT} was written and is not there; check whether others remove files there")
    return report


def tidy(home: Url) -> None:
    """Removes from the disk what is left of finished data: by a process that was killed after it had written the report, or one
    that was killed while another machine prepared the same. What a process is putting there now is left to it."""
    if _staged(home):
        with contextlib.suppress(filelock.Timeout), _lock(home, timeout=0):
            for folder in _staged(home):
                shutil.rmtree(folder)


def _staging() -> Path:
    return paths.local(STAGING, name="the local copy of data.cache")


def _lock(home: Url, timeout: float = -1) -> filelock.BaseFileLock:
    return filelock.FileLock(_staging() / f"{home.name}.put.lock", timeout=timeout)


def _staged(home: Url) -> list[Path]:
    """The local folders of this data that exist: prepared, or in preparation."""
    return [folder for end in ("", ".partial") if (folder := _staging() / f"{home.name}{end}").is_dir()]


def upload(folder: Path, home: Url) -> None:
    """Copies all files of the folder, the report last."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda name: (home / name).put(folder / name), [n for n in files if n != integrity.REPORT]))
    (home / integrity.REPORT).put(folder / integrity.REPORT)


def wait(home: Url, sources: Iterable[str], *, seconds: float) -> dict[str, Any]:
    """Waits for the report of data that another process prepares. UserError after so many seconds, with what is missing."""
    end, pause, fault = time.monotonic() + seconds, _POLLS[0], ""
    while True:
        try:
            if (report := report_of(home)) is not None:
                return report
            fault = ""
        except UserError as error:  # the network may come back
            fault = f"; {error}"
        left = end - time.monotonic()
        if left <= 0:
            raise UserError(
                f"{home / integrity.REPORT} is missing after {seconds:g} s (LM_PREPARE_SECONDS): host 0 prepares "
                f"{', '.join(sources)} and writes it last, after {_there(home)}{fault}; see the log of host 0, or run "
                "python -m lm.prepare with this config first"
            )
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _POLLS[1])


def _there(home: Url) -> str:
    try:
        count = sum(1 for _ in home.glob("**/*"))
    except OSError:
        count = 0
    return f"the {count:,} files that are there" if count else "all other files, of which none is there"
