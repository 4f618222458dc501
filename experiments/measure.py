"""What is asked of a trained cell: held-out loss, scores on common spans, fine-tunings, and its ledger."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.study import Cell, Measured, Task
from lm import config, recipes, saved
from lm.config import resolve
from lm.data.corpus import cloze
from lm.data.corpus.prepare import prepare
from lm.evaluation import items, spans
from lm.models.transformer import Transformer, abstract_params
from lm.training import jsonl

SPANS = dict(count=256, left=64, span=16, right=32, seed=0)  # the same for every cell of every study
LEDGER = ("model_flops", "tokens_seen", "tokens_with_loss", "raw_bytes", "parameters", "parameters_without_embeddings")


def measure(cell: Cell, run: config.Run, workdir: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """`{"metrics", "items", "flags", "ledger", "curve"}` of a finished run in `workdir`. Each fine-tuning is a run beside it,
    in `<workdir>/../finetune/<task>`; one that is finished is not trained again."""
    parts = [Measured({f"heldout/{name}": value for name, value in summary["heldout"].items()})]
    if cell.scores or cell.items or cell.measure:
        trained_model = saved.open(workdir)
        parts += [*scored(cell, run, trained_model), *([cell.measure(trained_model)] if cell.measure else [])]
    for task in cell.tasks:
        found = fine_tune(task, run, workdir, workdir.parent / "finetune" / task.name)
        cost = found["model_flops"]
        parts.append(Measured({f"{task.name}/{name}": value for name, value in found.items()}, flops=cost))
    rows = jsonl.read(workdir / "metrics.jsonl")
    seconds = trained(rows, summary) * jax.device_count()
    ledger = {name: summary[name] for name in LEDGER} | {"device_seconds": round(seconds, 1)}
    if flops := sum(part.flops for part in parts):
        ledger["finetune_flops"] = flops
    return {
        "metrics": {name: float(value) for part in parts for name, value in part.metrics.items()},
        "items": {name: stored(values) for part in parts for name, values in part.items.items()},
        "flags": {name: flag for part in parts for name, flag in part.flags.items()},
        "ledger": ledger,
        "curve": curve(rows, ledger["model_flops"], summary["step"]),
    }


def scored(cell: Cell, run: config.Run, model: saved.Saved) -> Iterator[Measured]:
    """The cell's `scores` of held-out spans and of its `items`, each metric with a value for each span or item."""
    if not (cell.scores or cell.items):
        return
    network, params, tokenizer = Transformer(run.model), model.params(), model.tokenizer()
    asked: tuple[Any, ...] = (network, params, run.objective, tokenizer)
    if cell.scores:
        chosen = spans.held_out_spans(prepare(run.data, progress=False), **SPANS)
        for kind in cell.scores:
            found = spans.score(*asked, chosen, kind=kind)
            flags = {} if found.normalised else {"bits_per_byte": f"not normalised: {found.note}"}
            yield named(kind, found.values(), flags)
    for name, path in cell.items.items():
        each = items.score(*asked, items.read(path, name=f"items.{name}"))
        yield named(name, each.values(), {} if each.normalised else {"nats": f"not normalised: {each.note}"})


def named(name: str, values: dict[str, np.ndarray], flags: dict[str, str]) -> Measured:
    """Metrics `<name>/<what>` as the means of their values."""
    of_items = {f"{name}/{what}": each for what, each in values.items()}
    means = {what: float(each.mean()) for what, each in of_items.items()}
    return Measured(means, of_items, {f"{name}/{what}": flag for what, flag in flags.items()})


def stored(values: np.ndarray) -> str | list[float]:
    """Values of items for JSON: hits (0 and 1 only) as a string "0110", others to 4 significant digits."""
    if np.isin(values, (0, 1)).all():
        return "".join("1" if value else "0" for value in values)
    return [float(f"{value:.4g}") for value in values]


def fine_tune(task: Task, run: config.Run, start: Path, workdir: Path) -> dict[str, Any]:
    """Trains the run in `start` on a task, unless that is done, and returns its metrics and what it cost."""
    if not (workdir / "summary.json").exists():
        recipes.train(tuning(task, run, start), workdir, quiet=True)
    summary = json.loads((workdir / "summary.json").read_text())
    tuned = resolve.from_json((workdir / "config.json").read_text())
    recipe = recipes.recipe(tuned)
    data = recipe.data(recipe.complete(tuned, workdir), progress=False)
    seconds, test = summary["seconds"], dict(summary["heldout"])
    new = jax.tree.leaves(abstract_params(tuned.model)["head"]) if task.how == "head" else []
    return {
        "test_items": int(test.pop("items")),
        **test,
        "train_loss": [row for row in jsonl.read(workdir / "metrics.jsonl") if "loss" in row][-1]["loss"],
        "train_items": sum(store.num_documents for store in data.train.values()),
        "new_parameters": sum(leaf.size for leaf in new),
        "skipped_steps": summary["skipped_steps"],
        "tokens": summary["tokens_seen"],
        "tokens_with_loss": summary["tokens_with_loss"],
        "model_flops": summary["model_flops"],
        "train_seconds": round(seconds["train"] + seconds.get("data_wait", 0.0), 3),
        "compile_seconds": seconds.get("compile", 0.0),
        "test_seconds": seconds.get("evaluate", 0.0),
    }


def tuning(task: Task, run: config.Run, start: Path) -> config.Run:
    """The run that fine-tunes the one in `start`: by the same seed, saved and tested at its end alone."""
    s = task.settings
    source = config.Source(kind="package", path=task.name, format="labelled")
    if task.name in cloze.MAKERS:
        source = config.Source(kind="cloze", path=task.name, format="pair")
    schedule = config.Schedule("linear", warmup=round(s.warmup * s.steps), final=0.0)
    return config.Run(
        data=config.Data(sources={task.name: source}, cache=run.data.cache),
        optimizer=config.Optimizer(learning_rate=s.learning_rate, schedule=schedule, weight_decay=s.weight_decay),
        train=config.Train(steps=s.steps, batch_size=s.batch_size, seed=run.train.seed, init_from=str(start)),
        checkpoint=config.Checkpoint(every=None, keep=1, keep_best=False),
        evaluate=config.Evaluate(every=None, rows=s.rows),
        log=config.Log(samples=(), tensorboard=False),
        recipe=config.Finetune(how=task.how, length=s.length, answer=s.answer),
    )


def trained(rows: list[dict[str, Any]], summary: dict[str, Any]) -> float:
    """Seconds of training, by the speeds on the way: a run that was stopped and went on knows its last process's alone."""
    fast = [(a, b) for a, b in itertools.pairwise([r for r in rows if "tokens_seen" in r]) if b.get("tokens_per_second")]
    tokens = sum(b["tokens_seen"] - a["tokens_seen"] for a, b in fast)
    spent = sum((b["tokens_seen"] - a["tokens_seen"]) / b["tokens_per_second"] for a, b in fast)
    return summary["tokens_seen"] * spent / tokens if tokens else summary["seconds"]["train"]


def curve(rows: list[dict[str, Any]], flops: float, steps: int) -> list[dict[str, float]]:
    """The held-out losses on the way, with what they had cost."""
    heldout = [row for row in rows if "heldout/loss" in row]
    return [{"step": r["step"], "flops": flops * r["step"] / steps, "loss": r["heldout/loss"]} for r in heldout]
