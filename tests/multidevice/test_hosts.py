"""A run of several real processes over gloo: results of a single process, checkpoints across numbers of hosts, lost hosts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.errors import EXIT_HOST_MISSING, EXIT_PREEMPTED
from tests.processes import HANGS, free_port, wait_for

HERE = Path(__file__).parent
TINY, LIFE = HERE.parent / "e2e" / "tiny.py", HERE.parents[1] / "configs" / "life"


class Hosts:
    """The processes of a run. Their standard error goes to files, because gloo fills pipes. A late heartbeat does not end the
    run, because the machine may be busy."""

    def __init__(self, root, workdir, processes, devices, commands, environment):
        port = free_port()
        common = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"}
        common |= {
            "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
            "LM_HEARTBEAT_SECONDS": "600",
        }  # a busy machine is not a lost one
        words = [sys.executable, *commands]
        self.workdir, self.processes, self.errors = workdir, [], []
        for i in range(processes):
            place = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "LM_PROCESSES": str(processes), "LM_PROCESS": str(i)}
            env = os.environ | common | (place if processes > 1 else {}) | environment
            self.errors.append(root / f"{workdir.name}.{port}.{i}.err")
            with open(self.errors[i], "w") as file:
                self.processes.append(subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=file))

    def said(self, i):
        lines = self.errors[i].read_text().splitlines()
        return "\n".join(line for line in lines if "spmd_partitioner" not in line)

    def ended(self):
        """The exit codes of all processes."""
        try:
            return [p.wait(timeout=HANGS) for p in self.processes]
        finally:
            for p in self.processes:
                p.kill()

    def finish(self):
        codes = self.ended()
        assert codes == [0] * len(codes), "\n".join(self.said(i)[-3000:] for i in range(len(codes)))
        return summary(self.workdir)

    def wait_for(self, condition):
        wait_for(condition, *self.processes)


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Synthetic documents, the data prepared from them, and compiled steps."""
    root = tmp_path_factory.mktemp("hosts")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 7))) for _ in range(200)]
    texts = (" ".join(words[i] for i in rng.zipf(1.5, 120) % 200) for _ in range(40))
    (root / "tiny.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return root


@pytest.fixture(scope="module")
def start(root):
    started = []

    def go(name, processes, devices, *extra, script=("-m", "lm.train"), **environment):
        workdir = root / name
        common = [
            f"--config={TINY}:decoder.causal",
            f"--workdir={workdir}",
            f"--config.data.sources.tiny.path={root}/tiny.jsonl",
            f"--config.data.cache={root}/cache",
            "--config.model.decoder.num_layers=1",
            "--config.train.batch_size=8",
            "--config.mesh.data=1",
            "--config.mesh.fsdp=-1",
            "--config.evaluate.every=12",
        ]
        started.append(Hosts(root, workdir, processes, devices, [*script, *common, *extra], environment))
        return started[-1]

    yield go
    for process in (p for hosts in started for p in hosts.processes):
        process.kill()  # left over from a failed test
        process.wait()


SILENT = "--config.log.samples=()"


@pytest.fixture(scope="module")
def whole(start):
    """An undisturbed run of two processes, with a trace and samples."""
    hosts = start("whole", 2, 4, "--config.log.samples=('The ',)", "--profile=5:2")
    hosts.finish()
    return hosts.workdir


def test_two_processes_give_the_figures_of_one(start, whole):
    one = start("one", 1, 8, "--config.log.samples=('The ',)")
    alone, together = one.finish(), summary(whole)
    losses = [[row["loss"] for row in rows(d) if "loss" in row] for d in (one.workdir, whole)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=2e-5)
    assert together["heldout"] == pytest.approx(alone["heldout"], rel=2e-5)
    for key in ("tokens_seen", "tokens_with_loss", "parameters", "step"):
        assert together[key] == alone[key]
    samples = [(d / "samples.jsonl").read_text() for d in (one.workdir, whole)]
    assert samples[0] == samples[1] and samples[0].count("\n") == 1
    # Files that only one process may write exist once and are complete.
    assert [row["step"] for row in rows(whole)] == [2, 4, 6, 8, 10, 12, 12]
    assert json.loads((whole / "manifest.json").read_text())["devices"]["processes"] == 2
    assert "Where the time went" in (whole / "report.html").read_text()
    assert len(list((whole / "profile").rglob("*.xplane.pb"))) == 1


def test_data_in_a_bucket_gives_the_same_run(start, whole, root):
    """Host 0 prepares it, host 1 waits for it, and both read it there."""
    home = root / "home"
    hosts = start("bucket", 2, 4, SILENT, f"--config.data.cache=file://{root}/bucket", XDG_CACHE_HOME=str(home))
    hosts.finish()
    losses = [[row["loss"] for row in rows(d) if "loss" in row] for d in (hosts.workdir, whole)]
    assert losses[0] == losses[1]
    (report,) = (root / "bucket").glob("*/report.json")
    assert json.loads((hosts.workdir / "manifest.json").read_text())["data_fingerprint"] == report.parent.name
    assert not [path for path in (home / "lm" / "buckets").iterdir() if path.suffix not in (".lock", ".beside")]


@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (4, 2)])
def test_a_checkpoint_of_two_processes_moves_and_goes_on(start, whole, root, processes, devices):
    name = f"moved{processes}"
    shutil.copytree(whole, root / name, ignore=shutil.ignore_patterns("summary.json"))
    more = ("--config.train.steps=13", "--allow_changes", SILENT)
    hosts = start(name, processes, devices, *more, script=[HERE / "restored.py"])
    after = hosts.finish()
    restored = re.search(r"restored step 12: (\w+)", hosts.said(0))
    assert restored and restored[1] == summary(whole)["params_sha256"]
    assert after["step"] == 13 and after["params_sha256"] != restored[1]
    assert rows(hosts.workdir)[-1]["step"] == 13


