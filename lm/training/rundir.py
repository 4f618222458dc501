"""The directory of a run: its config, manifest, logs and reports, and a lock that keeps a second run out."""

import errno
import fcntl
import hashlib
import os
import platform
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from etils import epath

import lm
from lm import atomic, config, distributed, paths, redact
from lm.config import resolve
from lm.errors import Busy, UserError, printable
from lm.training import jsonl

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorstore", "sentencepiece", "numpy")
FILES = ("config.json", "manifest.json", *jsonl.LOGS, "summary.json")
BUCKETS = ("gs://",)
STAGING = "~/.cache/lm/runs"  # local folders of runs whose workdir is in a bucket
PUBLISH = 60  # minimum seconds between copies to a bucket


class RunDir:
    """`<workdir>/{config.json, manifest.json, metrics.jsonl, samples.jsonl, goodput.jsonl, summary.json, report.html,
    tensorboard/, profile/}`, and the `checkpoints/` of `lm/checkpoint.py`. Damaged files are moved to `damaged/`, and logs of
    steps whose checkpoints are gone to `earlier/`; only unfinished temporary files are deleted. With several hosts, only host 0
    locks and writes; on the others, the writing methods do nothing.

    Buckets support neither locks nor appending. For one, `path` is a local folder whose changed files are copied to `home`
    once a minute and at the end; checkpoints are written to `home` directly. On a new machine, the bucket's files are copied
    to `path` first.

    Raises Busy if another run holds the lock, and UserError if the workdir cannot be used.
    """

    def __init__(self, workdir: str | Path):
        self.writes = distributed.is_main_process()
        self._lock: IO[str] | None = None
        self._published: dict[Path, tuple[int, int]] = {}  # file -> (size, mtime) when it was copied to `home`
        self._last = time.monotonic()
        self._begun = True  # a run has begun in the folder: it was not empty
        self._made: list[Path] = []  # folders that this process made, from the inside out
        self.in_bucket = str(workdir).startswith(BUCKETS)
        if self.in_bucket:
            staged = hashlib.sha256(str(workdir).rstrip("/").encode()).hexdigest()[:16]
            self.path, self.home = paths.local(STAGING, name="the local copy of the bucket") / staged, epath.Path(workdir)
        elif "://" in str(workdir):
            raise UserError(f"--workdir={workdir}: only gs:// buckets and folders are known; mount another and give its folder")
        else:
            self.path = paths.local(workdir, name="--workdir")
            self.home = epath.Path(self.path)
        if not self.writes:
            return
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={workdir} is a file; give a directory")
        self._made = atomic.missing(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._begun = any(self.path.iterdir())
            self._lock = self._acquire_lock()
        except OSError as error:
            atomic.remove_empty(self._made)
            raise UserError(f"cannot write in --workdir={workdir}: {error.strerror}; give another directory") from error
        try:
            if self.in_bucket:
                self._fetch()
            self._repair()
        except BaseException:
            self.refused()
            self._lock.close()
            raise

    @property
    def aside(self) -> Path:
        """The folder that damaged files are moved to."""
        return self.path / "damaged"

    def _repair(self) -> None:
        """Makes sure that every file of the run can be replaced or appended to, whatever a kill or another program left
        there."""
        for name in (*FILES, "report.html"):
            for unfinished in self.path.glob(f"{name}.[0-9]*.tmp"):  # of `atomic.write_bytes`; we hold the lock
                if not unfinished.is_dir():
                    unfinished.unlink()
        for name in ("config.json", "manifest.json", "summary.json", "report.html"):
            jsonl.regular(self.path / name, self.aside)
        for name in jsonl.LOGS:
            jsonl.repair(self.path / name, self.aside)
        for folder in (self.path / name for name in ("tensorboard", "profile")):
            if os.path.lexists(folder) and not folder.is_dir():
                kept = atomic.put_aside(folder, self.aside)
                _warn(f"{folder} is not a folder; moved to {kept}")

    def _fetch(self) -> None:
        """Copies the bucket's files to `path`. A longer local file is newer (the process was killed before it was copied) and
        stays."""
        try:
            published = [name for name in FILES if (self.home / name).exists()]
        except ImportError as error:
            raise UserError(f"--workdir={self.home} needs gcsfs ({error}): pip install gcsfs") from error
        self._begun = self._begun or bool(published)
        for name in published:
            local, data = self.path / name, (self.home / name).read_bytes()
            if not local.exists() or local.stat().st_size < len(data):
                atomic.write_bytes(local, data)

    def publish(self, *, now: bool = False) -> None:
        """Copies changed files to the bucket, if the workdir is in one: at once if `now`, else at most every PUBLISH
        seconds."""
        if not self.in_bucket or not self.writes or (not now and time.monotonic() - self._last < PUBLISH):
            return
        for file in (f for f in sorted(self.path.rglob("*")) if f.is_file() and f.name != ".lock"):
            state = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._published.get(file) != state:
                target = self.home / file.relative_to(self.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
                self._published[file] = state
        self._last = time.monotonic()

    def _acquire_lock(self) -> IO[str]:
        """Locks `.lock` and writes this process's id into it. Raises Busy if another run holds it."""
        path = self.path / ".lock"
        while True:
            if (lock := _open_regular(path)) is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    owner = lock.read(100).strip() or "unknown"
                    lock.close()
                    raise Busy(
                        f"another run (process {owner}) is at work in {self.path}; wait for it, or take another --workdir"
                    ) from None
                if not _is_at(lock, path):  # another run moved it aside after we opened it, and made a new one
                    lock.close()
                    continue
                if os.fstat(lock.fileno()).st_nlink == 1:
                    break
            # Writing our id through a link would change a file elsewhere. A hard link is moved only while we hold its lock: it
            # may be the lock of a live run (`cp -al` makes such links).
            _warn(f"{path} is a link or not a regular file; moved to {atomic.put_aside(path, self.aside)}")
            if lock is not None:
                lock.close()
        lock.truncate(0)
        lock.write(f"{os.getpid()}")
        lock.flush()
        return lock

    def refused(self) -> None:
        """If no run has begun in the folder, removes what this process wrote there, and the folders that it made. Call it
        before `close`."""
        if self._lock is None or self._begun:
            return
        (self.path / "goodput.jsonl").unlink(missing_ok=True)
        (self.path / ".lock").unlink(missing_ok=True)
        self._lock.close()  # before the folder goes: NFS keeps an open file in it
        atomic.remove_empty([self.path / "checkpoints"])
        atomic.remove_empty(self._made)

    def close(self) -> None:
        try:
            self.publish(now=True)
        finally:
            if self._lock is not None:
                self._lock.close()

    def write_json(self, name: str, tree: Any) -> None:
        """Replaces a JSON file of the run atomically. The first says that a run has begun in the folder, which then stays."""
        self._begun = True
        if self.writes:
            atomic.write_json(self.path / name, tree)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Appends a row to a log."""
        if self.writes:
            jsonl.append(self.path / name, dict(row))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The valid rows of a log."""
        return jsonl.read(self.path / name)

    def forget_after(self, step: int) -> None:
        """Drops the logs' rows of steps after `step`, which will run again. If `step` is 0, no checkpoint is left, and the logs
        are moved to `earlier/` instead, with a warning."""
        if not self.writes:
            return
        logs = {name: self.rows(name) for name in ("metrics.jsonl", "samples.jsonl")}
        if step == 0 and (last := max((row["step"] for rows in logs.values() for row in rows), default=0)):
            kept = [str(atomic.put_aside(self.path / name, self.path / "earlier")) for name, rows in logs.items() if rows]
            _warn(
                f"{self.path} has logs up to step {last} and no checkpoint: the run starts over; its old logs are in "
                f"{' and '.join(kept)}"
            )
            return
        for name, rows in logs.items():
            if any(row["step"] > step for row in rows):
                jsonl.rewrite(self.path / name, [row for row in rows if row["step"] <= step])


def _open_regular(path: Path) -> IO[str] | None:
    """Opens or creates a regular file. None if `path` is a symbolic link, a folder, a pipe or a device."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        return None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        return None
    return open(file, "r+", encoding="utf-8", errors="replace")


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether `path` still refers to the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _warn(text: str) -> None:
    warnings.warn(printable(text), stacklevel=3)


def manifest(run: config.Run, *, data_fingerprint: str, tokenizer_fingerprint: str, mesh: Any) -> dict[str, Any]:
    """What a run depends on besides its config, as JSON: code, library versions, devices, environment, data. Secrets in the
    command line and the environment are redacted."""
    prefixes = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "LM_")
    environment = redact.redacted_environment((k, v) for k, v in os.environ.items() if k.startswith(prefixes))
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": redact.redacted_command(sys.argv),
        "git": git_state(),
        "python": platform.python_version(),
        "host": platform.node(),
        "versions": {"lm": lm.__version__} | {name: metadata.version(name) for name in LIBRARIES},
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "processes": jax.process_count()},
        "mesh": dict(mesh.shape),
        "kernel": run.model.kernel,  # of attention, which model.kernel=auto chose
        "environment": environment,
        "data_fingerprint": data_fingerprint,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "config_sha256": hashlib.sha256(resolve.to_json(run).encode()).hexdigest(),
    }


def git_state() -> dict[str, Any] | None:
    """{"commit": hash, "changed": lines of `git status`}; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, errors="replace", check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None


def params_sha256(params: Any) -> str:
    """SHA-256 over the name, dtype, shape and bytes of all parameters, sorted by path. A collective: all hosts must call it."""
    digest = hashlib.sha256()
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    for name in sorted(flat):
        array = flat[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        for piece in distributed.pieces(array):
            digest.update(np.ascontiguousarray(piece).tobytes())
    return digest.hexdigest()
