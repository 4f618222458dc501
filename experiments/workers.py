"""Does the jobs of studies and sweeps that are left, as one of several processes.

  python -m experiments.workers runs/laptop/scaling runs/laptop/repetition

`python -m experiments.run` and `experiments.sweep` start a worker for every core, each kept to cores of its own, since small
models do not fill two. A worker takes the first unit that no other process is working on, from the folders in their order,
until nothing is left.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.display import Board
from experiments.sweep import trials
from experiments.units import Failed, Job, Outcome, jobs_of, load_study, parse_shard, work
from lm import cli, process, startup
from lm.errors import EXIT_INTERRUPTED, UserError

if TYPE_CHECKING:
    from experiments.cluster import Remote

MEMORY = 1.5 * 2**30  # bytes that a worker may take, about
BEGINS = "begins "  # a line of a worker's log, before the job's name


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.workers", __doc__, exits=cli.RUN_EXITS)
    p.add_argument("workdirs", nargs="+", help="folders of studies, with a study.json each, or of sweeps")
    p.add_argument("--shard", default="0/1", help="I/N: keep to the I-th of N parts of each study's units")
    flags = p.parse(argv)
    parent = os.getppid()

    def begins(job: Job) -> None:
        if os.getppid() != parent:
            raise SystemExit("the command that started this worker is gone")
        print(f"{BEGINS}{job}", flush=True)

    jobs: list[Job] = []
    for workdir in map(Path, flags.workdirs):
        if (workdir / trials.FILE).exists():
            jobs += trials.jobs_of(trials.read(workdir), workdir)
        else:
            spec = read_spec(workdir)
            jobs += jobs_of(load_study(spec["study"], spec["settings"]), workdir, parse_shard(flags.shard))
    cli.start_jax()
    for job, found in work(jobs, begins):
        if isinstance(found, Failed):
            print(f"{job} failed: {found.why}", flush=True)
    return 0


def read_spec(workdir: Path) -> dict[str, Any]:
    """{"study", "settings"} of a study's folder."""
    if not (workdir / "study.json").exists():
        raise UserError(f"{workdir} has no study.json; give the folder of a study that experiments.run has begun")
    return json.loads((workdir / "study.json").read_text())


class Worker:
    """A running worker. It is in a process group of its own, so that a Ctrl-C in the terminal reaches it once, from us."""

    def __init__(self, name: str, folders: Sequence[Path], shard: str, cores: Sequence[int], log: Path):
        self.name, self.log, self.reported = name, log, False
        command = [sys.executable, "-m", "experiments.workers", *map(str, folders), f"--shard={shard}"]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with log.open("a") as out:
            settings = dict(stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env)
            self.process = subprocess.Popen(command, start_new_session=True, **settings)  # type: ignore[call-overload]
        if hasattr(os, "sched_setaffinity"):  # XLA has as many threads as it has cores
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self.process.pid, cores)

    waits = False  # for a place, as workers on a cluster may

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def failed(self) -> bool:
        return bool(self.process.returncode)

    def send(self, number: int) -> None:
        if self.alive:
            self.process.send_signal(number)

    def wait(self) -> None:
        self.process.wait()

    @property
    def end(self) -> str:
        """How it ended, in which job, and the last line that it wrote."""
        code, lines = self.process.returncode, self.log.read_text("utf-8", "replace").splitlines()
        how = f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        job = next((f" in {line.removeprefix(BEGINS)}" for line in reversed(lines) if line.startswith(BEGINS)), "")
        last = f": {lines[-1]}" if lines and not lines[-1].startswith(BEGINS) else ""
        return f"{self.name} {how}{job}{last} (all it wrote is in {self.log})"


def available(jobs: int) -> int:
    """How many workers `jobs` jobs should have: one for each core, if there is memory; one process where the device is not
    a CPU, since processes cannot share it."""
    if not startup.cpu_only():
        return 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(cores()), int(memory / MEMORY), jobs))


def cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def folders(jobs: Sequence[Job]) -> list[Path]:
    return list(dict.fromkeys(job.workdir for job in jobs))


def start(jobs: Sequence[Job], home: Path, processes: int, shard: str) -> Iterator[Worker]:
    """Starts so many workers on this machine, which log to `home`."""
    parts = np.array_split(cores(), processes) if processes <= len(cores()) else [cores()] * processes
    for i, part in enumerate(parts):
        yield Worker(f"worker {i}", folders(jobs), shard, [int(c) for c in part], home / f"worker{i}.log")


def run(
    jobs: Sequence[Job], started: "Iterable[Worker | Remote]", board: type[Board] = Board
) -> tuple[dict[str, Outcome], int]:
    """Has the jobs done by workers, which begin as `started` yields them. Returns outcomes by job, and the exit code that a
    signal asks for, or 0."""
    asked = 0

    def stop(code: int) -> None:
        nonlocal asked
        asked = code
        process.say_now("\nstopping: the workers save their runs ...\n")
        for worker in workers:
            worker.send(signal.SIGINT if code == EXIT_INTERRUPTED else signal.SIGTERM)

    workers: list[Worker | Remote] = []
    restore = process.catch(stop)
    outcomes: dict[str, Outcome] = {}
    try:
        for worker in started:
            workers.append(worker)
        with board(jobs) as shown:
            alive = True
            while alive and not (len(outcomes) == len(jobs) and all(worker.waits for worker in workers if worker.alive)):
                # Of all workers, since those on a cluster begin when asked; before the last look at the results.
                alive = any([worker.alive for worker in workers])
                for job in jobs:
                    if str(job) not in outcomes and (found := job.outcome()):
                        outcomes[str(job)] = found
                        shown.done(job, found)
                for worker in workers:
                    if not (worker.alive or worker.reported or asked):
                        worker.reported = True
                        if worker.failed:
                            shown.say(worker.end)
                time.sleep(0.5 if alive else 0)
    finally:
        restore()
        for worker in workers:  # after a second Ctrl-C, or an error here
            worker.send(signal.SIGINT)
        for worker in workers:
            worker.wait()
    return outcomes, asked


if __name__ == "__main__":
    cli.enter(main)
