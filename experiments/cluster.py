"""Workers of studies and sweeps on a Ray cluster: `ray start --head` on one machine, `ray start --address=...` on the others.

A worker is the same process there as on this machine (`experiments.workers`): it takes from the folder what no other is
working on, and holds a lock of it meanwhile. So D must be a folder that all nodes see under the same name, on a file system
that passes locks from one machine to another; both are tried before the first worker starts.

The worker of a node that is lost is not replaced: the others take its units and trials, from their checkpoints.
"""

import fcntl
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from experiments import workers
from lm.data.corpus import cluster
from lm.errors import UserError

_WAIT = 60  # seconds that a node has to answer what its worker does
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "sentencepiece")
_LM, _HERE = Path(cluster.__file__).parents[2], Path(__file__).parent


class Remote:
    """A worker on some node: it begins when the cluster has a CPU or GPU for it."""

    def __init__(self, ray: Any, name: str, keeper: Any, begin: Callable[[Any, str, int, int], Any]):
        self.name, self.reported, self.failed = name, False, False
        self._ray, self._keeper, self._begin = ray, keeper, begin
        self._place, self._code, self._lost = keeper.place.remote(), None, ""

    @property
    def waits(self) -> bool:
        """Whether no node has had room for it yet."""
        return self._place is not None and not self._lost

    @property
    def alive(self) -> bool:
        """Also while it waits."""
        if self._lost or self._code is not None:
            return False
        if self._place is not None:
            if not self._ray.wait([self._place], timeout=0)[0]:
                return True
            if (place := self._ask(self._place)) is not None:
                self._place = None
                self._ask(self._begin(self._keeper, *place))
        else:
            self._code = self._ask(self._keeper.code.remote())
        self.failed = bool(self._lost or self._code)
        return not self._lost and self._code is None

    def send(self, number: int) -> None:
        if self._place is not None:
            self._lost = "never began, as no node had room for it"
            self._ray.kill(self._keeper)
        elif not self._lost and self._code is None:
            self._ask(self._keeper.send.remote(number))

    def wait(self) -> None:
        if self._place is None and not self._lost and self._code is None:
            self._code = self._ask(self._keeper.wait.remote(), timeout=None)

    @property
    def end(self) -> str:
        return f"{self.name} {self._lost}" if self._lost else str(self._ask(self._keeper.end.remote()))

    def _ask(self, reference: Any, timeout: float | None = _WAIT) -> Any:
        """What the node answers; None, and the worker is lost, if it does not."""
        try:
            return self._ray.get(reference, timeout=timeout)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except self._ray.exceptions.RayError as error:
            self._lost = f"is lost with its node ({' '.join(str(error).split())[:120]})"
            return None


class Keeper:
    """Holds a worker's process on its node."""

    def place(self) -> tuple[str, int, int]:
        """The node's name, its cores, and how many workers it has room for."""
        import ray

        me = ray.get_runtime_context().get_node_id()
        resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == me)
        return me, len(workers.cores()), slots(resources)[0]

    def begin(self, name: str, folders: Sequence[Path], shard: str, cores: slice, log: Path, here: str) -> None:
        if os.path.isdir(here):  # where relative paths of sources begin
            os.chdir(here)
        self.worker = workers.Worker(name, folders, shard, workers.cores()[cores], log)

    def code(self) -> int | None:
        return self.worker.process.poll()

    def send(self, number: int) -> None:
        self.worker.send(signal.SIGTERM)  # Ray has its processes, and so those that they start, ignore SIGINT

    def wait(self) -> int:
        return self.worker.process.wait()

    def end(self) -> str:
        return self.worker.end


def slots(resources: dict[str, float]) -> tuple[int, dict[str, int]]:
    """How many workers a node or a cluster has room for, and what each asks of Ray: one for each GPU, or CPU if it has none."""
    if gpus := int(resources.get("GPU", 0)):
        return gpus, {"num_gpus": 1, "num_cpus": 0}
    return int(resources.get("CPU", 0)), {"num_cpus": 1}


def start(on: str, folders: Sequence[Path], home: Path, count: int | None, left: int, shard: str) -> list[Remote]:
    """Begins `count` workers on the cluster, or as many as it has room for, but no more than jobs are left; they log to `home`.
    Raises UserError if no cluster answers, or if a node of it cannot share the work."""
    ray = cluster.connected(on)
    try:
        check(ray, home)
        room, each = slots(ray.cluster_resources())
        if not room:
            raise UserError(f"--on={on}: the cluster has no CPU: `ray start --address=HOST:6379` on a machine adds its own")
        begun: Counter[str] = Counter()

        def begin(log: Path) -> Callable[[Any, str, int, int], Any]:
            def on_node(keeper: Any, node: str, cores: int, room: int) -> Any:
                parts = min(room, cores)  # a node may offer more CPUs than it has cores
                part, first = cores // parts, begun[node] % parts
                begun[node] += 1
                mine = slice(first * part, None if first == parts - 1 else (first + 1) * part)
                return keeper.begin.remote(log.stem, [*map(Path.absolute, folders)], shard, mine, log.absolute(), os.getcwd())

            return on_node

        keepers = ray.remote(Keeper).options(**each)
        logs = [home / f"worker{i}.log" for i in range(max(1, min(count or room, left)))]
        return [Remote(ray, log.stem, keepers.remote(), begin(log)) for log in logs]
    except BaseException:
        ray.shutdown()
        raise


def check(ray: Any, folder: Path) -> None:
    """Raises UserError if a node does not see `folder` or what is locked there, or has other code or versions than this
    process."""
    mark, ours = folder.absolute() / f"{uuid4().hex}.seen", versions()
    try:
        with mark.open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for node, (sees, locked, theirs) in cluster.on_each_node(ray, _look, str(mark)):
                if not sees:
                    raise UserError(f"{node} does not see {folder}: give a --workdir that all nodes share under the same name")
                if not locked:
                    raise UserError(
                        f"{node} does not see that a file in {folder} is locked, so that two workers would train the same "
                        "run: mount the file system with locks (NFS 4, or Lustre with -o flock)"
                    )
                cluster.check_same(node, ours, theirs)
    finally:
        mark.unlink(missing_ok=True)


def _look(mark: str) -> tuple[bool, bool, dict[str, str]]:
    """Whether this node sees the file, and that another process has locked it, and the versions here."""
    sees, locked = Path(mark).exists(), False
    if sees:
        with Path(mark).open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked = True
    return sees, locked, versions()


def versions() -> dict[str, str]:
    """Versions of everything that decides the result of a run."""
    found = {"python": ".".join(map(str, sys.version_info[:2])), "the code of lm": cluster.code(_LM, ("",))}
    return found | {"the code of experiments": cluster.code(_HERE, ("",))} | cluster.versions_of(_PACKAGES)
