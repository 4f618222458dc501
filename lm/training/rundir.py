"""The directory of a run, which explains itself: config, manifest, metrics, and a lock against a second run."""

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

from lm import atomic, config, distributed, paths, redact
from lm.config import resolve
from lm.errors import Busy, UserError, printable
from lm.training import jsonl

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorstore", "sentencepiece", "numpy")
FILES = ("config.json", "manifest.json", *jsonl.LOGS, "summary.json")
BUCKETS = ("gs://",)
STAGING = "~/.cache/lm/runs"  # local copies of what runs keep in buckets
PUBLISH = 60  # seconds between copies to a bucket, at least


class RunDir:
    """`<workdir>/{config.json, manifest.json, metrics.jsonl, samples.jsonl, goodput.jsonl, summary.json, report.html,
    tensorboard/, profile/}`, and the `checkpoints/` of `lm/checkpoint.py`. Damaged files are moved to `damaged/`, and logs of
    steps whose checkpoints are gone to `earlier/`; only unfinished temporary files are removed. With several hosts, only host 0
    locks and writes; on the others, writing does nothing.

    A bucket can neither lock nor append. There `path` is a local folder, whose changed files are copied to `home` once a minute
    and at the end; checkpoints are written to `home` directly. On a new machine, the bucket's files are copied to `path` first.
    """

    def __init__(self, workdir: str | Path):
        self.writes = distributed.is_main_process()
        self._lock: IO[str] | None = None
        self._published: dict[Path, tuple[int, int]] = {}  # size and time of change of what `home` has
        self._last = time.monotonic()
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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        except OSError as error:
            raise UserError(f"cannot write in --workdir={workdir}: {error.strerror}; give another directory") from error
        try:
            if self.in_bucket:
                self._fetch()
            self._repair()
        except BaseException:
            self._lock.close()
            raise

    @property
    def aside(self) -> Path:
        """Where damaged files are kept."""
        return self.path / "damaged"

    def _repair(self) -> None:
        """Makes what other programs or a kill left into files that this run can add to and replace."""
        for name in (*FILES, "report.html"):
            for unfinished in self.path.glob(f"{name}.[0-9]*.tmp"):  # of `atomic.write_bytes`; no other process writes here
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
        """Copies the bucket's files here, except logs that are longer here: a kill may have come before the last copy."""
        try:
            there = [name for name in FILES if (self.home / name).exists()]
        except ImportError as error:
            raise UserError(f"--workdir={self.home} needs gcsfs ({error}): pip install gcsfs") from error
        for name in there:
            local, data = self.path / name, (self.home / name).read_bytes()
            if not local.exists() or local.stat().st_size < len(data):
                atomic.write_bytes(local, data)

    def publish(self, *, now: bool = False) -> None:
        """Copies changed files to the bucket, if there is one. Without `now`, at most once in PUBLISH seconds."""
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

    def _locked(self) -> IO[str]:
        """Takes the lock and writes this process's number into it. Busy where another run holds it."""
        path = self.path / ".lock"
        while True:
            if (lock := _opened(path)) is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    owner = lock.read(100).strip() or "unknown"
                    lock.close()
                    raise Busy(
                        f"another run (process {owner}) is at work in {self.path}; wait for it, or take another --workdir"
                    ) from None
                if not _is_at(lock, path):  # moved aside since it was opened, by a run that took a new one
                    lock.close()
                    continue
                if os.fstat(lock.fileno()).st_nlink == 1:
                    break
            # Writing the number through a link would change a file elsewhere. A hard link may be moved only while it is
            # locked: it may be the lock of a run that is at work (`cp -al` makes such links).
            _warn(f"{path} is a link or not a regular file; moved to {atomic.put_aside(path, self.aside)}")
            if lock is not None:
                lock.close()
        lock.truncate(0)
        lock.write(f"{os.getpid()}")
        lock.flush()
        return lock

    def close(self) -> None:
        try:
            self.publish(now=True)
        finally:
            if self._lock is not None:
                self._lock.close()

    def write_json(self, name: str, tree: Any) -> None:
        """Replaces a file of the run; a kill leaves the old one."""
        if self.writes:
            atomic.write_json(self.path / name, tree)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        if self.writes:
            jsonl.append(self.path / name, dict(row))

    def rows(self, name: str) -> list[dict[str, Any]]:
        return jsonl.read(self.path / name)

    def forget_after(self, step: int) -> None:
        """Drops rows of steps after `step`, which will be done again. At step 0, where a run with logs has no checkpoint left,
        its logs are moved to `earlier/` instead, with a warning."""
        if not self.writes:
            return
        logs = {name: self.rows(name) for name in ("metrics.jsonl", "samples.jsonl")}
        if step == 0 and (last := max((row["step"] for rows in logs.values() for row in rows), default=0)):
            kept = [str(atomic.put_aside(self.path / name, self.path / "earlier")) for name, rows in logs.items() if rows]
            _warn(
                f"{self.path} has logs up to step {last} and no checkpoint: the run begins anew, and the logs of before are in "
                f"{' and '.join(kept)}"
            )
            return
        for name, rows in logs.items():
            if any(row["step"] > step for row in rows):
                jsonl.rewrite(self.path / name, [row for row in rows if row["step"] <= step])


def _opened(path: Path) -> IO[str] | None:
    """The file at `path`, made if there is none. None where it is a symbolic link, a folder, a pipe or a device."""
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
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _warn(text: str) -> None:
    warnings.warn(printable(text), stacklevel=3)


def manifest(run: config.Run, *, data_fingerprint: str, tokenizer_fingerprint: str, mesh: Any) -> dict[str, Any]:
    """What else decides a run beside its config: code, versions, devices, data. Secrets of the environment are left out."""
    prefixes = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "LM_")
    environment = redact.redacted_environment((k, v) for k, v in os.environ.items() if k.startswith(prefixes))
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": redact.redacted_command(sys.argv),
        "git": git_state(),
        "python": platform.python_version(),
        "host": platform.node(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "processes": jax.process_count()},
        "mesh": dict(mesh.shape),
        "environment": environment,
        "data_fingerprint": data_fingerprint,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "config_sha256": hashlib.sha256(resolve.to_json(run).encode()).hexdigest(),
    }


def git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a checkout."""
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
    """A digest over all parameters in the order of their paths: name, dtype, shape, bytes. All hosts must ask for it."""
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
