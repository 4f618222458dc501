"""Signals, limits and unusual environments, each in its own process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.campaign.bench import ROOT, Bench, Injection, Said, ended, intact, refused, rows
from tests.processes import wait_for

Ready = Callable[[Bench, Path], bool]
LONG = ("--config.checkpoint.every=1000",)  # no checkpoint except at the end


def _trained(bench: Bench, workdir: Path) -> bool:
    path = workdir / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def _locked(bench: Bench, workdir: Path) -> bool:
    return (workdir / ".lock").exists()


def _goodput(bench: Bench, workdir: Path) -> bool:
    """The data are prepared; the step is being compiled."""
    path = workdir / "goodput.jsonl"
    return path.exists() and path.read_text().count("\n") > 1


def _last_saved(bench: Bench, workdir: Path) -> bool:
    return (workdir / "checkpoints" / "12").exists()


def _stopped(title: str, signals: tuple[int, ...], ready: Ready, codes: tuple[int, ...], *flags: str) -> Injection:
    """A run that is stopped as soon as `ready` ends with one of `codes` (0: it had finished) and without a traceback, and the
    same command then reaches the bits of the undisturbed run."""

    def run(bench: Bench) -> str:
        workdir = bench.folder()
        assert bench.whole.exists()
        process = bench.start(workdir, *flags)
        wait_for(lambda: ready(bench, workdir), process)
        for number in signals:
            process.send_signal(number)
        said = ended(process)
        assert said.code in codes, f"ended with {said.code}: {said.err[-300:]}"
        assert "Traceback" not in said.err, said.err[-300:]
        again = bench.train(workdir, *flags)
        return f"ended with {said.code}; then {bench.went_on(workdir, again)}"

    return Injection("signal", title, run)


KILL, TERM, INT, HUP = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP
SIGNALS = [
    _stopped("SIGKILL between steps", (KILL,), _trained, (-9,)),
    _stopped("SIGKILL at the first checkpoint", (KILL,), lambda b, w: (w / "checkpoints" / "4").exists(), (-9,)),
    _stopped("SIGKILL within a save", (KILL,), lambda b, w: any((w / "checkpoints").glob("*tmp*")) or _last_saved(b, w), (-9,)),
    _stopped("SIGTERM between steps", (TERM,), _trained, (75, 0), *LONG),
    _stopped("SIGTERM before anything is prepared", (TERM,), _locked, (75, 0)),
    _stopped("SIGTERM in compilation", (TERM,), _goodput, (75, 0), *LONG),
    _stopped("SIGTERM after the last step", (TERM,), _last_saved, (75, 0)),
    _stopped("SIGHUP between steps", (HUP,), _trained, (75, 0), *LONG),
    _stopped("Ctrl-C between steps", (INT,), _trained, (130, 0), *LONG),
    _stopped("Ctrl-C twice at once", (INT, INT), _trained, (130, 0)),
    _stopped("Ctrl-C in preparation", (INT,), _locked, (130, 0)),
]


def _prepare_interrupted(bench: Bench) -> str:
    folder = bench.folder()
    words = [sys.executable, "-m", "lm.prepare", *bench.flags(f"--config.data.cache={folder}")]
    process = subprocess.Popen(words, cwd=ROOT, env=bench.environment(), stderr=subprocess.PIPE, text=True)
    wait_for(folder.exists, process)
    process.send_signal(INT)
    said = ended(process)
    assert said.code in (130, 0), f"ended with {said.code}: {said.err[-300:]}"
    assert "Traceback" not in said.err, said.err[-300:]
    again = bench.call("lm.train", f"--workdir={folder}.run", *bench.flags(f"--config.data.cache={folder}"))
    return f"ended with {said.code}; then {bench.went_on(Path(f'{folder}.run'), again)}"


def _goes_on(title: str, shell: str = "{}", *, drop: tuple[str, ...] = (), **env: str) -> Injection:
    """A run in an unusual environment finishes like any other."""

    def run(bench: Bench) -> str:
        workdir = bench.folder()
        assert bench.whole.exists()
        surroundings = {k: v for k, v in bench.environment(**env).items() if k not in drop}
        said = ended(bench.start(workdir, env=surroundings, shell=shell))
        return bench.went_on(workdir, said)

    return Injection("surroundings", title, run)


SURROUNDINGS = [
    _goes_on("standard error on a full disk", "{} 2>/dev/full"),
    _goes_on("standard error closed", "{} 2>&-"),
    _goes_on("standard error into `head -1`", "{} 2>&1 | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}"),
    _goes_on("an ASCII locale", LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    _goes_on("no HOME", drop=("HOME",)),
    _goes_on("TMPDIR gone", TMPDIR="/nowhere/at/all"),
    _goes_on("standard input closed", "{} <&-"),
    _goes_on("COLUMNS=1", COLUMNS="1", LINES="1"),
]  # fmt: skip


def _limited(title: str, limit: str, cause: str) -> Injection:
    def run(bench: Bench) -> str:
        workdir = bench.half()
        said = ended(bench.start(workdir, shell=f"{limit}; {{}}"))
        if said.code == 0:
            return bench.went_on(workdir, said)
        intact(workdir, [8])
        seen = refused(said, cause)
        return f"{seen[:60]}; then {bench.went_on(workdir, bench.train(workdir))}"

    return Injection("surroundings", title, run)


def _full_disk(bench: Bench) -> str:
    small = bench.folder()
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(small)], capture_output=True).returncode:
        return "not tried: mounting a file system takes root"
    try:
        workdir = small / "run"
        said = ended(bench.start(workdir, "--config.checkpoint.keep=5"))
        seen = refused(said, "no disk space")
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        return f"{seen[:60]}; then {bench.went_on(workdir, bench.train(workdir, '--config.checkpoint.keep=5'))}"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def _two_at_once(bench: Bench) -> str:
    workdir = bench.folder()
    assert bench.whole.exists()
    first = bench.start(workdir)
    wait_for(lambda: _locked(bench, workdir) and (workdir / ".lock").read_text(), first)
    second = bench.train(workdir)
    one = ended(first)
    seen = refused(second, "another run")
    return f"{seen[:60]}; the first {bench.went_on(workdir, one)}"


def _nobody(bench: Bench) -> str:
    """A uid without an entry in /etc/passwd, as in containers."""
    if os.getuid() != 0:
        return "not tried: changing the uid takes root"
    workdir = bench.folder()
    assert bench.whole.exists()
    workdir.mkdir()
    # The other caches are read-only for this uid, so it has its own.
    code = "import os,sys; os.setgid(54321); os.setuid(54321); os.execvp(sys.argv[1], sys.argv[1:])"
    readable = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "-c", "import jax"], env=bench.environment(), capture_output=True, cwd=ROOT
    )
    if readable.returncode:
        return "not tried: this Python cannot be read by other users"
    os.chown(workdir, 54321, 54321)
    for folder in [bench.root, *bench.root.parents]:
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    home = workdir / "home"
    home.mkdir()
    os.chown(home, 54321, 54321)
    env = bench.environment(JAX_COMPILATION_CACHE_DIR=str(home / "compiled"), HOME=str(home))
    command = [sys.executable, "-c", code, sys.executable, "-m", "lm.train", f"--workdir={workdir / 'run'}"]
    cache = f"--config.data.cache={home / 'cache'}"
    os.chmod(bench.corpus, 0o644)
    os.chown(workdir.parent, 54321, 54321)
    process = subprocess.Popen([*command, *bench.flags(cache)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    return bench.went_on(workdir / "run", ended(process))


def _overflow(flag: str) -> Injection:
    """Updates that are not finite are reported, and no checkpoint that is not finite is left."""

    def run(bench: Bench) -> str:
        workdir = bench.folder()
        said: Said = bench.train(workdir, *(f"--config.{f}" for f in flag.split()))
        seen = refused(said, "finite")
        if (workdir / "metrics.jsonl").exists():  # otherwise it was refused before the first step
            rows(workdir / "metrics.jsonl")
        steps = sorted((workdir / "checkpoints").glob("[0-9]*")) if (workdir / "checkpoints").exists() else []
        for step in steps:
            assert _finite(step), f"checkpoint {step.name} is not finite"
        return f"{seen[:90]}; {len(steps)} checkpoints, all finite"

    return Injection("numbers", f"`{flag}`", run)


def _finite(step: Path) -> bool:
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(step / "state")
    return all(np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree.leaves(tree))


INJECTIONS = [
    *SIGNALS,
    Injection("signal", "Ctrl-C in `lm.prepare`", _prepare_interrupted),
    *SURROUNDINGS,
    _limited("files of 200 kB at most", "ulimit -f 200", "file|space|large"),
    _limited("24 open files at most", "ulimit -n 24", "open files|descriptor"),
    Injection("surroundings", "a disk that is full after two checkpoints", _full_disk),
    Injection("surroundings", "two runs in one directory", _two_at_once),
    Injection("surroundings", "a uid without a name", _nobody),
    _overflow("optimizer.learning_rate=1e38 optimizer.clip=None"),
    _overflow("optimizer.learning_rate=1e39"),
    _overflow("optimizer.learning_rate=1e38 train.steps=3 optimizer.schedule.warmup=0"),
    _overflow("optimizer.learning_rate=1e30 optimizer.clip=None model.param_dtype=bfloat16"),
]
