"""What a Ray cluster is asked before the first task, by a stand-in for Ray; `tests/e2e/test_ray.py` has a real one."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm.data.corpus import cluster
from lm.errors import UserError


class Gone(Exception):
    pass


@pytest.fixture
def asked(monkeypatch):
    """A function that checks a folder with two nodes, of which the second answers what it is given: whether it sees the file,
    and its versions. What raises is a fault of the node."""

    def check(folder, sees=True, theirs=None, fault=None):
        nodes = [{"Alive": alive, "NodeID": id, "NodeManagerAddress": f"10.0.0.{id}"} for id, alive in [(1, 1), (2, 1), (3, 0)]]

        def get(reference, timeout):
            strategy, mark = reference
            if strategy.id == 2:
                if fault:
                    raise fault
                return sees, cluster.versions() if theirs is None else theirs
            return Path(mark).exists(), cluster.versions()

        options = lambda num_cpus, scheduling_strategy: SimpleNamespace(remote=lambda mark: (scheduling_strategy, mark))
        on = cluster.Ray.__new__(cluster.Ray)
        on._ray = SimpleNamespace(
            nodes=lambda: nodes,
            remote=lambda task: SimpleNamespace(options=options),
            get=get,
            exceptions=SimpleNamespace(TaskUnschedulableError=Gone, RayError=RuntimeError),
        )
        on.check(folder)

    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda id, soft: SimpleNamespace(id=id))
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    return check


def test_nodes_that_agree_and_one_that_leaves(asked, tmp_path):
    asked(tmp_path)
    asked(tmp_path, fault=Gone())
    assert not list(tmp_path.iterdir())


def refused(asked, tmp_path, match, **answer):
    with pytest.raises(UserError, match=f"^node 10.0.0.2 of the Ray cluster {match}") as error:
        asked(tmp_path, **answer)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_node_that_does_not_see_the_folder(asked, tmp_path):
    refused(asked, tmp_path, f"does not see {tmp_path}: set data.cache to a folder that all nodes share", sees=False)


def test_a_node_that_fails(asked, tmp_path):
    refused(asked, tmp_path, r"cannot run this library \(no module\); install the same there", fault=RuntimeError("no\nmodule"))


def test_a_node_with_another_version_of_a_library(asked, tmp_path):
    theirs = cluster.versions() | {"ftfy": "1.0"}
    refused(asked, tmp_path, r"has ftfy 1.0 \(here .*\): install the same everywhere, or results differ$", theirs=theirs)


def test_a_node_with_another_checkout(asked, tmp_path, monkeypatch):
    (tmp_path / "lm" / "data").mkdir(parents=True)
    (tmp_path / "lm" / "data" / "clean.py").write_text("other\n", encoding="utf-8")
    other, name = cluster.code(tmp_path / "lm"), "the code of lm.data and lm.config"
    (tmp_path / "folder").mkdir()
    match = rf"has {name} {other} \(here {cluster.code()}\): install the same everywhere, or results differ$"
    refused(asked, tmp_path / "folder", match, theirs=cluster.versions() | {name: other})
    older = {key: value for key, value in cluster.versions().items() if key != name}
    refused(asked, tmp_path / "folder", rf"has {name} unknown \(here ", theirs=older)


def test_the_code_of_a_checkout(tmp_path):
    """Every Python file that a preparation depends on counts, with its place; nothing else does."""
    for file in ("data/corpus/clean.py", "config/data.py", "models/layers.py"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("x = 1\n", encoding="utf-8")
    found = [cluster.code(tmp_path)]
    (tmp_path / "models" / "layers.py").write_text("x = 2\n", encoding="utf-8")
    (tmp_path / "data" / "clean.pyc").write_bytes(b"compiled")
    assert cluster.code(tmp_path) == found[0]
    (tmp_path / "config" / "data.py").write_text("x = 2\n", encoding="utf-8")
    found.append(cluster.code(tmp_path))
    (tmp_path / "data" / "corpus" / "clean.py").rename(tmp_path / "data" / "clean.py")
    found.append(cluster.code(tmp_path))
    (tmp_path / "data" / "clean.py").unlink()
    assert len({*found, cluster.code(tmp_path)}) == 4
