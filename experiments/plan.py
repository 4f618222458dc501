"""What a study will do, before it does it: the runs of its units, their sizes and costs, and what it can detect."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import experiments
from experiments.power import power_rows
from experiments.study import Results, Study
from experiments.units import Unit, folder
from lm import config
from lm.config import resolve
from lm.errors import UserError

SAMPLE = 256  # rows that costs in a table are estimated from


def training_rows(run: config.Run) -> Any:
    """The `Rows` that a run trains on."""
    return completed(run)[1]


def completed(run: config.Run) -> tuple[config.Run, Any]:
    """The run with what its recipe fills in, such as a head for the classes of its data; and the `Rows` that it trains on."""
    from lm.recipes import recipe

    kind = recipe(run)
    run = kind.complete(run, None)
    return run, kind.rows(run, kind.data(run, progress=sys.stderr.isatty()))["train"]


def counts(run: config.Run, rows: Any) -> dict[str, int]:
    """{"parameters", "parameters_without_embeddings"} of everything that a run trains, by `eval_shape`."""
    import jax
    from flax import linen as nn

    from lm.recipes import recipe, task
    from lm.training import ledger

    batch = jax.tree.map(lambda x: x[None], recipe(run).row(rows))
    params = jax.eval_shape(lambda key: task(run).init(key, batch), jax.random.key(0))
    return ledger.parameters(nn.unbox(params))


def planned(study: Study, unit: Unit, workdir: Path, *, sample: int | None = None) -> config.Run:
    """The run of a unit: the cell's, with the seed, the steps that match the budget, and the runs that it starts from or reads.
    A cell with `share=0` has no steps: its run saves and evaluates the first parameters.

    `sample`: see `ledger.steps_for`. Raises UserError if the study matches parameters and the cell's are more than 1 % off, and
    for items that the cell's model cannot be asked.
    """
    from lm.evaluation import items
    from lm.recipes import task
    from lm.training import ledger

    cell, seed = study.cells[unit[0]], unit[1]
    place = lambda name: str(folder(workdir, (name, seed)) / "run")
    start = place(cell.start) if cell.start else None
    run = replace(cell.run, train=replace(cell.run.train, seed=seed, init_from=start, init_map=cell.init_map))
    run = resolve.replaced(run, {key: place(name) for key, name in cell.reads.items()})
    for name, path in cell.items.items():
        items.check(run.model.architecture, run.objective, items.read(path, name=f"items.{name}"))
    if study.match == "params":
        count = counts(*completed(run))["parameters"]
        if abs(count - study.budget) > 0.01 * study.budget:
            raise UserError(f"{unit[0]} of {study.name} has {count:,} parameters; the study needs {study.budget:,.0f}")
    if cell.share == 0:
        return replace(run, train=replace(run.train, steps=0))
    if study.match in (None, "params"):
        return run
    budget, tried = study.budget * cell.share, set[int]()
    while run.train.steps not in tried:  # paced rows depend on how many steps there are
        tried.add(run.train.steps)
        whole, rows = completed(run)
        steps = ledger.steps_for(task(whole), rows, run.train.batch_size, study.match, budget, sample=sample)
        run = replace(run, train=replace(run.train, steps=steps))
        if not (hasattr(rows, "total") and rows.objective.paced):
            break
    return run


def plan_table(study: Study, workdir: Path) -> str:
    """A Markdown table of the cells' sizes, steps and costs, without training. Costs are estimates from SAMPLE rows; those of
    a recipe that goes on from another cell's model are not known before it is trained, since the recipe reads its tokenizer."""
    from lm.recipes import task
    from lm.training.ledger import of_a_row

    lines = [
        "| cell | parameters | besides embeddings | steps | model FLOPs | tokens seen | tokens with loss |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    sizes: dict[str, dict[str, int]] = {}  # cells have the same few models
    for name, cell in study.cells.items():
        if cell.start and not isinstance(cell.run.recipe, config.Pretrain):
            lines.append(
                f"| {cell.label} | as of {study.cells[_first(study, name)].label} | | {cell.run.train.steps:,} | | | |"
            )
            continue
        try:
            run, rows = completed(planned(study, (name, 0), workdir, sample=SAMPLE))
        except UserError:
            if not cell.reads:
                raise
            read = " and ".join(study.cells[other].label for other in cell.reads.values())
            lines.append(f"| {cell.label} | known once there is: {read} | | {cell.run.train.steps:,} | | | |")
            continue
        key = repr((run.model, run.objective))
        size = sizes[key] if key in sizes else sizes.setdefault(key, counts(run, rows))
        cost = of_a_row(task(run), rows, SAMPLE).of(run.train.steps * run.train.batch_size)
        lines.append(
            f"| {cell.label} | {size['parameters']:,} | {size['parameters_without_embeddings']:,} | {run.train.steps:,} | "
            f"{cost['model_flops']:.3g} | {cost['tokens_seen']:,.0f} | {cost['tokens_with_loss']:,.0f} |"
        )
    return "\n".join(lines)


def _first(study: Study, name: str) -> str:
    """The cell that the chain of cells up to this one begins with."""
    while start := study.cells[name].start:
        name = start
    return name


def power_table(study: Study, results: Results) -> str:
    """What each relation of the Holm family can find with the study's seeds, by the variance of these earlier results."""
    if not study.relations:
        return "No relations to test."
    rows = power_rows(study, results)
    if all(row.sd is None for row in rows):
        return f"No earlier results, so no power: run a pilot, `python -m experiments.run {study.name} --set seeds=2`."
    lines = [
        f"What {study.seeds} seeds can find, by the variance of earlier results:\n",
        "| relation | metric | standard deviation of a run | detectable with 80 % power | power at the margin | variance of |",
        "|---|---|---:|---:|---:|---|",
    ]
    figure = lambda value, form=".3g": "" if value is None else f"{value:{form}}"
    for row in rows:
        power = figure(row.power_at_margin, ".0%")
        lines.append(f"| {row.relation} | {row.metric} | {figure(row.sd)} | {figure(row.mde)} | {power} | {row.source} |")
    return "\n".join(lines)


def earlier(study: Study, workdir: Path) -> Results:
    """The results in `workdir`, else those kept beside the study, of whatever settings; {} if there are none."""
    found: Results = {}
    for path in sorted(workdir.glob("*/seed*/result.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["cell"], {})[int(result["seed"])] = result
    kept = [path for root in experiments.__path__ if (path := Path(root, study.name, "results.json")).exists()]
    if not found and kept:
        found = {cell: {int(k): r for k, r in seeds.items()} for cell, seeds in json.loads(kept[0].read_text()).items()}
    return {cell: seeds for cell, seeds in found.items() if cell in study.labels}
