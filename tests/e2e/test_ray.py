"""Preparation and sweeps on a real Ray cluster of three nodes on this machine: the same bits as one process, whichever node is
lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import cluster as workers
from experiments.sweep.__main__ import main
from lm.data.corpus import cluster, executors
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from tests.processes import HANGS, free_port, wait_for
from tests.unit.data.corpus.test_executors import contents, corpus

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own
STAGES = ("clean", "Digests", "Copies", "Bands", "Edges0", "dropped", "histogram", "bin", "split", "train", "fill-train")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A head without CPUs, on which no task runs, and a function that adds a node. Ends all of their processes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: beside other work, nothing would be done
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        head = dict(num_cpus=0, include_dashboard=False, object_store_memory=80 << 20)
        of = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", of.address)
        try:
            yield of
        finally:
            of.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("ray"), 3000)


@pytest.fixture(scope="module")
def expected(data):
    with executors.using("process"):
        return contents(prepare(replace(data, cache=f"{data.cache}-one"), progress=False).path)


def test_a_node_is_lost_in_the_middle_of_each_stage(data, expected, nodes, monkeypatch):
    """Of two nodes one is killed when the stage's first task is done, and another joins. The folder is that of one process."""
    workers = [nodes.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
    nodes.wait_for_nodes()
    lost = set()
    run = cluster.Ray.run

    def losing(self, tasks, *, size):
        for number, result in enumerate(run(self, tasks, size=size)):
            yield result
            stage = next(
                (s for s in STAGES if number == 0 and s not in lost and list(Path(data.cache).rglob(f".work/**/{s}/*"))), 0
            )
            if stage:
                lost.add(stage)
                nodes.remove_node(workers.pop(0), allow_graceful=False)
                workers.append(nodes.add_node(num_cpus=1, object_store_memory=80 << 20))

    monkeypatch.setattr(cluster.Ray, "run", losing)
    with executors.using("ray", memory=1 << 19):
        assert contents(prepare(data, progress=False).path) == expected
    assert lost == set(STAGES)


def test_a_folder_that_a_node_does_not_see(tmp_path, nodes, monkeypatch):
    monkeypatch.setattr(cluster, "_look", _blind)
    with (
        executors.using("ray") as on,
        pytest.raises(UserError, match="does not see .*set data.cache to a folder that all nodes"),
    ):
        on.check(tmp_path)
    assert not list(tmp_path.iterdir())


def _blind(mark):
    return False, cluster.versions()


def test_a_node_with_other_versions(tmp_path, nodes, monkeypatch):
    monkeypatch.setattr(cluster, "_look", _old)
    with executors.using("ray") as on, pytest.raises(UserError, match=r"has ftfy 1.0 \(here .*\): install the same everywhere"):
        on.check(tmp_path)


def _old(mark):
    return True, cluster.versions() | {"ftfy": "1.0"}


def test_the_error_of_a_task_is_that_of_the_library(nodes):
    with executors.using("ray") as on, pytest.raises(UserError, match="^no such record$"):
        list(on.run([_refuses], size=0))


def _refuses():
    raise UserError("no such record")


@pytest.mark.parametrize("on", ["ray://127.0.0.1:{}", "ray"])
def test_an_address_where_nothing_answers(monkeypatch, on):
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"nothing answers at 127.0.0.1:{port} .*; run `ray start --head` on one machine"):
        executors.using(on.format(port)).__enter__()


def test_an_address_that_is_none():
    with pytest.raises(UserError, match="--on=ray://host is no address of a Ray cluster"):
        executors.using("ray://host").__enter__()


@pytest.fixture
def sweep(flags):
    """Words of a sweep of four trials of which two are left at step 4."""
    few = ("--config.evaluate.rows=8", "--config.log.every=1", "--config.checkpoint.every=3")
    over = ("--over", "optimizer.learning_rate=0.005,0.01,0.02,0.04", "--search=halving", "--eta=2", "--first=4")
    return *flags("decoder.causal", *few), *over


def beside_the_head(nodes, *cpus):
    """The cluster's only nodes but its head: those of other tests are removed."""
    for node in list(nodes.worker_nodes):
        nodes.remove_node(node)
    made = [nodes.add_node(num_cpus=n, object_store_memory=80 << 20) for n in cpus]
    nodes.wait_for_nodes()
    return made


def measured(workdir):
    found = {p.relative_to(workdir): json.loads(p.read_text(encoding="utf-8")) for p in workdir.glob("trial*/step*.json")}
    digests = {p.relative_to(workdir): p.read_bytes() for p in workdir.glob("rung*.json")}
    for p in workdir.glob("trial*/run/summary.json"):
        digests[p.relative_to(workdir)] = json.loads(p.read_text(encoding="utf-8"))["params_sha256"]
    return {path: (r["step"], r["heldout"], r["ledger"]["model_flops"]) for path, r in found.items()} | digests


def test_a_sweep_loses_a_node_in_a_trial(sweep, nodes, tmp_path, capfd):
    """One of two nodes is killed, with the worker on it, in a trial. The results are those of one process."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main([*sweep, f"--workdir={alone}", "--processes=1"]) == 0
    both = beside_the_head(nodes, 1, 1)
    killed = []

    def lose():
        training = lambda: {int(p.read_text() or 0): p for p in shared.glob("trial*/.lock") if p.read_text()}
        while len(at_work := {pid: parent(pid) for pid in training() if (shared / "sweep.json").exists()}) < 2:
            time.sleep(0.05)
        nodes.remove_node(both.pop(), allow_graceful=False)
        while not killed:  # the worker whose keeper ended with its node, as it would have itself on a machine of its own
            killed.extend(pid for pid, before in at_work.items() if parent(pid) != before)
            time.sleep(0.05)
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    try:
        assert main([*sweep, f"--workdir={shared}", "--on=ray"]) == 0
    finally:
        ray.shutdown()
    assert killed and "is lost with its node" in capfd.readouterr().err
    assert measured(shared) == measured(alone)
    assert not list(shared.glob("*.seen"))


def test_a_signal_stops_the_workers_on_their_nodes(sweep, nodes, tmp_path):
    """Ctrl-C: the runs are saved, and no worker is left."""
    beside_the_head(nodes, 2)
    command = [sys.executable, "-m", "experiments.sweep", *sweep, "--config.train.steps=100000"]
    driver = subprocess.Popen([*command, f"--workdir={tmp_path}", "--on=ray"], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len({p.parts[-4] for p in tmp_path.glob("trial*/run/checkpoints/[0-9]*")}) == 2, driver)
        pids = [int(p.read_text()) for p in tmp_path.glob("trial*/.lock")]
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=HANGS)
    finally:
        driver.kill()
    assert driver.returncode == 130 and said.endswith("stopped; the same command goes on\n"), said
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_node_that_does_not_see_locks(nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_look", _unlocked)
    connected = cluster.connected("ray")
    try:
        with pytest.raises(UserError, match="does not see that a file in .* is locked, .*: mount the file system with locks"):
            workers.check(connected, tmp_path)
    finally:
        connected.shutdown()


def _unlocked(mark):
    return True, False, workers.versions()
