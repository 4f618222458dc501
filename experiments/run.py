"""Runs every cell of a study with every seed, or all studies of a suite, then writes the reports.

  python -m experiments.run scaling --workdir=runs/scaling
  python -m experiments.run scaling --set seeds=5 --set budget=1e12 --dry_run
  python -m experiments.run laptop

A unit is a cell with a seed, in D/<cell>/seed<k>: its training run, a run for each of its fine-tunings, and `result.json` once
it is measured. Finished units are skipped and interrupted ones resumed, so repeat the same command until all is done. One that
fails has an error.txt, does not stop the others, and is tried again by the next command. `--processes` workers share the units,
and so do commands with the same D; with `--on=ray` they are on a Ray cluster whose nodes share D. `--shard=0/4` runs a quarter
of the units, for hosts without a shared folder; a cell that starts from another one is in the same shard. Copy the folders
together, and the same command without --shard writes the report.
`laptop`, `frontier`, `life` and `kinds` are suites: their studies run one after another, each in D/<study>.
"""

import ast
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import workers
from experiments.display import Board, core_seconds
from experiments.study import Study
from experiments.units import Failed, Job, Outcome, finished, jobs_of, load_study, parse_shard, studies, units, work
from lm import atomic, cli, paths
from lm.config.ranges import Count
from lm.errors import UserError, nearest

SUITES = {  # name -> studies
    "laptop": (
        "reversal",
        "copying",
        "length",
        "prefix",
        "electra",
        "mask_rate",
        "bart_noise",
        "repetition",
        "grammar",
        "mirror",
        "emergence",
        "static_masks",
        "grokking",
        "translation",
        "warning",
        "wang_adapt",
    ),
    "life": ("rewards", "overoptimisation", "lora", "razor", "instructions", "on_policy"),
    "frontier": ("diffusion", "crossing", "reversal_diffusion", "adapt", "sudoku", "planning", "vectors"),
    "kinds": ("seq2seq", "bottleneck", "trees", "clip", "captions", "speech"),  # of model: docs/other_models.md
}


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    settings, shard = dict(setting(text) for text in flags.set), parse_shard(flags.shard)
    if flags.study not in (known := [*SUITES, *studies()]):
        raise UserError(f"no study or suite '{flags.study}'{nearest(flags.study, known)}")
    home = paths.local(flags.workdir or f"runs/{flags.study}", name="--workdir")
    suite = SUITES.get(flags.study)
    folders = {name: home / name for name in suite} if suite else {flags.study: home}
    made: dict[str, Study] = {}
    broken: dict[str, str] = {}  # study -> why none of its units can run

    def each(do: Callable[[str, Path], Any]) -> list[Any]:
        """do(study's name, its folder) of all studies. In a suite, one that raises an error does not stop the others."""
        done = []
        for name, workdir in folders.items():
            try:
                done += [do(name, workdir)] if name not in broken else []
            except Exception as error:
                if not suite:
                    raise
                broken[name] = str(error) if isinstance(error, UserError) else traceback.format_exc().rstrip()
                print(f"{name}: {broken[name]}", file=sys.stderr, flush=True)
        return done

    each(lambda name, workdir: made.update({name: load_study(name, settings)}))
    if flags.dry_run:
        cli.start_jax()
        each(lambda name, workdir: show_plan(made[name], workdir))
    else:
        jobs = sum(each(lambda name, workdir: begin(made[name], settings, workdir, shard)), [])
        outcomes, stopped = do_all(jobs, home, flags.processes, f"{shard[0]}/{shard[1]}", on=flags.on)
        if stopped:
            print("stopped; the same command goes on", file=sys.stderr, flush=True)
            return stopped
        each(lambda name, workdir: conclude(made[name], workdir, outcomes, whole=not suite))
        results = [outcome for outcome in outcomes.values() if not isinstance(outcome, Failed)]
        print(f"{len(results)} units took {core_seconds(results):,.0f} core-seconds", file=sys.stderr, flush=True)
        fail(jobs, outcomes)
    if broken:
        raise UserError(f"{', '.join(broken)} did not run, for what is printed above; mend it and run the same command again")
    return 0


def begin(study: Study, settings: dict[str, Any], workdir: Path, shard: tuple[int, int]) -> list[Job]:
    """Makes the folder of a study, and returns its jobs. UserError if it holds results of other settings."""
    remember(study, settings, workdir)
    jobs = jobs_of(study, workdir, shard)
    for job in jobs:
        finished(study, job.unit, workdir)
    return jobs


