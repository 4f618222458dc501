"""The live progress table of a sweep."""

from rich.table import Table

from experiments.display import Board
from experiments.sweep.trials import Trial
from experiments.units import Failed, Outcome


class TrialBoard(Board):
    """A row for each trial, with its figure at each rung and at the end."""

    def line(self, job: Trial, outcome: dict) -> str:
        return f"{job.study.label(job.number)}  {outcome['flags'].get('left') or super().line(job, outcome)}"

    def table(self) -> Table:
        jobs: list[Trial] = list(self.jobs.values())
        sweep = jobs[0].study
        table = Table(title=f"{sweep.metrics[0].label}: {len(self.outcomes)} of {len(jobs)}")
        table.add_column("trial")
        last = len(sweep.rungs)
        for rung in range(last + 1):
            table.add_column("end" if rung == last else f"step {sweep.rungs[rung]:,}", justify="right")
        for number in range(len(sweep.trials)):
            mine = (Trial(sweep, jobs[0].workdir, number, rung) for rung in range(last + 1))
            found = (self.outcomes.get(str(trial)) for trial in mine)
            table.add_row(sweep.label(number), *(shown(outcome, sweep.metric) for outcome in found))
        return table


def shown(outcome: Outcome | None, metric: str) -> str:
    """A cell of the table."""
    if outcome is None:
        return ""
    if isinstance(outcome, Failed):
        return "failed"
    if (value := outcome["metrics"].get(metric)) is not None:
        return f"{value:.4f}"
    return "diverged" if "diverged" in outcome["flags"] else "-"
