"""Preparation in many processes, killed in the middle of each stage and started again: the same bits."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lm.data.corpus import executors, shards
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from tests.processes import wait_for
from tests.unit.data.corpus.test_executors import contents, corpus


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def expected(data):
    with executors.using("process"):
        return contents(prepare(data, progress=False).path)


def test_many_processes_and_little_memory(tmp_path, data, expected, monkeypatch):
    monkeypatch.setattr(executors, "SMALL", 0)
    with executors.using("processes:2", memory=1 << 18):
        assert contents(prepare(replace(data, cache=str(tmp_path / "many")), progress=False).path) == expected


STAGES = ["clean", "Digests", "Copies", "Bands", "Edges0", "dropped", "histogram", "bin", "split"]
STAGES += ["train", "texts-train", "fill-train"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_in_the_middle_of_a_stage(tmp_path, data, expected, monkeypatch, stage):
    """The first task of the stage was done, its second was not."""

    class Killed(BaseException):
        pass

    def fails():
        raise AssertionError("a task that was done is done again")

    once, seen = shards.once, []

    def dying(done, make):
        if stage in done.parts and seen:
            raise Killed
        found = once(done, make)
        if stage in done.parts:
            seen.append(done)
        return found

    data = replace(data, cache=str(tmp_path / "killed"))
    with executors.using("process", memory=1 << 16):
        monkeypatch.setattr(shards, "once", dying)
        monkeypatch.setattr("lm.data.corpus.tasks.RANGE", 1 << 18)
        with pytest.raises(Killed):
            prepare(data, progress=False)
        monkeypatch.setattr(shards, "once", lambda done, make: once(done, fails if done == seen[0] else make))
        assert contents(prepare(data, progress=False).path) == expected


RUN = """
import pickle, sys
from lm.data.corpus import executors
from lm.data.corpus.prepare import prepare
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    executors.SMALL = 0
    data = pickle.loads(Path(sys.argv[1]).read_bytes())
    with executors.using("processes:2"):
        print(prepare(replace(data, cache=sys.argv[2]), progress=False).path)
"""


def test_a_driver_that_is_killed_leaves_no_process_and_goes_on(tmp_path):
    """With SIGKILL, while its processes clean."""
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    (tmp_path / "data").write_bytes(pickle.dumps(corpus(tmp_path, 4000)))
    start = lambda cache: subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "data"), str(tmp_path / cache)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = lambda pid: subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    driver = start("cache")
    wait_for(lambda: len(list((tmp_path / "cache").glob("*.partial/.work/texts/clean/*.json"))) > 3, driver)
    workers = children(driver.pid)
    driver.kill()
    driver.communicate()
    assert len(workers) >= 2
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    again, whole = start("cache"), start("whole")
    paths = []
    for process in (again, whole):
        out, error = process.communicate()
        assert process.returncode == 0, error
        paths.append(Path(out.strip()))
    assert contents(paths[0]) == contents(paths[1])


def test_a_killed_process_is_one_line(tmp_path, data, monkeypatch):
    monkeypatch.setattr(executors, "SMALL", 0)
    with (
        executors.using("processes:2") as on,
        pytest.raises(UserError, match="killed, perhaps for want of memory.*processes:1"),
    ):
        list(on.run([_die], size=1))


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_first_error_in_order(monkeypatch):
    monkeypatch.setattr(executors, "SMALL", 0)
    with executors.using("processes:2") as on, pytest.raises(UserError, match="^early$"):
        list(on.run([_early, _late], size=1))


def _early():
    time.sleep(0.2)
    raise UserError("early")


def _late():
    raise UserError("late")
