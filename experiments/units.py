"""The units of studies: a cell with a seed, in D/<cell>/seed<k>, and how one is done.

D/<cell>/seed<k>/result.json   once it is measured
                 error.txt     why it failed, until it is tried again
                 run/          its training run
                 finetune/     its fine-tunings
"""

import importlib
import inspect
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import experiments
import lm
from experiments.study import Study
from lm import process
from lm.config import resolve
from lm.errors import Busy, Diverged, Stopped, UserError, nearest, printable

WAIT = 2.0  # seconds between two looks at the units of other processes
OTHER_SETTINGS = "other settings than the study has now; remove its folder, or take a new --workdir"
Unit = tuple[str, int]  # cell, seed


def studies() -> list[str]:
    """The names of all studies: of folders `experiments/<name>` with a study.py, here or elsewhere on Python's path."""
    return sorted({p.parent.name for root in experiments.__path__ for p in Path(root).glob("*/study.py")})


def load_study(name: str, settings: dict[str, Any]) -> Study:
    """The study of experiments/<name>/study.py, under that name. Raises UserError for an unknown study or setting."""
    if name not in studies():
        raise UserError(f"no study '{name}'{nearest(name, studies())}")
    make = importlib.import_module(f"experiments.{name}.study").study
    takes = inspect.signature(make).parameters
    for key in settings:
        if key not in takes:
            raise UserError(f"--set {key}: study '{name}' has no such setting{nearest(key, takes)}")
    return replace(made(make, settings), name=name)


_MADE: dict[tuple[Callable[..., Study], str], Study] = {}


def made(make: Callable[..., Study], settings: dict[str, Any]) -> Study:
    """make(**settings), called once in a process: studies do not change, and their languages take a second to generate."""
    key = make, repr(sorted(settings.items()))
    if key not in _MADE:
        _MADE[key] = make(**settings)
    return _MADE[key]


def parse_shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard={text}: give I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(count)


def folder(workdir: Path, unit: Unit) -> Path:
    return workdir / unit[0] / f"seed{unit[1]}"


def units(study: Study) -> list[Unit]:
    """All units, seed by seed, so that every cell has a first result early; a cell comes after those that it needs."""
    order: list[str] = []

    def add(name: str) -> None:
        for other in study.cells[name].needs:
            if other not in order:
                add(other)
        if name not in order:
            order.append(name)

    for name in study.cells:
        add(name)
    return [(name, seed) for seed in range(study.seeds) for name in order]


class Job(NamedTuple):
    """A unit of a study in `workdir`. Workers share jobs by these attributes and methods, which trials of sweeps have too
    (`experiments.sweep.trials`)."""

    study: Study
    workdir: Path
    unit: Unit

    def __str__(self) -> str:
        return f"{self.study.name}/{self.unit[0]} seed {self.unit[1]}"

    @property
    def error(self) -> Path:
        return folder(self.workdir, self.unit) / "error.txt"

    @property
    def needs(self) -> "list[Job]":
        """The jobs that are done before it."""
        return [self._replace(unit=(cell, self.unit[1])) for cell in self.study.cells[self.unit[0]].needs]

    def outcome(self) -> "Outcome | None":
        """Its result, or its error; None if it has neither yet."""
        return finished(self.study, self.unit, self.workdir) or failure(self.error)

    def ready(self) -> bool:
        """Whether all that it needs is done. Raises UserError if that failed."""
        for before in self.needs:
            match before.outcome():
                case None:
                    return False
                case Failed():
                    raise UserError(f"'{before.unit[0]}', which it needs, failed")
        return True

    def do(self, begins: Callable[[], None]) -> dict[str, Any]:
        return do(self.study, self.unit, self.workdir, begins)


@dataclass(frozen=True)
class Failed:
    """A job that raised an error, said in a line."""

    why: str


Outcome = dict[str, Any] | Failed


def jobs_of(study: Study, workdir: Path, shard: tuple[int, int] = (0, 1)) -> list[Job]:
    """The jobs of shard (i, n). A cell that needs another one is in the same shard."""
    roots = list(dict.fromkeys((study.root(name), seed) for name, seed in units(study)))
    mine = lambda unit: roots.index((study.root(unit[0]), unit[1])) % shard[1] == shard[0]
    return [Job(study, workdir, unit) for unit in units(study) if mine(unit)]


