"""The compute ledger of a run: what it costs and reads, so that runs can be compared at equal cost.

Counted over rows that the run trains on: padding costs nothing here, a causal query pays for the keys it sees, and logits
for the places that are asked about. (What a device spends on padding shows in its seconds.) `steps_for` adds up the very
rows of all its steps. What `summary.json` says of FLOPs and bytes is the average of a run's first SAMPLE rows times its
rows; its tokens are counted in the step, every one.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from lm import flops
from lm.errors import UserError
from lm.training.task import Task

SAMPLE = 1024  # rows that the averages are taken over, at most


@dataclass(frozen=True)
class Ledger:
    """Of a row, on average."""

    flops: float  # model FLOPs, forward and backward
    seen: float  # tokens that a stack reads
    loss_tokens: float  # places that the loss is over; of two models, the second's
    raw_bytes: float  # UTF-8 bytes of text in its window

    def of(self, rows: int) -> dict[str, float]:
        """The totals of so many rows, by the names of `summary.json`."""
        names = {"model_flops": self.flops, "tokens_seen": self.seen, "tokens_with_loss": self.loss_tokens}
        return {name: value * rows for name, value in (names | {"raw_bytes": self.raw_bytes}).items()}


def of_a_row(task: Task, rows: Any, count: int = SAMPLE, *, first: int = 0) -> Ledger:
    """Means over rows `first` to `first + count` of a run (`lm.data.rows.Rows`, or others like them)."""
    example = rows.rows(np.arange(first, first + count))
    # A pass without positions of its own computes logits at those that are asked about, or everywhere where only some are.
    passes = [(m, p is None and example.where is not None) for m, p in task.passes(rows.lengths)]
    costs = [flops.of_rows(m, example, everywhere=everywhere) for m, everywhere in passes]
    return Ledger(
        flops=sum(cost.train for cost in costs) / count,
        seen=int(example.tokens_read()) / count,
        loss_tokens=int(task.asked(example)) / count,
        raw_bytes=rows.bytes_a_row,
    )


def left_out(rows: Any, count: int = 128) -> float:
    """The share of the text that no row has, from `count` rows spread over all: see `Rows.left_out`."""
    return round(rows.left_out(np.linspace(0, rows.count - 1, min(rows.count, count)).astype(np.int64)), 6)


def steps_for(task: Task, rows: Any, size: int, what: Literal["flops", "seen", "loss_tokens"], budget: float) -> int:
    """The number of steps of `size` rows that comes nearest to a budget, by adding up these rows; UserError if that is over 1 %
    off."""
    spent, a_step, steps = 0.0, 0.0, 0
    while spent < budget:
        a_step = getattr(of_a_row(task, rows, size, first=steps * size), what) * size
        spent, steps = spent + a_step, steps + 1
    if spent - budget > a_step / 2 and steps > 1:
        spent, steps = spent - a_step, steps - 1
    if abs(spent - budget) > 0.01 * budget:
        raise UserError(f"{steps} steps of {a_step:.3g} {what} miss the budget of {budget:.3g} by over 1 %; raise it")
    return steps


def parameters(params: Any) -> dict[str, int]:
    """How many, and how many besides the tables that tokens, positions and types are looked up in."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    named = [(jax.tree_util.keystr(path, simple=True, separator="/").split("/"), x.size) for path, x in flat]
    total = sum(size for _, size in named)
    tables = sum(size for path, size in named if path[-1] == "embedding" and "embed" in path)
    return {"parameters": total, "parameters_without_embeddings": total - tables}
