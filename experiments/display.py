"""The live progress table of a study, and the table of its cells before they are trained."""

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from experiments.study import Study


class Board:
    """A table of cells and seeds that is filled in as units finish; without a terminal, a line for each unit."""

    def __init__(self, study: Study, units: list[tuple[str, int]], workdir: Path):
        self.study, self.units, self.workdir = study, units, workdir
        self.results: dict[tuple[str, int], dict[str, Any]] = {}
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

    def done(self, unit: tuple[str, int], result: dict[str, Any]) -> None:
        self.results[unit] = result
        if self.live:
            self.live.update(self.table())
            return
        shown = "  ".join(
            f"{m.name} {result['metrics'][m.name]:.4g}" for m in self.study.metrics if m.name in result["metrics"]
        )
        minutes = (time.monotonic() - self.began) / 60
        line = f"[{minutes:6.1f} min] {len(self.results)}/{len(self.units)} {unit[0]} seed {unit[1]}  {shown}"
        print(line, file=sys.stderr, flush=True)

    def table(self) -> Table:
        """A row per cell, with the first metric that it has for each seed."""
        study = self.study
        table = Table(title=f"{study.title}: {len(self.results)} of {len(self.units)} in {self.workdir}")
        table.add_column("cell")
        table.add_column("metric")
        for seed in range(study.seeds):
            table.add_column(f"seed {seed}", justify="right")
        for name, cell in study.cells.items():
            mine = {seed: self.results.get((name, seed)) for seed in range(study.seeds)}
            found = [r["metrics"] for r in mine.values() if r]
            metric = next((m for m in study.metrics if any(m.name in of for of in found)), None)
            show = lambda of, metric=metric: f"{of[metric.name]:.4g}" if metric and metric.name in of else "none"
            values = ["" if r is None else show(r["metrics"]) for r in mine.values()]
            table.add_row(cell.label, metric.label if metric else "", *values)
        return table


def plan_table(study: Study, workdir: Path) -> str:
    """A Markdown table of the cells' sizes, steps and costs, computed without training."""
    from experiments.run import counts, planned, training_rows
    from lm.recipes import task
    from lm.training.ledger import of_a_row

    lines = [
        "| cell | parameters | besides embeddings | steps | model FLOPs | tokens seen | tokens with loss |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, cell in study.cells.items():
        run = planned(study, (name, 0), workdir)
        rows = training_rows(run)
        size, cost = counts(run, rows), of_a_row(task(run), rows).of(run.train.steps * run.train.batch_size)
        lines.append(
            f"| {cell.label} | {size['parameters']:,} | {size['parameters_without_embeddings']:,} | {run.train.steps:,} | "
            f"{cost['model_flops']:.3g} | {cost['tokens_seen']:,.0f} | {cost['tokens_with_loss']:,.0f} |"
        )
    return "\n".join(lines)
