"""Workers on a Ray cluster, by a stand-in for Ray that calls at once; `tests/e2e/test_ray.py` has a real one."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import cluster, workers
from lm.errors import UserError


class RayError(Exception):
    pass


class TaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


class Cluster:
    """Nodes of so many CPUs and cores. A call is a function without arguments, which `get` calls."""

    def __init__(self, cpus: int, cores: int):
        self.cpus, self.cores, self.used, self.keepers, self.gone = cpus, cores, 0, [], set()
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=TaskError)

    def cluster_resources(self):
        return {"CPU": float(self.cpus), "memory": 1e9}

    def shutdown(self):
        self.gone.update(self.keepers)

    def remote(self, kind):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: self.begin(kind())))

    def begin(self, keeper):
        self.used += 1
        keeper.place = lambda: ("node", self.cores, self.cpus)
        keeper.waits = self.used > self.cpus
        self.keepers.append(keeper)
        method = lambda name: SimpleNamespace(remote=lambda *args: (keeper, lambda: getattr(keeper, name)(*args)))
        return SimpleNamespace(
            **{name: method(name) for name in ("place", "begin", "code", "send", "wait", "end")}, keeper=keeper
        )

    def wait(self, references, timeout):
        return [r for r in references if not r[0].waits], []

    def get(self, reference, timeout):
        if reference[0] in self.gone:
            raise RayError("the node\nis dead")
        return reference[1]()

    def kill(self, handle):
        self.gone.add(handle.keeper)


class Process:
    """A worker's process that ends when the test says so."""

    def __init__(self, name, folders, shard, cores, log):
        self.name, self.cores, self.folders, self.sent, self.returncode = name, cores, folders, [], None
        self.process, self.end = self, f"{name} ended with exit code 3 (all it wrote is in {log})"

    def poll(self):
        return self.returncode

    def send(self, number):
        self.sent.append(number)
        self.returncode = 0

    def wait(self):
        return self.returncode


@pytest.fixture
def start(monkeypatch, tmp_path):
    def begin(cpus=2, cores=4, count=None, left=9):
        ray = Cluster(cpus, cores)
        monkeypatch.setattr(cluster.cluster, "connected", lambda on: ray)
        monkeypatch.setattr(cluster, "check", lambda ray, home: None)
        monkeypatch.setattr(workers, "Worker", Process)
        monkeypatch.setattr(workers, "cores", lambda: list(range(cores)))
        return ray, cluster.start("ray", [Path("sweep")], tmp_path, count, left, "0/1")

    return begin


def test_workers_share_the_cores_of_their_node_and_end(start):
    ray, made = start(cpus=2, cores=5)
    assert len(made) == 2 and all(worker.waits and worker.alive for worker in made)
    assert not any(worker.waits for worker in made)
    assert [keeper.worker.cores for keeper in ray.keepers] == [[0, 1], [2, 3, 4]]
    assert ray.keepers[0].worker.folders == [Path("sweep").absolute()]
    for keeper, code in zip(ray.keepers, (0, 3), strict=True):
        keeper.worker.returncode = code
    assert [worker.alive for worker in made] == [False, False] and [worker.failed for worker in made] == [False, True]
    assert made[1].end.startswith("worker1 ended with exit code 3")


def test_a_node_may_offer_more_cpus_than_it_has_cores(start):
    ray, made = start(cpus=3, cores=2)
    assert all(worker.alive for worker in made)
    assert [keeper.worker.cores for keeper in ray.keepers] == [[0], [1], [0]]


def test_a_node_is_lost_and_a_signal_reaches_the_others(start):
    ray, made = start()
    assert all(worker.alive for worker in made)
    ray.gone.add(ray.keepers[0])
    assert [worker.alive for worker in made] == [False, True]
    assert made[0].failed and made[0].end == "worker0 is lost with its node (the node is dead)"
    for worker in made:
        worker.send(signal.SIGINT)
        worker.wait()
    assert ray.keepers[1].worker.sent == [signal.SIGTERM] and not made[1].alive and not made[1].failed


class Board:
    def __init__(self, jobs):
        self.ended = []

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        pass

    def done(self, job, outcome):
        self.ended.append(job)

    def say(self, text):
        pytest.fail(text)


def test_a_worker_without_a_place_does_not_hold_the_command_up(start):
    """More are asked for than there is room for: one does the job, and the command ends."""
    ray, made = start(cpus=1, count=2)

    def outcome():
        if hasattr(ray.keepers[0], "worker"):
            ray.keepers[0].worker.returncode = 0
            return {"metrics": {}}

    job = SimpleNamespace(outcome=outcome)
    assert workers.run([job], made, Board) == ({str(job): {"metrics": {}}}, 0)
    assert made[1].end == "worker1 never began, as no node had room for it"


@pytest.mark.parametrize(
    "resources, expected",
    [
        ({"CPU": 8.0}, (8, {"num_cpus": 1})),
        ({"CPU": 8.0, "GPU": 2.0}, (2, {"num_gpus": 1, "num_cpus": 0})),
        ({"memory": 1.0}, (0, {"num_cpus": 1})),
    ],
)
def test_a_worker_for_each_gpu_or_cpu(resources, expected):
    assert cluster.slots(resources) == expected


def test_no_more_workers_than_jobs_and_none_without_a_cpu(start):
    assert len(start(cpus=8, left=3)[1]) == 3 and len(start(cpus=8, count=2)[1]) == 2
    with pytest.raises(UserError, match="the cluster has no CPU"):
        start(cpus=0)


def test_a_look_sees_a_lock_of_another_process(tmp_path):
    import fcntl

    mark = tmp_path / "x.seen"
    assert cluster._look(str(mark))[:2] == (False, False)
    mark.touch()
    assert cluster._look(str(mark))[:2] == (True, False)
    with mark.open("w", encoding="utf-8") as file:  # another open file is as good as another process, to flock
        fcntl.flock(file, fcntl.LOCK_EX)
        sees, locked, versions = cluster._look(str(mark))
    assert sees and locked and versions == cluster.versions() and versions["jax"][0].isdigit()