def test_hosts_that_grade_otherwise_ask_the_same_questions(root, whole):
    """A policy draws other questions where all samples are as good: all hosts go by the rewards of host 0."""
    lines = (root / "tiny.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [dict(zip(("question", "answer"), json.loads(line)["text"].split(), strict=False)) for line in lines]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    settings = {"data.sources": {"mine": dict(kind="jsonl", path=f"{root}/pairs.jsonl", format="pair")}, "recipe.answer": 6}
    settings |= {"recipe.graders": {"e": dict(kind="regex", pattern=".*e.*e.*")}, "recipe.group": 4, "recipe.draws": 3}
    settings |= {"data.cache": f"{root}/cache", "train.init_from": whole, "train.steps": 2, "train.batch_size": 8}
    settings |= {"checkpoint.every": None, "evaluate.every": None, "evaluate.rows": 4, "log.every": 1, "log.tensorboard": False}
    commands = [str(HERE / "grades.py"), f"--config={LIFE}/policy.py:grpo", *(f"--config.{k}={v}" for k, v in settings.items())]
    runs = [
        Hosts(root, root / name, processes, devices, [*commands, f"--workdir={root / name}"], {})
        for name, processes, devices in (("graded", 1, 2), ("graded otherwise", 2, 1))
    ]
    one, two = (hosts.finish() for hosts in runs)
    assert one["params_sha256"] == two["params_sha256"] and one["heldout"] == two["heldout"]
    drawn = [[row["draws"] for row in rows(hosts.workdir) if "draws" in row] for hosts in runs]
    assert drawn[0] == drawn[1] and 1 < max(drawn[0]) <= 3


def test_one_killed_ends_the_other_and_the_restart_goes_on_to_the_bit(start, whole):
    first = start("killed", 2, 4, SILENT, LM_HEARTBEAT_SECONDS="20")
    first.wait_for((first.workdir / "checkpoints" / "4").exists)
    first.processes[1].send_signal(signal.SIGKILL)
    code, killed = first.ended()  # after the heartbeat's timeout of twenty seconds, or as soon as gloo notices
    assert killed == -signal.SIGKILL and code not in (0, EXIT_PREEMPTED) and not (first.workdir / "summary.json").exists()
    assert re.search("another one|another task", first.said(0)), first.said(0)
    after = start("killed", 2, 4, SILENT).finish()
    assert after["params_sha256"] == summary(whole)["params_sha256"]
    assert after["heldout"] == summary(whole)["heldout"]
    assert after["goodput"]["starts"] == 2 and after["goodput"]["seconds"]["down"] > 0


def test_sigterm_at_one_stops_both_after_the_same_step(start):
    hosts = start("preempted", 2, 4, SILENT, "--config.train.steps=3000", "--config.checkpoint.every=3000")
    hosts.wait_for(lambda: (hosts.workdir / "metrics.jsonl").exists() and rows(hosts.workdir))
    hosts.processes[1].send_signal(signal.SIGTERM)
    assert hosts.ended() == [EXIT_PREEMPTED] * 2, hosts.said(0) + hosts.said(1)
    steps = [re.search(r"stopped at step (\d+), saved", hosts.said(i)) for i in (0, 1)]
    assert steps[0] and steps[1] and steps[0][1] == steps[1][1]
    assert [p.name for p in (hosts.workdir / "checkpoints").iterdir()] == [steps[0][1]]


def test_a_host_that_never_comes_is_named(start):
    place = {"LM_PROCESSES": "3", "LM_PROCESS": "0", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    hosts = start("waiting", 1, 4, LM_BARRIER_SECONDS="3", **place)
    assert hosts.ended() == [EXIT_HOST_MISSING]
    assert hosts.said(0).startswith("error: hosts 1, 2 of 3 did not arrive at 'start' within 3 s"), hosts.said(0)
    assert hosts.said(0).count("\n") == 0


def test_a_host_that_hangs_is_named(start):
    hosts = start("hanging", 2, 1, script=[HERE / "hangs.py"], LM_HEARTBEAT_SECONDS="60")
    code, other = hosts.ended()
    assert code == EXIT_HOST_MISSING and other != 0
    assert hosts.said(0).startswith("error: host 1 of 2 did not arrive at 'restore' within 4 s"), hosts.said(0)
