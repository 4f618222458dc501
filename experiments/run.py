"""Runs every cell of a study with every seed, then writes the report.

  python -m experiments.run scaling --workdir=runs/scaling
  python -m experiments.run scaling --set seeds=5 --set budget=1e12 --dry_run

A unit is a cell with a seed, in D/<cell>/seed<k>: its training run, a run for each of its fine-tunings, and `result.json` once
it is measured. Finished units are skipped and interrupted ones resumed, so repeat the same command until all is done. Several
processes may work on one D; each takes a unit that no other is working on. `--shard=0/4` runs a quarter of the units, for hosts
without a shared folder; a cell that starts from another one is in the same shard. Copy the folders together, and the same
command without --shard writes the report. Settings of a study are set with --set: `--set seeds=5 --set budget=1e12`.
"""

import ast
import importlib
import inspect
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.study import Study
from lm import atomic, cli, config, paths
from lm.config import resolve
from lm.errors import Busy, Diverged, UserError, nearest

HERE = Path(__file__).parent
WAIT = 5.0  # seconds between polls for units of other processes
OTHER_SETTINGS = "other settings than the study has now; remove its folder, or take a new --workdir"
Unit = tuple[str, int]  # cell, seed


def load_study(name: str, settings: dict[str, Any]) -> Study:
    """Calls `study(**settings)` of experiments/<name>/study.py. Raises UserError for an unknown study or setting."""
    known = [p.parent.name for p in HERE.glob("*/study.py")]
    if name not in known:
        raise UserError(f"no study '{name}'{nearest(name, known)}")
    make = importlib.import_module(f"experiments.{name}.study").study
    takes = inspect.signature(make).parameters
    for key in settings:
        if key not in takes:
            raise UserError(f"--set {key}: study '{name}' has no such setting{nearest(key, takes)}")
    return make(**settings)


def training_rows(run: config.Run) -> Any:
    """The `Rows` that a run trains on."""
    from lm.data.corpus.prepare import prepare
    from lm.recipes import recipe

    return recipe(run).rows(run, prepare(run.data, progress=sys.stderr.isatty()))["train"]


def counts(run: config.Run, rows: Any) -> dict[str, int]:
    """{"parameters", "parameters_without_embeddings"} of everything that a run trains, by `eval_shape`."""
    import jax
    from flax import linen as nn

    from lm.data.rows import stack
    from lm.recipes import recipe, task
    from lm.training import ledger

    row = recipe(run).row(rows)
    params = jax.eval_shape(lambda key: task(run).init(key, stack([row])), jax.random.key(0))
    return ledger.parameters(nn.unbox(params))


def planned(study: Study, unit: Unit, workdir: Path) -> config.Run:
    """The run of a unit: the cell's, with the seed, the steps that match the budget, and the checkpoint that it starts from. A
    cell with `share=0` has no steps: its run saves and evaluates the first parameters.

    Raises UserError if the study matches parameters and the cell's are more than 1 % off.
    """
    from lm.recipes import task
    from lm.training import ledger

    cell, seed = study.cells[unit[0]], unit[1]
    start = None if cell.start is None else str(folder(workdir, (cell.start, seed)) / "run")
    run = replace(cell.run, train=replace(cell.run.train, seed=seed, init_from=start))
    if study.match == "params":
        count = counts(run, training_rows(run))["parameters"]
        if abs(count - study.budget) > 0.01 * study.budget:
            raise UserError(f"{unit[0]} of {study.name} has {count:,} parameters; the study needs {study.budget:,.0f}")
    if cell.share == 0:
        return replace(run, train=replace(run.train, steps=0))
    if study.match in (None, "params"):
        return run
    budget = study.budget * cell.share
    steps = ledger.steps_for(task(run), training_rows(run), run.train.batch_size, study.match, budget)
    return replace(run, train=replace(run.train, steps=steps))


def folder(workdir: Path, unit: Unit) -> Path:
    return workdir / unit[0] / f"seed{unit[1]}"


def units(study: Study) -> list[Unit]:
    """All units, seed by seed, so that every cell has a first result early; a cell comes after the one that it starts from."""
    order: list[str] = []

    def add(name: str) -> None:
        start = study.cells[name].start
        if start is not None and start not in order:
            add(start)
        if name not in order:
            order.append(name)

    for name in study.cells:
        add(name)
    return [(name, seed) for seed in range(study.seeds) for name in order]


