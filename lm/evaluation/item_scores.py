"""Scores a saved model on the items of a file, for `python -m lm.evaluate --items=FILE`."""

from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from lm import config, saved
from lm.errors import UserError
from lm.evaluation import items
from lm.evaluation.span_scores import check_head, notes, output, write
from lm.models.transformer import Transformer


def evaluate(
    folder: str, run: config.Run | None = None, *, path: str, batch_size: int, out: str | None = None
) -> dict[str, Any]:
    """Scores the model in `folder` on the items in `path`, writes the result to `out` (default: FOLDER/item_scores.json) and
    returns it. The objective is that of `run`, by default of the run that trained the model.
    """
    asked, target, source = items.read(path), output(out), saved.open(folder)
    run = run or source.run
    if run is None:
        raise UserError(f"--from={folder} is a converted model; add --config=FILE with the objective that it was trained with")
    check_head(source)
    params = source.params(device=jax.local_devices()[0])
    found = items.score(Transformer(source.model), params, run.objective, source.tokenizer(), asked, batch_size=batch_size)
    result = {
        "architecture": source.model.architecture,
        "objective": config.kind_of(type(run.objective)),
        "items": path,
        "count": len(asked),
        "metrics": {name: float(values.mean()) for name, values in found.values().items()},
        "normalised": found.normalised,
        "note": found.note,
        "far": found.far,
        "per_item": {name: [round(float(x), 4) for x in getattr(found, name)] for name in ("exact", "hits", "tokens", "nats")},
    }
    write(result, source, target, default="item_scores.json")
    return result


def show(result: dict[str, Any]) -> None:
    """Prints the scores as a table."""
    table = Table(title=f"{result['architecture']}, {result['objective']}: {result['count']} items of {result['items']}")
    for name in ("exact", "accuracy of tokens", "nats an item", "probability", "note"):
        table.add_column(name, justify="left" if name == "note" else "right")
    exact, accuracy, nats = (result["metrics"][name] for name in ("exact", "accuracy", "nats"))
    flag = "yes" if result["normalised"] else "NO"
    table.add_row(f"{exact:.3f}", f"{accuracy:.3f}", f"{nats:.4f}", flag, notes(result))
    Console().print(table)
