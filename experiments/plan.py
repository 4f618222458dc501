"""What a study will do, before it does it: the runs of its units, their sizes and costs, and what it can detect."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.study import Study
from experiments.units import Unit, folder
from lm import config
from lm.errors import UserError


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


def plan_table(study: Study, workdir: Path) -> str:
    """A Markdown table of the cells' sizes, steps and costs, computed without training."""
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
