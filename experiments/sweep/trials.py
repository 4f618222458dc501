"""The trials of a sweep, each a run in D/trial<k>/run, and how one is done.

D/sweep.json                what the sweep is: written once, and read by its workers
D/rung1.json                which trials go on to rung 1: written once, when all have reached the rung before
D/trial007/run/             the trial's training run
           step200.json     all its held-out figures, and costs, after so many steps
           step200.txt      why it failed, until it is tried again

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): at each rung, a number of steps, the best 1 / eta of the trials
go on from their checkpoints, and the others are left. Which go on is decided once all have reached the rung, so that it is a
function of their results alone, and is kept: a trial that had failed by then is left. Every trial has the learning-rate
schedule of the whole run from its first step.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from experiments.study import Metric
from experiments.sweep import figures
from experiments.units import Failed, Outcome, failure
from lm import atomic, config
from lm.config import resolve
from lm.errors import EXIT_USER_ERROR, Diverged, Stopped, UserError

FILE = "sweep.json"


@dataclass(frozen=True)
class Setting:
    """What one trial trains."""

    flags: Mapping[str, str]  # key -> text, as `--config.KEY=TEXT` takes it
    run: config.Run


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep, as sweep.json has it. Trials are numbered from 0."""

    config: str  # the config file, as --config names it
    overrides: Mapping[str, str]  # the --config.KEY=VALUE flags of all trials
    search: str
    seed: int
    keys: Mapping[str, bool]  # what is swept -> whether it is drawn on a logarithmic axis
    metric: str  # of the held-out figures
    rungs: tuple[int, ...]  # steps at which trials are halved; (): never
    eta: int
    trials: tuple[Setting, ...]
    name: str = "sweep"

    @property
    def higher(self) -> bool:
        return figures.higher(self.metric)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (Metric(self.metric, f"held-out {self.metric.replace('_', ' ')}", self.higher),)

    def size(self, rung: int) -> int:
        """How many trials reach a rung, at most."""
        return max(1, len(self.trials) // self.eta**rung)

    def short(self, key: str) -> str:
        """The last part of a key, where no other key ends so."""
        last = key.split(".")[-1]
        return last if [other.split(".")[-1] for other in self.keys].count(last) == 1 else key

    def label(self, number: int) -> str:
        """What tells a trial from the others."""
        return "  ".join(f"{self.short(key)}={text}" for key, text in self.trials[number].flags.items())


def of_trial(run: config.Run) -> config.Run:
    """The run without samples, baselines and TensorBoard's files, which a sweep does not need. No parameter depends on them."""
    evaluate, log = replace(run.evaluate, baselines=False), replace(run.log, samples=(), tensorboard=False)
    return replace(run, evaluate=evaluate, log=log)


# ------------------------------------------------------------------------------------------------------------- sweep.json


def remember(sweep: Sweep, workdir: Path) -> None:
    """Writes sweep.json. UserError if the folder holds another sweep. Trials may be added, but to no halving, and the metric
    may change, until a halving has decided by it."""
    workdir.mkdir(parents=True, exist_ok=True)
    if (workdir / FILE).exists() and (why := _differs(read(workdir), sweep, workdir)):
        raise UserError(f"{workdir} holds another sweep ({why}): give the flags that it was begun with, or another --workdir")
    tree = {name: value for name, value in vars(sweep).items() if name not in ("trials", "name")}
    trials = [{"flags": trial.flags, "run": resolve.to_dict(trial.run)} for trial in sweep.trials]
    atomic.write_json(workdir / FILE, tree | {"trials": trials})


def read(workdir: Path) -> Sweep:
    """The sweep of a folder. UserError if there is none."""
    try:
        tree = json.loads((workdir / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir} has no {FILE}; give the folder of a sweep that experiments.sweep has begun") from None
    except ValueError as error:
        raise UserError(f"{workdir / FILE} is not JSON ({error}): remove it, and repeat the command of the sweep") from None
    trials = tuple(Setting(t["flags"], resolve.build_saved(config.Run, t["run"])) for t in tree.pop("trials"))
    return Sweep(**tree | {"rungs": tuple(tree["rungs"]), "trials": trials})


def _differs(old: Sweep, new: Sweep, workdir: Path) -> str:
    """The first difference that results cannot be kept over, "" if there is none."""
    decided = decision(workdir, 1).exists() or any(trial.rung for trial in results(old, workdir))
    for name in ("keys", "search", "seed", *(("metric",) if decided else ()), "rungs", "eta"):
        if (was := getattr(old, name)) != (now := getattr(new, name)):
            shown = (", ".join(was), ", ".join(now)) if name == "keys" else (was, now)
            return f"{'--over' if name == 'keys' else name}: {shown[0]} there, {shown[1]} here"
    for number, (was, now) in enumerate(zip(old.trials, new.trials, strict=False)):
        if changed := resolve.diff(was.run, now.run):
            key, (before, after) = next(iter(changed.items()))
            return f"trial {number} has {key}={before!r} there, {after!r} here"
    if len(new.trials) < len(old.trials) or (new.rungs and len(new.trials) > len(old.trials)):
        return f"{len(old.trials)} trials there, {len(new.trials)} here"
    return ""


# ------------------------------------------------------------------------------------------------------------- the trials


@dataclass(frozen=True)
class Trial:
    """A trial up to a rung: a job that workers share (`experiments.units.Job`)."""

    study: Sweep
    workdir: Path
    number: int
    rung: int  # from 0; the last one is the end of the run

    def __str__(self) -> str:
        return f"trial {self.number}" + (f" to step {self.steps}" if self.study.rungs else "")

    @property
    def run(self) -> config.Run:
        return self.study.trials[self.number].run

    @property
    def steps(self) -> int:
        return (*self.study.rungs, self.run.train.steps)[self.rung]

    @property
    def folder(self) -> Path:
        return self.workdir / f"trial{self.number:03d}"

    @property
    def result(self) -> Path:
        return self.folder / f"step{self.steps}.json"

    @property
    def error(self) -> Path:
        return self.folder / f"step{self.steps}.txt"

    def ended(self) -> Outcome | None:
        """What it measured, or why it failed; None if it has not been done."""
        if not self.result.exists():
            return failure(self.error)
        found = figures.judged(_read(self.result), self.study.metric)
        return Failed(figures.lacking(self.study.metric, _read(self.result)["heldout"])) if "lacks" in found["flags"] else found

    def outcome(self) -> Outcome | None:
        """What it measured, why it failed, or that it was left at an earlier rung; None if that is not known yet. One that
        failed or diverged is the worst of its rung."""
        if found := self.ended():
            return found
        for rung in range(1, self.rung + 1):
            if (chosen := promoted(self.study, self.workdir, rung)) is None:
                return None
            if self.number not in chosen:
                return figures.left(f"left at step {replace(self, rung=rung - 1).steps}")
        if decision(self.workdir, self.rung + 1).exists():
            return figures.left(f"left at step {self.steps}, where it had failed")
        return None

    def ready(self) -> bool:
        """Whether it is known that it goes on: `outcome` says so of one that does not."""
        return not self.rung or promoted(self.study, self.workdir, self.rung) is not None

    def do(self, begins: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Trains up to the rung, from the last checkpoint, and returns what `result` then says. Calls `begins` once the trial
        is locked. Raises what `lm.recipes.train` raises but Diverged, which is a result, and Lacks."""
        import jax

        from lm.recipes import train
        from lm.training.rundir import RunDir

        began, rundir = time.process_time(), RunDir(self.folder)
        try:
            stop_if_lacking(self.study, self.workdir)
            if self.result.exists():  # another process did it before we locked the folder
                return figures.judged(_read(self.result), self.study.metric)
            begins()
            found: dict[str, Any] = {"step": self.steps, "flags": {}, "ledger": {}}
            try:
                found |= self._measured(train(self.run, self.folder / "run", quiet=True, until=self.steps))
            except Diverged as error:
                found["flags"]["diverged"] = str(error)
            found["ledger"]["core_seconds"] = round(time.process_time() - began, 1)
            rundir.write_json(self.result.name, found)
            stop_if_lacking(self.study, self.workdir)
        finally:
            rundir.close()
        jax.clear_caches()  # the next trial has its own
        return figures.judged(found, self.study.metric)

    def _measured(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        from experiments.measure import LEDGER, trained
        from lm.training import jsonl

        seconds = trained(jsonl.read(self.folder / "run/metrics.jsonl"), summary)
        ledger = {name: summary[name] for name in LEDGER} | {"seconds": round(seconds, 1)}
        return {"heldout": dict(summary["heldout"] or {}), "ledger": ledger}


class Lacks(Stopped):
    """A trial that was trained has not the figure by which trials are judged. It ends the command: no other would have it."""

    def __init__(self, why: str):
        Exception.__init__(self, f"error: {why}")
        self.code = EXIT_USER_ERROR


def stop_if_lacking(sweep: Sweep, workdir: Path) -> None:
    """Raises Lacks if a trial on disk has not the figure of the sweep."""
    for found in results(sweep, workdir).values():
        if "lacks" in found["flags"]:
            raise Lacks(figures.lacking(sweep.metric, found["heldout"]))


@cache
def _read(path: Path) -> dict[str, Any]:
    """A result, which never changes once it is there."""
    return json.loads(path.read_text(encoding="utf-8"))


def jobs_of(sweep: Sweep, workdir: Path) -> list[Trial]:
    """All jobs of a sweep, rung by rung."""
    return [Trial(sweep, workdir, k, rung) for rung in range(len(sweep.rungs) + 1) for k in range(len(sweep.trials))]


def results(sweep: Sweep, workdir: Path) -> dict[Trial, dict[str, Any]]:
    """What is on disk, also of trials that diverged, as `judged` says it."""
    return {job: figures.judged(_read(job.result), sweep.metric) for job in jobs_of(sweep, workdir) if job.result.exists()}


def ranked(sweep: Sweep, workdir: Path, rung: int) -> list[Trial]:
    """The trials with a figure at a rung, the best first, of equals the one with the lower number."""
    sign = -1 if sweep.higher else 1
    found = {trial: result["metrics"] for trial, result in results(sweep, workdir).items() if trial.rung == rung}
    known = {trial: sign * metrics[sweep.metric] for trial, metrics in found.items() if metrics}
    return sorted(known, key=lambda trial: (known[trial], trial.number))


def decision(workdir: Path, rung: int) -> Path:
    """The file that says which trials go on to a rung."""
    return workdir / f"rung{rung}.json"


def promoted(sweep: Sweep, workdir: Path, rung: int) -> set[int] | None:
    """The numbers of the trials that go on to a rung, to the first all; None while one is not done with the rung before it. It
    is decided, and written, by whoever first sees that all are."""
    if not rung:
        return set(range(len(sweep.trials)))
    path = decision(workdir, rung)
    if not path.exists():
        if (reached := promoted(sweep, workdir, rung - 1)) is None:
            return None
        if any(Trial(sweep, workdir, number, rung - 1).ended() is None for number in reached):
            return None
        stop_if_lacking(sweep, workdir)
        chosen = [trial.number for trial in ranked(sweep, workdir, rung - 1) if trial.number in reached]
        atomic.write_json(path, {"step": sweep.rungs[rung - 1], "chosen": chosen[: sweep.size(rung)]})
    return set(_read(path)["chosen"])
