"""What is asked of a trained cell: held-out loss, scores on common spans, fine-tunings, and its ledger."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.finetune import fine_tune
from experiments.study import Cell, Measured
from lm import config, saved
from lm.data.corpus.prepare import prepare
from lm.evaluation import items, spans
from lm.models.transformer import Transformer
from lm.training import jsonl

SPANS = dict(count=256, left=64, span=16, right=32, seed=0)  # the same for every cell of every study
LEDGER = ("model_flops", "tokens_seen", "tokens_with_loss", "raw_bytes", "parameters", "parameters_without_embeddings")


def measure(cell: Cell, run: config.Run, workdir: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """`{"metrics", "items", "nested", "flags", "ledger", "curve"}` of a finished run in `workdir`. Its fine-tunings are runs in
    `<workdir>/../finetune/<task>`."""
    parts = [Measured({f"heldout/{name}": value for name, value in summary["heldout"].items()})]
    if cell.scores or cell.items or cell.measure:
        trained_model = saved.open(workdir)
        parts += [*scored(cell, run, trained_model), *([cell.measure(trained_model)] if cell.measure else [])]
    for task in cell.tasks:
        parts.append(fine_tune(task, run, workdir, workdir.parent / "finetune" / task.name))
    rows = jsonl.read(workdir / "metrics.jsonl")
    seconds = trained(rows, summary) * jax.device_count()
    ledger = {name: summary[name] for name in LEDGER} | {"device_seconds": round(seconds, 1)}
    if flops := sum(part.flops for part in parts):
        ledger["finetune_flops"] = flops
    return {
        "metrics": {name: float(value) for part in parts for name, value in part.metrics.items()},
        "items": {name: stored(values) for part in parts for name, values in part.items.items()},
        "nested": {name: values for part in parts for name, values in part.nested.items()},
        "flags": {name: flag for part in parts for name, flag in part.flags.items()},
        "ledger": ledger,
        "curve": curve(rows, ledger["model_flops"], summary["step"]),
    }


def scored(cell: Cell, run: config.Run, model: saved.Saved) -> Iterator[Measured]:
    """The cell's `scores` of held-out spans and of its `items`, each metric with a value for each span or item."""
    if not (cell.scores or cell.items):
        return
    network, tokenizer = Transformer(run.model), model.tokenizer()
    params = model.params(device=jax.local_devices()[0])
    asked: tuple[Any, ...] = (network, params, run.objective, tokenizer)
    if cell.scores:
        chosen = spans.held_out_spans(prepare(run.data, progress=False), **SPANS)
        for kind in cell.scores:
            found = spans.score(*asked, chosen, kind=kind)
            yield named(kind, found.values(), flags(found, "bits_per_byte", "accuracy"))
    for name, path in cell.items.items():
        each = items.score(*asked, items.read(path, name=f"items.{name}"))
        yield named(name, each.values(), flags(each, "nats", "accuracy", "exact"))


def flags(found: spans.Score | items.ItemScores, nats: str, *hits: str) -> dict[str, str]:
    """metric -> what a reader must know of it: that its nats are of no probability, that it is far from training."""
    unnormalised = "" if found.normalised else f"not normalised: {found.note}"
    said = {nats: "; ".join(filter(None, (unnormalised, found.far)))} | dict.fromkeys(hits, found.far)
    return {name: text for name, text in said.items() if text}


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