def do(study: Study, unit: Unit, workdir: Path) -> dict[str, Any]:
    """Trains and measures a unit; its result.json, which says so if it diverged. Raises what `lm.recipes.train` raises."""
    import jax

    from experiments.measure import measure
    from lm import recipes
    from lm.training import resume
    from lm.training.rundir import RunDir

    place, cell = folder(workdir, unit), study.cells[unit[0]]
    rundir = RunDir(place)
    try:
        if result := finished(study, unit, workdir):  # finished by another process before we locked the folder
            return result
        run, summary = planned(study, unit, workdir), place / "run" / "summary.json"
        result = {"cell": unit[0], "seed": unit[1], "settings": study.mark(unit[0])}
        before = finished(study, (cell.start, unit[1]), workdir) if cell.start else None
        try:
            if before and "diverged" in before["flags"]:
                raise Diverged(f"{cell.start}, from which it starts, diverged")
            if not summary.exists():
                recipes.train(run, place / "run", quiet=True)
            elif resolve.diff(resolve.from_json((place / "run/config.json").read_text()), run).keys() - set(resume.FOLDERS):
                raise UserError(f"{place}/run was trained with {OTHER_SETTINGS}")
            result |= measure(cell, run, place / "run", json.loads(summary.read_text()))
        except Diverged as error:
            result |= {"metrics": {}, "flags": {"diverged": str(error)}, "ledger": {}, "curve": []}
        rundir.write_json("result.json", result)
    finally:
        rundir.close()
    jax.clear_caches()  # the next unit has its own
    return result


def finished(study: Study, unit: Unit, workdir: Path) -> dict[str, Any] | None:
    """The result of a unit, or None. Raises UserError if it was made with other settings than the study has now."""
    path = folder(workdir, unit) / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    if result["settings"] != study.mark(unit[0]):
        raise UserError(f"{path} was made with {OTHER_SETTINGS}")
    return result


def work(study: Study, workdir: Path, shard: tuple[int, int]) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Runs the unfinished units of a shard, and yields all units with their results. Waits for units of other processes."""
    roots = list(dict.fromkeys((study.root(name), seed) for name, seed in units(study)))
    left = [unit for unit in units(study) if roots.index((study.root(unit[0]), unit[1])) % shard[1] == shard[0]]
    while left:
        busy = []
        for unit in left:
            start = study.cells[unit[0]].start
            if result := finished(study, unit, workdir):
                yield unit, result
            elif start is not None and not finished(study, (start, unit[1]), workdir):
                busy.append(unit)
            else:
                try:
                    yield unit, do(study, unit, workdir)
                except Busy:
                    busy.append(unit)
        if busy:
            time.sleep(WAIT)
        left = busy


def execute(study: Study, workdir: Path, shard: tuple[int, int] = (0, 1)) -> bool:
    """Runs a shard of a study and shows its progress. Returns whether all units of the study are finished."""
    from experiments.display import Board

    with Board(study, units(study), workdir) as board:
        for unit, result in work(study, workdir, shard):
            board.done(unit, result)
    return all(finished(study, unit, workdir) for unit in units(study))


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    settings = dict(setting(text) for text in flags.set)
    study, shard = load_study(flags.study, settings), parse_shard(flags.shard)
    workdir = paths.local(flags.workdir or f"runs/{study.name}", name="--workdir")
    cli.start_jax()
    from experiments import report
    from experiments.display import plan_table

    if flags.dry_run:
        print(plan_table(study, workdir))
        return 0
    remember(study, settings, workdir)
    if execute(study, workdir, shard):
        command = f"python -m experiments.run {study.name} --workdir={flags.workdir or workdir}"
        print(report.write(*report.load(workdir), workdir, command=command)["md"])
    return 0


def remember(study: Study, settings: dict[str, Any], workdir: Path) -> None:
    """Writes study.json, from which the report loads the study. Raises UserError if the folder has results of other settings;
    only seeds may be added."""
    workdir.mkdir(parents=True, exist_ok=True)
    path, spec = workdir / "study.json", {"study": study.name, "settings": settings}
    without = lambda d: d | {"settings": {k: v for k, v in d["settings"].items() if k != "seeds"}}
    if path.exists() and without(json.loads(path.read_text())) != without(spec):
        raise UserError(f"{workdir} holds a study with other settings ({path}); give the same --set, or another --workdir")
    atomic.write_json(path, spec)


def setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: give NAME=VALUE, such as --set seeds=5")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def parse_shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard={text}: give I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(count)


def parser() -> cli.Parser:
    known = ", ".join(sorted(p.parent.name for p in HERE.glob("*/study.py")))
    p = cli.parser("experiments.run", __doc__, exits=cli.RUN_EXITS)
    p.add_argument("study", help=f"one of {known}")
    p.add_argument("--workdir", help="folder of the study; runs/STUDY if not given. What is done there is not done again")
    p.add_argument("--shard", default="0/1", help="I/N: this process keeps to the I-th of N parts of the units")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the study, such as seeds=5")
    p.add_argument("--dry_run", action="store_true", help="print the cells with their steps, parameters and FLOPs, and stop")
    return p


if __name__ == "__main__":
    cli.enter(main)
