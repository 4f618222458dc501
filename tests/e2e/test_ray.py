"""Preparation on a real Ray cluster of three nodes on this machine: the same bits as one process, whichever node is lost."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lm.data.corpus import cluster, executors
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from tests.processes import free_port
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
