"""The compute ledger of a run: its FLOPs, tokens and bytes, so that runs can be compared at equal cost.

FLOPs are counted from the rows that the run trains on: padding is free, a causal query costs only the keys that it sees, and
logits only the positions that are asked about. (What a device spends on padding shows in its seconds.) `steps_for` adds up
the rows of all steps, or estimates the sum. In `summary.json` tokens are counted exactly, in the step; FLOPs are those of a
token of SAMPLE rows times the tokens, and bytes the mean of these rows times the number of rows.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from lm import flops
from lm.errors import UserError
from lm.training.task import Task

SAMPLE = 1024  # rows that means are taken over, at most
FEW = 64  # before a run has read any


@dataclass(frozen=True)
class Ledger:
    """Means per row."""

    flops: float  # model FLOPs, forward and backward
    seen: float  # tokens that models read
    loss_tokens: float  # tokens with loss
    raw_bytes: float  # UTF-8 bytes of the text that it is made of

    def of(self, rows: int) -> dict[str, float]:
        """The totals of `rows` rows, with the names of `summary.json`."""
        names = {"model_flops": self.flops, "tokens_seen": self.seen, "tokens_with_loss": self.loss_tokens}
        return {name: value * rows for name, value in (names | {"raw_bytes": self.raw_bytes}).items()}


def of_a_row(task: Task, rows: Any, count: int = SAMPLE, *, first: int | None = None) -> Ledger:
    """Means over rows `first` to `first + count - 1` of `rows` (`lm.data.rows.Rows` or others with its methods). By default
    these are the first ones, or where rows change in the course of the training, rows spread over it."""
    changing = first is None and getattr(rows, "total", 0) > 0 and rows.objective.paced
    index = np.linspace(0, rows.total - 1, count).astype(np.int64) if changing else (first or 0) + np.arange(count)
    batch = rows.rows(index)
    # A pass whose number of positions is None has logits at all positions, also where the example asks only about some.
    # Of a batch of several Examples each pass reads one.
    lora = None if task.adapter is None else task.adapter.lora
    each = getattr(batch, "examples", (batch,))
    of_one = lambda m, p, e: flops.of_rows(m, e, everywhere=p is None and e.where is not None, lora=lora)
    cost = lambda m, p: sum((of_one(m, p, e) for e in each), flops.Flops())
    trained = sum(cost(m, p).train for m, p in task.passes(rows.lengths))
    return Ledger(
        flops=(trained + sum(cost(m, p).forward for m, p in task.reads(rows.lengths))) / count / len(each),
        seen=int(batch.tokens_read()) / count,
        loss_tokens=int(task.asked(batch)) / count,
        raw_bytes=rows.bytes_a_row,
    )


def left_out(rows: Any, count: int = 128) -> float:
    """The share of the text that is in no row (`Rows.left_out`), estimated from `count` rows spread evenly over the split."""
    return round(rows.left_out(np.linspace(0, rows.count - 1, min(rows.count, count)).astype(np.int64)), 6)


def steps_for(
    task: Task, rows: Any, size: int, what: Literal["flops", "seen", "loss_tokens"], budget: float, *, sample: int | None = None
) -> int:
    """The number of steps of `size` rows whose sum of `what` is nearest to `budget`. UserError if it is over 1 % off.

    With `sample` the cost of a step is a mean over so many rows: much faster, and off by some steps in a thousand.
    """
    if sample:
        a_step = getattr(of_a_row(task, rows, sample), what) * size
        steps = max(1, round(budget / a_step))
        spent = steps * a_step
    else:
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
    """The number of parameters, with and without the embedding tables of tokens, positions and types."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    named = [(jax.tree_util.keystr(path, simple=True, separator="/").split("/"), x.size) for path, x in flat]
    total = sum(size for _, size in named)
    tables = sum(size for path, size in named if path[-1] == "embedding" and "embed" in path)
    return {"parameters": total, "parameters_without_embeddings": total - tables}
