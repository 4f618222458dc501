"""The live progress table of studies."""

import math
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from experiments.study import Study
from experiments.units import Failed, Job, Outcome, Unit


class Board:
    """A table that is filled in as jobs end, of one study its cells and seeds; without a terminal, a line for each job."""

    def __init__(self, jobs: Sequence[Job]):
        self.studies = {job.study.name: job.study for job in jobs}
        self.jobs = {str(job): job for job in jobs}
        self.outcomes: dict[str, Outcome] = {}
        self.console = Console(stderr=True)
        self.live = Live(self.table(), console=self.console, refresh_per_second=1) if self.console.is_terminal else None
        self.began = time.monotonic()

    def __enter__(self) -> "Board":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        if self.live:
            self.live.stop()

    def done(self, job: Job, outcome: Outcome) -> None:
        self.outcomes[str(job)] = outcome
        if isinstance(outcome, Failed):
            self.say(f"{job} failed: {outcome.why}")
        if self.live:
            self.live.update(self.table())
        elif not isinstance(outcome, Failed):
            self.say(f"{job}  {self.line(job, outcome)}")

    def line(self, job: Job, outcome: dict) -> str:
        """What is said of a result without a terminal."""
        metrics = outcome["metrics"]
        shown = "  ".join(f"{m.name} {metrics[m.name]:.4g}" for m in job.study.metrics if m.name in metrics)
        return outcome["flags"].get("diverged") or shown or "done"

    def say(self, text: str) -> None:
        """Prints a line, above the table if there is one."""
        minutes = (time.monotonic() - self.began) / 60
        line = f"[{minutes:6.1f} min] {len(self.outcomes)}/{len(self.jobs)} {text}"
        if self.live:
            self.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def table(self) -> Table:
        return _of_cells(*self.studies.values(), self._units()) if len(self.studies) == 1 else self._of_studies()

    def _units(self) -> dict[Unit, Outcome]:
        return {self.jobs[name].unit: outcome for name, outcome in self.outcomes.items()}

    def _of_studies(self) -> Table:
        table = Table(title=f"{len(self.outcomes)} of {len(self.jobs)} units")
        for column in ("study", "done", "failed", "core-seconds"):
            table.add_column(column, justify="left" if column == "study" else "right")
        for name in self.studies:
            mine = [outcome for of, outcome in self.outcomes.items() if self.jobs[of].study.name == name]
            results = [outcome for outcome in mine if not isinstance(outcome, Failed)]
            total = sum(job.study.name == name for job in self.jobs.values())
            failed = len(mine) - len(results)
            table.add_row(name, f"{len(results)}/{total}", str(failed or ""), f"{core_seconds(results):,.0f}")
        return table


def core_seconds(results: Sequence[dict]) -> float:
    """The processor time that the units took."""
    return math.fsum(result["ledger"].get("core_seconds", 0.0) for result in results)


def _of_cells(study: Study, outcomes: dict[Unit, Outcome]) -> Table:
    """A row per cell, with the first metric that it has for each seed."""
    table = Table(title=f"{study.title}: {len(outcomes)} of {len(study.cells) * study.seeds}")
    table.add_column("cell")
    table.add_column("metric")
    for seed in range(study.seeds):
        table.add_column(f"seed {seed}", justify="right")
    for name, cell in study.cells.items():
        mine = [outcomes.get((name, seed)) for seed in range(study.seeds)]
        metrics = [None if r is None else {} if isinstance(r, Failed) else r["metrics"] for r in mine]
        metric = next((m for m in study.metrics if any(m.name in of for of in metrics if of)), None)
        show = lambda of, metric=metric: f"{of[metric.name]:.4g}" if metric and metric.name in of else "none"
        values = ["" if of is None else show(of) for of in metrics]
        table.add_row(cell.label, metric.label if metric else "", *values)
    return table
