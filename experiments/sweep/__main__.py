"""Tries settings of a run's config, and says which is best by its held-out loss.

  python -m experiments.sweep --config=quickstart --trials=8 \\
    --over optimizer.learning_rate='log(1e-3,1e-1)'
  python -m experiments.sweep --config=F --over train.batch_size=8,16 \\
    --over optimizer.learning_rate='log(1e-4,1e-2,5)'
  python -m experiments.sweep --config=F --search=halving --trials=27 \\
    --over optimizer.learning_rate='log(1e-4,1e-2)'
  python -m experiments.sweep --config=F --range_test=1e-6,1

Any key of the config can be swept. KEY=8,16 are values, log(a,b) and uniform(a,b) are ranges to draw from, and log(a,b,5) are
five values of one. A grid tries all combinations; a random search draws --trials settings. Halving begins as either of them,
and at each rung, a number of steps, leaves all but the best of every --eta trials; these go on from their checkpoints.

Trials are runs in D/trial<k>/run, which --processes workers share, here or on a Ray cluster whose nodes share D (--on=ray).
Kill it anywhere: the same command goes on, does no finished trial again, and resumes the others from their checkpoints. A
trial that diverges is the worst. D/report.md and report.html have the table, the curves, and the best setting as a command
line. With another --metric what is done is ranked anew.

A range test is one short run whose learning rate grows from step to step; it suggests a rate (arXiv 1506.01186).
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from experiments import run as studies
from experiments.display import core_seconds
from experiments.sweep import figures, space, trials
from experiments.sweep.space import Axis
from experiments.sweep.trials import Setting, Sweep
from experiments.units import Failed
from lm import cli, config, paths
from lm.config.ranges import Count, Range, Seed
from lm.errors import UserError

DRAWN = 16  # settings, unless --trials says how many
TESTED = 100  # steps of a range test, unless --steps says how many


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    run = cli.load(flags)
    file = Path(flags.config.partition(":")[0])
    name = file.parent.name if file.suffix == ".json" else file.stem
    workdir = paths.local(flags.workdir or f"runs/{'range' if flags.range_test else 'sweep'}_{name}", name="--workdir")
    if flags.range_test:
        print(range_tested(flags, run, workdir))
        return 0
    sweep = made(flags)
    if flags.dry_run:
        print(listed(sweep))
        return 0
    trials.remember(sweep, workdir)
    return execute(sweep, workdir, flags.processes, flags.on)


def range_tested(flags: argparse.Namespace, run: config.Run, workdir: Path) -> str:
    """Runs the range test, and returns what a terminal shows of it."""
    from experiments.sweep import range_test

    names = ("over", "search", "trials", "eta", "first", "metric", "dry_run", "seed", "processes", "on")
    if given := [f"--{name}" for name in names if (value := getattr(flags, name)) or value == 0 and value is not False]:
        raise UserError(f"--range_test is one run, and {given[0]} is for sweeps: leave one of them out")
    command = space.command(flags.config, flags.overrides)
    return range_test.execute(run, flags.range_test, flags.steps or TESTED, workdir, command=command)


def execute(sweep: Sweep, workdir: Path, processes: int | None, on: str | None = None) -> int:
    """Does the trials that are left, writes the report, and prints the best setting."""
    from experiments.sweep import report
    from experiments.sweep.board import TrialBoard

    trials.stop_if_lacking(sweep, workdir)
    jobs = trials.jobs_of(sweep, workdir)
    try:
        outcomes, stopped = studies.do_all(jobs, workdir, processes, board=TrialBoard, on=on)
    finally:  # also where a signal stopped the trial that this process trained
        said = report.write(sweep, workdir)
    trials.stop_if_lacking(sweep, workdir)
    if stopped:
        print("stopped; the same command goes on", file=sys.stderr, flush=True)
        return stopped
    results = [outcome for outcome in outcomes.values() if not isinstance(outcome, Failed)]
    print(f"{len(sweep.trials)} trials took {core_seconds(results):,.0f} core-seconds", file=sys.stderr, flush=True)
    print(said)
    studies.fail(jobs, outcomes)
    return 0


def made(flags: argparse.Namespace) -> Sweep:
    """The sweep that flags describe. UserError for flags that do not go together, and for a trial that is no valid run."""
    if not flags.over:
        raise UserError(f"--over is missing: give KEY=VALUES, such as {space.EXAMPLE}, or --range_test=1e-6,1")
    axes = [space.parse(text, flags.config, flags.overrides) for text in flags.over]
    keys = [axis.key for axis in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--over {twice} is given twice: give its values in one")
    search = flags.search or ("random" if flags.trials or not all(a.values for a in axes) else "grid")
    if flags.steps is not None:
        raise UserError(f"--steps={flags.steps} is of --range_test: give --config.train.steps={flags.steps}")
    if flags.metric:
        figures.higher(flags.metric)
    seed = flags.seed or 0
    settings = chosen(axes, search, flags.trials, seed)
    runs = [trials.of_trial(space.made(flags.config, flags.overrides, values)) for values in settings]
    if search != "halving" and (given := next((name for name in ("eta", "first") if getattr(flags, name)), None)):
        raise UserError(f"--{given}={getattr(flags, given)} is of --search=halving: leave it out, or halve")
    eta = flags.eta or 3
    rungs = rungs_of(runs, eta, flags.first) if search == "halving" else ()
    cli.start_jax()
    metric = flags.metric or figures.default(runs)
    figures.check(metric, runs)
    return Sweep(
        flags.config,
        flags.overrides,
        search,
        seed,
        {axis.key: axis.log for axis in axes},
        metric,
        rungs,
        eta,
        tuple(
            Setting({key: space.written(value) for key, value in values.items()}, run)
            for values, run in zip(settings, runs, strict=True)
        ),
    )


def chosen(axes: list[Axis], search: str, count: int | None, seed: int) -> list[dict]:
    """The settings that a search begins with. Halving begins with a grid where all axes have values and no count is given."""
    finite = all(axis.values for axis in axes)
    if search == "grid" or (search == "halving" and finite and not count):
        found = space.grid(axes)
        if count and count != len(found):
            raise UserError(f"--trials={count}: the grid has {len(found)}; leave out --trials, or --search=grid")
        return found
    return space.drawn(axes, count or DRAWN, seed)


def rungs_of(runs: Sequence[config.Run], eta: int, first: int | None = None) -> tuple[int, ...]:
    """The steps after which trials are halved, before the end of the run: steps / eta, steps / eta^2, ..., as many as there are
    trials for. Within a warm-up rates have not had their effect, so that the first rung is after it, or after `first` steps."""
    steps = runs[0].train.steps
    if any(run.train.steps != steps for run in runs):
        raise UserError("--search=halving compares trials after equal steps: leave train.steps out of --over")
    deepest = int(math.log(len(runs), eta) + 1e-9)
    if not deepest:
        raise UserError(f"--search=halving has nothing to halve in {len(runs)} trials: give {eta} or more, or a smaller --eta")
    every = dict.fromkeys(round(steps / eta**k) for k in range(deepest, 0, -1))
    warmup = max(run.optimizer.schedule.phases(steps)[0] for run in runs)
    found = tuple(rung for rung in every if max(first or warmup + 1, 1) <= rung < steps)
    if not found:
        where = f"before step {first}" if first else f"within the warm-up of {warmup} steps"
        raise UserError(
            f"--search=halving would halve after {', '.join(map(str, every))} of {steps} steps, {where}: give more steps, or "
            f"--first={max(max(every), 1)}"
        )
    return found


def listed(sweep: Sweep) -> str:
    """The trials as lines of text, and what they add up to."""
    lines = [f"trial {k:>3}  {sweep.label(k)}" for k in range(len(sweep.trials))]
    ends = [setting.run.train.steps for setting in sweep.trials]
    sizes = [len(sweep.trials), *(sweep.size(rung) for rung in range(1, len(sweep.rungs) + 1))]
    begins = [0, *sweep.rungs]
    if sweep.rungs:
        rungs = zip(sizes, (*sweep.rungs, ends[0]), strict=True)
        lines.append("rungs: " + ", ".join(f"{size} to step {steps:,}" for size, steps in rungs))
        total = sum(size * (end - begin) for size, begin, end in zip(sizes, begins, (*sweep.rungs, ends[0]), strict=True))
    else:
        total = sum(ends)
    lines.append(f"{len(sweep.trials)} trials ({sweep.search}), {total:,} steps in all, judged by {sweep.metrics[0].label}")
    return "\n".join(lines)


def parser() -> cli.Parser:
    p = cli.parser("experiments.sweep", __doc__, config=True, exits=cli.RUN_EXITS)
    p.add_argument("--over", action="append", default=[], metavar="KEY=VALUES", help="a key of the config and what to try")
    p.add_argument(
        "--search", choices=["grid", "random", "halving"], help="random if a key has a range, or --trials; else grid"
    )
    p.add_argument("--trials", hint=Count, help=f"settings that are drawn; {DRAWN} if not given")
    p.add_argument("--eta", hint=Annotated[int, Range(2, 1000)], help="halving: one of so many trials goes on; 3 if not given")
    p.add_argument("--first", hint=Count, help="halving: steps before which no trial is left; the warm-up if not given")
    p.add_argument("--seed", hint=Seed, help="of the draws; 0 if not given")
    p.add_argument("--metric", help="held-out figure to judge by; bits_per_byte if runs have it")
    p.add_argument("--workdir", help="folder D; runs/sweep_CONFIG if not given. What is done there is not done again")
    p.add_argument("--processes", hint=Count, help="workers that share the trials; one for each core if not given")
    p.add_argument("--on", help="ray: on the cluster of this machine; ray://HOST:10001: on another")
    p.add_argument("--dry_run", action="store_true", help="list the trials, and stop")
    p.add_argument("--range_test", metavar="LOW,HIGH", help="one run, with learning rates from LOW to HIGH")
    p.add_argument("--steps", hint=Count, help=f"of a range test; {TESTED} if not given")
    return p


if __name__ == "__main__":
    cli.enter(main)