def finished(study: Study, unit: Unit, workdir: Path) -> dict[str, Any] | None:
    """The result of a unit, or None. Raises UserError if it was made with other settings than the study has now."""
    path = folder(workdir, unit) / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    if result["settings"] != study.mark(unit[0]):
        raise UserError(f"{path} was made with {OTHER_SETTINGS}")
    return result


def failure(error: Path) -> Failed | None:
    """What the file `error` of a job says, None if there is none."""
    return Failed(error.read_text(encoding="utf-8").partition("\n")[0]) if error.exists() else None


def work(jobs: Iterable[Job], begins: Callable[[Job], None] = lambda job: None) -> Iterator[tuple[Job, Outcome]]:
    """Does the jobs that no other process does, and yields each job with its outcome, also of those that others did.

    A job that raises an error has failed, and so have those that need it; the others go on.
    """
    left = list(jobs)
    while left:
        waiting = []
        for job in left:
            if (found := _attempt(job, begins)) is None:
                waiting.append(job)
            else:
                yield job, found
        if waiting:
            time.sleep(WAIT)
        left = waiting


def _attempt(job: Job, begins: Callable[[Job], None]) -> Outcome | None:
    """The outcome of a job, which is done now if it has none; None while another process does it or what it needs."""
    try:
        if found := job.outcome():
            return found
        return job.do(lambda: begins(job)) if job.ready() else None
    except (Busy, Stopped) as signal:
        if isinstance(signal, Stopped):
            raise
        return None
    except Exception as error:
        if process.was_asked():  # a library may have replaced `Ended` by an error of its own
            raise
        return _failed(job, error)


def _failed(job: Job, error: Exception) -> Failed:
    """Writes the error's line, and the traceback unless the user is told what to do, to error.txt."""
    ended = process.ending(error)
    line = ended[0].removeprefix("error: ") if ended else printable(f"{type(error).__name__}: {error}")
    text = line + "\n" + ("" if ended else "\n" + traceback.format_exc())
    job.error.parent.mkdir(parents=True, exist_ok=True)
    job.error.write_text(text, encoding="utf-8")
    return Failed(line)


def made_with() -> dict[str, str]:
    """The versions that figures depend on, and the commit, with + if files differ from it, or the release where there is none:
    a fault that is found in one of them later says which results it touches."""
    from lm.training.rundir import git_state

    git = git_state()
    code = {"commit": git["commit"][:12] + "+" * bool(git["changed"])} if git else {"lm": lm.__version__}
    return {"python": platform.python_version(), "jax": metadata.version("jax")} | code


def do(study: Study, unit: Unit, workdir: Path, begins: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Trains and measures a unit; its result.json, which says so if it diverged. Calls `begins` once the unit is locked. Raises
    what `lm.recipes.train` raises."""
    import jax

    from experiments.measure import measure
    from experiments.plan import planned
    from lm.recipes import recipe, train
    from lm.training import resume
    from lm.training.rundir import RunDir

    began, place, cell = time.process_time(), folder(workdir, unit), study.cells[unit[0]]
    rundir = RunDir(place)
    try:
        if result := finished(study, unit, workdir):  # finished by another process before we locked the folder
            return result
        begins()
        run, summary = planned(study, unit, workdir), place / "run" / "summary.json"
        result = {"cell": unit[0], "seed": unit[1], "settings": study.mark(unit[0]), "made_with": made_with()}
        try:
            for other in cell.needs:
                if (before := finished(study, (other, unit[1]), workdir)) and "diverged" in before["flags"]:
                    raise Diverged(f"{other}, which it needs, diverged")
            if not summary.exists():
                train(run, place / "run", quiet=True)
            else:
                trained, asked = resolve.from_json((place / "run/config.json").read_text()), recipe(run).complete(run, None)
                if resolve.diff(trained, asked).keys() - set(resume.FOLDERS):
                    raise UserError(f"{place}/run was trained with {OTHER_SETTINGS}")
            result |= measure(cell, run, place / "run", json.loads(summary.read_text()))
        except Diverged as error:
            result |= {"metrics": {}, "flags": {"diverged": str(error)}, "ledger": {}, "curve": []}
        # Of all threads of the process that finished it: what it takes with its compilation, scores and fine-tunings.
        result["ledger"]["core_seconds"] = round(time.process_time() - began, 1)
        rundir.write_json("result.json", result)
    finally:
        rundir.close()
    jax.clear_caches()  # the next unit has its own
    return result
