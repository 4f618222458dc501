"""Fine-tunings of a cell on a task: settings chosen on training records that are set apart, then several seeds, tested."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from experiments.study import Finetune, Measured, Task
from lm import config, recipes, saved, sharding
from lm.config import resolve
from lm.data.corpus import cloze
from lm.errors import Diverged
from lm.models.transformer import abstract_params
from lm.recipes.finetune import FineTuning
from lm.training import jsonl

SEEDS = 1000  # seeds of a pretrained model's fine-tunings: 1000 times its own, and those after it
CHOICE = SEEDS - 1  # the seed of those that settings are chosen by


def fine_tune(task: Task, run: config.Run, start: Path, folder: Path) -> Measured:
    """The task's metrics `<task>/<name>`, means over `settings.seeds` fine-tunings of the run in `start`, and their values by
    record. Each fine-tuning is a run in `folder`, `seed<k>` or `choice/<rate>_<steps>`; finished ones are not trained again.

    Fine-tunings differ in the order of the data, in a new head and in the records that they learn from. Learning rate and steps
    are chosen for each pretrained model, never on the records that are tested.
    """
    s, before = choose(task, run, start, folder / "choice")
    found, values, flops = [], [], before
    for k in range(s.seeds):
        workdir = folder / f"seed{k}"
        train(tuning(task, s, run, start, seed=SEEDS * run.train.seed + k), workdir)
        found.append(facts(task, workdir))
        values.append(tested(workdir))
        flops += found[-1]["model_flops"]
    chosen = {"learning_rate": s.learning_rate, "steps": s.steps}
    metrics = {name: float(np.mean([each[name] for each in found])) for name in found[0]} | chosen
    return Measured(
        {f"{task.name}/{name}": value for name, value in metrics.items()},
        {f"{task.name}/{name}": np.mean([each[name] for each in values], axis=0) for name in values[0]},
        flops=flops,
        nested={f"{task.name}/{name}": [float(each[name].mean()) for each in values] for name in values[0]},
    )


def choose(task: Task, run: config.Run, start: Path, folder: Path) -> tuple[Finetune, float]:
    """The task's settings with the learning rate and steps of `grid` that are best on a development split, and the FLOPs that
    it took to know: the most accurate, and of equals the one with the least loss. A setting that diverges is the worst."""
    s, flops, best = task.settings, 0.0, (-math.inf, -math.inf)
    for rate, steps in s.grid if len(s.grid) > 1 else ():
        tried = replace(task.settings, learning_rate=rate, steps=steps)
        workdir = folder / f"{rate:g}_{steps}"
        try:
            train(tuning(task, tried, run, start, seed=SEEDS * run.train.seed + CHOICE, develop=s.rows), workdir)
        except Diverged:
            continue
        summary = json.loads((workdir / "summary.json").read_text())
        flops, heldout = flops + summary["model_flops"], summary["heldout"]
        reached = (heldout.get("accuracy", heldout.get("exact", 0.0)), -heldout["nll"])
        s, best = (tried, reached) if reached > best else (s, best)
    if len(s.grid) == 1:
        s = replace(s, learning_rate=s.grid[0][0], steps=s.grid[0][1])
    elif s.grid and best[0] == -math.inf:
        raise Diverged(f"every setting of the grid of task '{task.name}' diverged")
    return s, flops


def tuning(task: Task, s: Finetune, run: config.Run, start: Path, *, seed: int, develop: int | None = None) -> config.Run:
    """The run that fine-tunes the one in `start`, saved and tested at its end alone: on the test records, or on `develop`
    training records that it does not learn from."""
    source = config.Source(kind="package", path=task.name, format="labelled")
    if task.name in cloze.MAKERS:
        source = config.Source(kind="cloze", path=task.name, format="pair")
    schedule = config.Schedule("linear", warmup=round(s.warmup * s.steps), final=0.0)
    recipe = config.Finetune(task.how, length=s.length, answer=s.answer, labels=s.labels, develop=develop, compare=s.compare)
    return config.Run(
        data=task.data or config.Data(sources={task.name: source}, cache=run.data.cache),
        optimizer=config.Optimizer(learning_rate=s.learning_rate, schedule=schedule, weight_decay=s.weight_decay),
        train=config.Train(steps=s.steps, batch_size=s.batch_size, seed=seed, init_from=str(start)),
        checkpoint=config.Checkpoint(every=None, keep=1, keep_best=False),
        evaluate=config.Evaluate(every=None, rows=s.rows),
        log=config.Log(samples=(), tensorboard=False),
        recipe=recipe,
    )


def train(run: config.Run, workdir: Path) -> None:
    """Trains a run, or goes on with it, unless it is finished."""
    if not (workdir / "summary.json").exists():
        recipes.train(run, workdir, quiet=True)


def tested(workdir: Path) -> dict[str, np.ndarray]:
    """The metrics of each test record under a finished fine-tuning, float64 [N]."""
    tuned, recipe = saved.open(workdir), FineTuning()
    assert tuned.run is not None
    run = recipe.complete(tuned.run, tuned.folder)
    data = recipe.data(run, progress=False)
    evaluator = recipe.held_out(run, data, recipe.rows(run, data)["holdout"], sharding.make_mesh(run.mesh))
    return evaluator.values(tuned.params(device=jax.devices()[0]))


def facts(task: Task, workdir: Path) -> dict[str, float]:
    """The test figures of a finished fine-tuning, what it learned from and what it cost."""
    summary = json.loads((workdir / "summary.json").read_text())
    tuned = resolve.from_json((workdir / "config.json").read_text())
    seconds, test = summary["seconds"], dict(summary["heldout"])
    new = jax.tree.leaves(abstract_params(tuned.model)["head"]) if task.how == "head" else []
    return {
        "test_items": int(test.pop("items")),
        **test,
        "train_loss": [row for row in jsonl.read(workdir / "metrics.jsonl") if "loss" in row][-1]["loss"],
        "train_items": sum(of["records"] for of in summary["records"]["train"].values()),
        "new_parameters": sum(leaf.size for leaf in new),
        "skipped_steps": summary["skipped_steps"],
        "tokens": summary["tokens_seen"],
        "tokens_with_loss": summary["tokens_with_loss"],
        "model_flops": summary["model_flops"],
        "train_seconds": round(seconds["train"] + seconds.get("data_wait", 0.0), 3),
        "compile_seconds": seconds.get("compile", 0.0),
        "test_seconds": seconds.get("evaluate", 0.0),
    }
