"""`python -m experiments.run STUDY --workdir=D`: every cell of a study with every seed, then the report.

A unit is a cell with a seed, in D/<cell>/seed<k>: its training run, and `result.json` once it is measured. What has a
result is not done again, what was begun goes on, so the same command repeats until all is done. Several processes may work
on one D: each takes what no other is at; `--shard=0/4` keeps to every fourth unit, for hosts that share no folder.
Settings of a study are set with --set: `--set seeds=5 --set budget=1e12`. Exit codes are those of `python -m lm.train`.
"""

import argparse
import ast
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.study import Cell, Study
from lm import config, startup
from lm.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, nearest

HERE = Path(__file__).parent
WAIT = 5.0  # seconds between looks at what another process is doing
Unit = tuple[str, int]  # cell, seed


def load_study(name: str, settings: dict[str, Any]) -> Study:
    """`experiments/<name>/study.py`'s `study(**settings)`."""
    known = [p.parent.name for p in HERE.glob("*/study.py")]
    if name not in known:
        raise UserError(f"no study '{name}'{nearest(name, known)}")
    try:
        return importlib.import_module(f"experiments.{name}.study").study(**settings)
    except TypeError as error:
        raise UserError(f"--set: {error}") from error


def planned(study: Study, unit: Unit, workdir: Path) -> config.Run:
    """The run of a unit: with its seed, its steps, and where it starts from."""
    from lm.data.prepare import prepare
    from lm.models.transformer import abstract_params
    from lm.objectives import build
    from lm.recipes import ledger, pretrain

    cell, seed = study.cells[unit[0]], unit[1]
    start = None if cell.start is None else str(folder(workdir, (cell.start, seed)) / "run")
    run = replace(cell.run, train=replace(cell.run.train, seed=seed, init_from=start))
    if study.match == "params":
        count = ledger.parameters(abstract_params(run.model))["parameters"]
        if abs(count - study.budget) > 0.01 * study.budget:
            raise UserError(f"{unit[0]} of {study.name} has {count:,} parameters; its study holds them at {study.budget:,.0f}")
    if study.match in (None, "params"):
        return run
    data = prepare(run.data, progress=sys.stderr.isatty())
    rows = pretrain.rows_of(run, data, build(run.objective, run.model.architecture, run.data, data.tokenizer))["train"]
    steps = ledger.steps_for(run, rows, study.match, study.budget * cell.share)
    return replace(run, train=replace(run.train, steps=steps))


def folder(workdir: Path, unit: Unit) -> Path:
    return workdir / unit[0] / f"seed{unit[1]}"


def units(study: Study) -> list[Unit]:
    """Seed by seed, so that every cell soon has a first result; a cell after the one it starts from."""
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
    """Trains and measures a unit; its result.json. Raises what `pretrain.train` raises."""
    import jax

    from experiments.measure import measure
    from lm.recipes import pretrain
    from lm.train.rundir import RunDir

    place, cell = folder(workdir, unit), study.cells[unit[0]]
    rundir = RunDir(place)
    try:
        run, summary = planned(study, unit, workdir), place / "run" / "summary.json"
        if not summary.exists():
            pretrain.train(run, place / "run", quiet=True)
        result = {"cell": unit[0], "seed": unit[1], "settings": mark(study, cell)}
        result |= measure(cell, run, place / "run", json.loads(summary.read_text()))
        rundir.write_json("result.json", result)
    finally:
        rundir.close()
    jax.clear_caches()  # the next unit has its own
    return result


def mark(study: Study, cell: Cell) -> str:
    """A digest of all that decides a result but the seed and the code."""
    return hashlib.sha256(repr((cell, study.match, study.budget)).encode()).hexdigest()


def finished(study: Study, unit: Unit, workdir: Path) -> dict[str, Any] | None:
    """The result of a unit, if it is there; UserError if it was made with other settings than the study now has."""
    path = folder(workdir, unit) / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    if result["settings"] != mark(study, study.cells[unit[0]]):
        raise UserError(
            f"{path} was made with other settings than the study has now; remove its folder, or take a new --workdir"
        )
    return result


def work(study: Study, workdir: Path, shard: tuple[int, int]) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Does what is left of a shard, and yields each unit with its result. Waits for what other processes are at."""
    left = [u for i, u in enumerate(units(study)) if i % shard[1] == shard[0]]
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
                except UserError as error:
                    if "is at work in" not in str(error):
                        raise
                    busy.append(unit)
        if busy:
            time.sleep(WAIT)
        left = busy


def execute(study: Study, workdir: Path, shard: tuple[int, int] = (0, 1)) -> bool:
    """Does a shard of a study, shown as it goes; whether the whole study is then done."""
    from experiments.display import Board

    with Board(study, units(study), workdir) as board:
        for unit, result in work(study, workdir, shard):
            board.done(unit, result)
    return all(finished(study, unit, workdir) for unit in units(study))


def main(argv: list[str] | None = None) -> int:
    try:
        flags = parser().parse_args(argv)
        settings = dict(setting(text) for text in flags.set)
        study, shard = load_study(flags.study, settings), parse_shard(flags.shard)
        workdir = Path(flags.workdir or f"runs/{study.name}").expanduser().resolve()
        startup.before_jax()
        from experiments import report
        from experiments.display import plan_table
        from lm.train.hooks import Stopped

        startup.after_jax()
        if flags.dry_run:
            print(plan_table(study, workdir))
            return 0
        try:
            remember(study, settings, workdir)
            if execute(study, workdir, shard):
                print(report.write(*report.load(workdir), workdir)["md"])
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return stopped.code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:  # between two runs
        print("interrupted; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def remember(study: Study, settings: dict[str, Any], workdir: Path) -> None:
    """`study.json`, from which the report knows the study; refuses to mix two sets of settings in one folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    path, text = (
        workdir / "study.json",
        json.dumps({"study": study.name, "settings": settings}, indent=1, sort_keys=True) + "\n",
    )
    if path.exists() and path.read_text() != text:
        raise UserError(f"{workdir} holds a study with other settings ({path}); give the same --set, or another --workdir")
    path.write_text(text)


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


def parser() -> argparse.ArgumentParser:
    known = ", ".join(sorted(p.parent.name for p in HERE.glob("*/study.py")))
    p = argparse.ArgumentParser(
        prog="python -m experiments.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("study", help=f"one of {known}")
    p.add_argument("--workdir", help="folder of the study; runs/STUDY if not given. What is done there is not done again")
    p.add_argument("--shard", default="0/1", help="I/N: this process takes units I, I+N, I+2N ... (0/1)")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the study, such as seeds=5")
    p.add_argument("--dry_run", action="store_true", help="print the cells with their steps, parameters and FLOPs, and stop")
    return p


if __name__ == "__main__":
    sys.exit(main())