def do_all(
    jobs: Sequence[Job],
    home: Path,
    processes: int | None,
    shard: str = "0/1",
    board: type[Board] = Board,
    on: str | None = None,
) -> tuple[dict[str, Outcome], int]:
    """Does the jobs with so many processes, here or on the Ray cluster `on`, and forgets earlier errors. Returns outcomes by
    job, and the exit code of a signal that stopped the workers, or 0."""
    for job in jobs:
        job.error.unlink(missing_ok=True)
    left = sum(job.outcome() is None for job in jobs)
    if on and left:
        from experiments import cluster

        return workers.run(jobs, cluster.start(on, workers.folders(jobs), home, processes, left, shard), board)
    processes = processes or workers.available(left)
    if processes > 1 and left:
        return workers.run(jobs, workers.start(jobs, home, processes, shard), board)
    cli.start_jax()
    return here(jobs, board), 0


def here(jobs: Sequence[Job], board: type[Board] = Board) -> dict[str, Outcome]:
    """Does the jobs in this process, and shows their progress."""
    outcomes = {}
    with board(jobs) as shown:
        for job, outcome in work(jobs):
            outcomes[str(job)] = outcome
            shown.done(job, outcome)
    return outcomes


def execute(study: Study, workdir: Path, shard: tuple[int, int] = (0, 1)) -> bool:
    """Runs a shard of a study in this process. Returns whether all units of the study are finished. Raises UserError if one
    failed, once the others are done."""
    jobs = jobs_of(study, workdir, shard)
    for job in jobs:
        job.error.unlink(missing_ok=True)
    fail(jobs, here(jobs))
    return all(finished(study, unit, workdir) for unit in units(study))


def fail(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> None:
    """Raises UserError if a job failed, or has no outcome because its workers died."""
    failed = [job for job in jobs if isinstance(outcomes.get(str(job), Failed("")), Failed)]
    if not failed:
        return
    first = outcomes.get(str(failed[0]), Failed("no worker is left to do it"))
    assert isinstance(first, Failed)
    where = f" ({failed[0].error})" if failed[0].error.exists() else ""
    raise UserError(f"{len(failed)} of {len(jobs)} units failed, first {failed[0]}: {first.why}{where}")


def conclude(study: Study, workdir: Path, outcomes: Mapping[str, Outcome], *, whole: bool) -> None:
    """Writes the report of a study, if all of its units are finished or have failed, and prints it (`whole`) or where it is."""
    from experiments import report

    every = jobs_of(study, workdir)
    if not all(str(job) in outcomes or finished(study, job.unit, workdir) for job in every):
        return
    written = report.write(*report.load(workdir), workdir, command=f"python -m experiments.report {workdir}")
    print(written["md"].read_text() if whole else written["md"])


def show_plan(study: Study, workdir: Path) -> None:
    from experiments.plan import earlier, plan_table, power_table

    print(f"## {study.title}\n\n{plan_table(study, workdir)}\n\n{power_table(study, earlier(study, workdir))}\n", flush=True)


def remember(study: Study, settings: dict[str, Any], workdir: Path) -> None:
    """Writes study.json, from which workers and the report load the study. Raises UserError if the folder has results of other
    settings; only seeds may be added."""
    workdir.mkdir(parents=True, exist_ok=True)
    path, spec = workdir / "study.json", {"study": study.name, "settings": settings}
    without = lambda d: d | {"settings": {k: v for k, v in d["settings"].items() if k != "seeds"}}
    if path.exists() and without(workers.read_spec(workdir)) != without(spec):
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


def parser() -> cli.Parser:
    known = ", ".join([*SUITES, *studies()])
    p = cli.parser("experiments.run", __doc__, exits=cli.RUN_EXITS)
    p.add_argument("study", help=f"one of {known}")
    p.add_argument("--workdir", help="folder D; runs/STUDY if not given. What is done there is not done again")
    p.add_argument("--processes", hint=Count, help="workers that share the units; one for each core if not given")
    p.add_argument("--on", help="ray: on the cluster of this machine; ray://HOST:10001: on another")
    p.add_argument("--shard", default="0/1", help="I/N: this command keeps to the I-th of N parts of the units")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the study, such as seeds=5")
    p.add_argument("--dry_run", action="store_true", help="print sizes, steps, costs and power, and stop")
    return p


if __name__ == "__main__":
    cli.enter(main)
