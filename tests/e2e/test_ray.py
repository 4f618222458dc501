"""Preparation on a real Ray cluster on this machine: the same bits as one process, whichever node is lost."""

import functools
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lm.data.corpus import bucket, cluster, executors
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from tests.processes import HANGS, free_port
from tests.unit.data.corpus.test_executors import contents, corpus

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own
STAGES = {"Clean", "Digests", "Copies", "Bands", "Edges", "Dropped", "Histogram", "Bin", "Split", "Encode", "Fill"}
NODE = dict(num_cpus=1, object_store_memory=80 << 20, wait=False)
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # A node counts as lost once five looks at it failed: soon where nothing answers, late where the machine is only busy.
    "RAY_health_check_period_ms": "200",
    "RAY_health_check_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "600",
}


@pytest.fixture(scope="module")
def nodes():
    """A head without CPUs, on which no task runs, and two nodes with one each. Ends all of their processes."""
    from ray._private import services
    from ray.cluster_utils import Cluster

    known = services.get_node

    def patient(*which):
        """Ray itself gives a node 30 seconds to start."""
        end = time.monotonic() + HANGS
        while True:
            try:
                return known(*which)
            except RuntimeError:
                assert time.monotonic() < end
                time.sleep(0.05)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        patch.setattr(services, "get_node", patient)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        head = dict(num_cpus=0, include_dashboard=False, include_log_monitor=False, no_monitor=True)
        of = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 80 << 20})
        patch.setenv("RAY_ADDRESS", of.address)
        try:
            for _ in range(2):
                of.add_node(**NODE)
            yield of
        finally:
            of.shutdown()


@pytest.fixture(scope="module")
def on(nodes):
    with executors.using("ray", memory=1 << 15) as on:
        yield on


def test_a_node_is_lost_in_the_middle_of_each_stage(tmp_path, nodes, on, monkeypatch):
    """The first task of a stage does not end: its node is killed meanwhile, and another joins. All that is prepared goes to a
    bucket, and is what one process makes."""
    data = corpus(tmp_path, 130)
    with executors.using("process"):
        expected = contents(prepare(data, progress=False).path)
    begun, call, result = tmp_path / "begun", cluster._call, cluster.Ray._result
    begun.mkdir()

    def calling(task, here):
        mark = begun / type(task.func).__name__
        if mark.name not in STAGES or mark.exists():
            return call(task, here)
        mark.touch()
        mark.with_suffix(".node").write_text(ray.get_runtime_context().get_node_id(), encoding="utf-8")
        time.sleep(3600)

    def losing(self, reference):
        while not ray.wait([reference], timeout=0.1)[0]:
            held = {file.read_text(encoding="utf-8") for file in begun.glob("*.node")}
            for node in [node for node in nodes.worker_nodes if node._node_id in held]:
                nodes.remove_node(node, allow_graceful=False)
                nodes.add_node(**NODE)
        return result(self, reference)

    monkeypatch.setattr(cluster, "_call", calling)
    monkeypatch.setattr(cluster.Ray, "_result", losing)
    monkeypatch.setattr(bucket, "STAGING", str(tmp_path / "staging"))
    there = prepare(replace(data, cache=f"file://{tmp_path}/share"), progress=False)
    assert contents(tmp_path / "share" / there.fingerprint) == expected
    assert {file.stem for file in begun.glob("*.node")} == STAGES
    assert not [p for p in (tmp_path / "staging").rglob("*") if p.suffix != ".lock"]


def test_a_folder_that_a_node_does_not_see(tmp_path, on, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match="^node .* does not see here: set data.cache to a folder that all nodes share"):
        on.check(Path("here"))  # relative to where each process is
    assert not list(Path("here").iterdir())


def test_a_node_with_another_checkout(tmp_path, on, monkeypatch):
    code, ours = "the code of lm.data and lm.config", cluster.versions()
    monkeypatch.setattr(cluster, "versions", lambda: ours | {code: "0123"})  # here, not there
    with pytest.raises(UserError, match=rf"^node .* has {code} {ours[code]} \(here 0123\): install the same everywhere"):
        on.check(tmp_path)


def test_the_error_of_a_task_is_that_of_the_library(on):
    with pytest.raises(UserError, match="^--on=nowhere is no place to prepare data on"):
        list(on.run([functools.partial(executors._named, "nowhere", 1)], size=0))


@pytest.mark.parametrize("on", ["ray://127.0.0.1:{}", "ray"])
def test_an_address_where_nothing_answers(monkeypatch, on):
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"nothing answers at 127.0.0.1:{port} .*; run `ray start --head` on one machine"):
        executors.using(on.format(port)).__enter__()


def test_an_address_that_is_none():
    with pytest.raises(UserError, match="--on=ray://host is no address of a Ray cluster"):
        executors.using("ray://host").__enter__()
