"""The environment of the injections: a corpus, an uninterrupted run to compare with, and processes that run our commands.

Most injections run in one long-lived worker, so that JAX is imported and the step compiled once; those that need signals,
limits or another environment start a process of their own.
"""

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import FLAGS
from tests.processes import HANGS

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "e2e" / "tiny.py"
STEPS = 12  # of tests/e2e/tiny.py; checkpoints at 4, 8 and 12, of which two are kept


@dataclass(frozen=True)
class Said:
    """The result of a command."""

    code: int | str  # exit code; "hung" if it had to be killed
    err: str  # standard error
    out: str = ""

    @property
    def last(self) -> str:
        """The line that a user sees: the error if there is one, otherwise the last line."""
        lines = [line for line in self.err.strip().splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "")


@dataclass(frozen=True)
class Injection:
    """`run(bench)` injects a fault and asserts an invariant; it returns in a few words what happened."""

    area: str
    name: str
    run: Callable[["Bench"], str]


@dataclass
class Bench:
    """All files are below `root`, a new folder."""

    root: Path
    _count: int = 0
    _worker: Any = field(default=None, repr=False)

    # ---------------------------------------------------------------------------------------------------- folders

    def folder(self) -> Path:
        """A path that does not exist yet; its parent does."""
        self._count += 1
        parent = self.root / "trials" / str(self._count)
        parent.mkdir(parents=True)
        return parent / "run"

    @cached_property
    def corpus(self) -> Path:
        """Forty documents of made-up words."""
        self.root.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 7))) for _ in range(200)]
        lines = [json.dumps({"text": " ".join(words[i] for i in rng.zipf(1.5, 120) % 200)}) for _ in range(40)]
        (self.root / "tiny.jsonl").write_text("\n".join(lines) + "\n")
        return self.root / "tiny.jsonl"

    @cached_property
    def whole(self) -> Path:
        """The workdir of an undisturbed run."""
        workdir = self.root / "whole"
        said = self.train(workdir)
        assert said.code == 0, f"the uninterrupted run failed: {said.err}"
        return workdir

    def half(self) -> Path:
        """A copy of that run as if it had been killed after step 8: with a checkpoint, and steps left to do."""
        workdir = self.folder()
        shutil.copytree(self.whole, workdir)
        for name in ("checkpoints/12", "summary.json", "report.html", ".lock"):
            path = workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return workdir

    def cache(self) -> Path:
        """A copy of the cache of prepared data; `prepared(cache)` is the folder in it that is named by the fingerprint."""
        target = self.folder()
        assert self.whole.exists()
        shutil.copytree(self.root / "cache", target)
        return target

    # --------------------------------------------------------------------------------------------------- commands

    def flags(self, *extra: str, what: str = "decoder.causal") -> list[str]:
        """The flags of `python -m lm.train`, without --workdir; a later flag overrides an earlier one."""
        data = [f"--config.data.sources.tiny.path={self.corpus}", f"--config.data.cache={self.root}/cache"]
        return [f"--config={TINY}:{what}", *data, *extra]

    def train(self, workdir: Path | str, *extra: str, what: str = "decoder.causal", timeout: float = HANGS) -> Said:
        return self.call("lm.train", f"--workdir={workdir}", *self.flags(*extra, what=what), timeout=timeout)

    def call(self, module: str, *argv: str, timeout: float = HANGS) -> Said:
        """Runs `python -m module argv` in the worker."""
        if self._worker is None:
            words = [sys.executable, "-m", "tests.campaign.worker"]
            self._worker = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=self.environment(), text=True
            )
        worker = self._worker
        worker.stdin.write(json.dumps([module, list(argv)]) + "\n")
        worker.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                worker.kill()
                self.close()
                return Said("hung", f"no end after {timeout} s")
        line = worker.stdout.readline()
        if not line:
            self.close()
            return Said(worker.returncode, "the process died")
        return Said(**json.loads(line))

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of commands: the CPU, a compiler without optimisation, and a separate compilation cache."""
        known = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(self.root / "compiled"), "LM_CPU_TUNING": "0"}
        return os.environ | known | {"XLA_FLAGS": " ".join(FLAGS)} | more

    def start(
        self, workdir: Path | str, *extra: str, env: dict[str, str] | None = None, shell: str = "{}", **options: Any
    ) -> subprocess.Popen[str]:
        """Runs `python -m lm.train` in its own process; `shell` is a bash script with `{}` for the command."""
        import shlex

        words = [sys.executable, "-m", "lm.train", f"--workdir={workdir}", *self.flags(*extra)]
        settings: dict[str, Any] = dict(
            cwd=ROOT, env=self.environment() if env is None else env, stderr=subprocess.PIPE, text=True
        )
        command = words if shell == "{}" else ["bash", "-c", shell.format(shlex.join(words))]
        return subprocess.Popen(command, **settings | options)

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.communicate()

    # --------------------------------------------------------------------------------------------------- what holds

    def went_on(self, workdir: Path, said: Said, *, warned: str | None = None) -> str:
        """Asserts that the run finished with the same bits as the undisturbed one, and warned (a pattern)."""
        assert said.code == 0, f"ended with {said.code}: {said.err[-300:]}"
        ours, theirs = (strict(d / "summary.json") for d in (workdir, self.whole))
        assert ours["params_sha256"] == theirs["params_sha256"], "the parameters differ from those of the uninterrupted run"
        steps = [row["step"] for row in rows(workdir / "metrics.jsonl")]
        assert steps == sorted(steps), f"metrics.jsonl has its steps out of order: {steps}"
        if warned is not None:
            assert re.search(warned, said.err), f"did not say {warned!r}: {said.err[-300:]}"
        return "went on, equal bits" + (", warned" if warned else "")


def refused(said: Said, cause: str, *, code: int = 2) -> str:
    """Asserts a one-line error that names the cause (a pattern), no traceback, and the exit code of a user's mistake."""
    assert "Traceback" not in said.err, f"a traceback: {said.err.strip().splitlines()[-1][:200]}"
    assert said.code == code, f"ended with {said.code}, not {code}: {said.last[:300]}"
    lines = [line for line in said.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, f"{len(lines)} error lines: {said.err[-300:]}"
    assert re.search(cause, lines[0]), f"does not name {cause!r}: {lines[0][:300]}"
    return f"refused: {lines[0][7:127]}"


def intact(workdir: Path, steps: list[int]) -> None:
    """Asserts that exactly these checkpoints exist and are complete."""
    from etils import epath

    from lm.integrity import damage

    found = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert found == steps, f"checkpoints {found}, not {steps}"
    for step in steps:
        fault = damage(epath.Path(workdir / "checkpoints" / str(step)), step=step)
        assert fault is None, f"checkpoint {step}: {fault}"


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; asserts that each is strict JSON."""
    return [json.loads(line, parse_constant=_refuse) for line in path.read_text().splitlines()]


def strict(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


def ended(process: subprocess.Popen[str], seconds: float = HANGS) -> Said:
    """Waits for a process, and kills it if it hangs."""
    try:
        out, err = process.communicate(timeout=seconds)
        return Said(process.returncode, err or "", out or "")
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return Said("hung", f"no end after {seconds} s")
