"""What is trained and how it is judged; recipes make it from a run. The step, the loop and the ledger know nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import jax

from lm import config
from lm.models.transformer import Transformer
from lm.objectives import Lengths
from lm.training.step import Loss, Updates
from lm.types import WeightedMean

Init = Callable[[jax.Array, Any], Any]  # (key, batch) -> arrays that carry logical axis names


@dataclass(frozen=True)
class Frozen:
    """Arrays that the loss reads and no step changes: a teacher, a reference model, the base under an adapter.

    `init` says shapes, dtypes and logical axes and is never executed. `load` returns the arrays themselves, given abstract
    arrays with the shardings that they shall have. `start`: they are the task's own parameters as `train.init_from` has them,
    without what begins from the seed; under adapters that is the base, which then is the only copy.
    """

    init: Init
    load: Callable[[Any], Any]
    start: bool = False


@dataclass(frozen=True)
class Adapter:
    """What stands between a task with adapters (`lm.training.adapted`) and the task itself."""

    lora: config.Lora
    inner: "Task"
    whole: Callable[[Any, Any], Any]  # (params, frozen) -> the inner task's parameters, a matrix beside its adapter
    plain: Callable[[Any, Any], Any]  # the same as arrays, which have the adapters added to them
    read: Callable[[Any], Any]  # frozen -> what the inner task reads of it


@dataclass(frozen=True)
class Task:
    """The parameters of a run, their loss and scores, and what these cost.

    `models` are all models that take part, by their path in the config. `passes(lengths)` lists what a row costs: each model
    that reads it, and the number of positions at which that model computes logits (None: all of its own, see `lm.flops`).
    """

    models: dict[str, config.Model]
    init: Init
    loss: Loss  # (params, frozen, batch, rngs=...) -> the loss, and means that are logged beside it
    scores: Callable[[Any, Any, Any], dict[str, WeightedMean]]  # (params, frozen, batch): held-out figures
    passes: Callable[[Lengths], list[tuple[config.Model, int | None]]]
    writer: Callable[[Any, Any], tuple[Transformer, Any]]  # (params, frozen) -> the model that writes samples, its parameters
    writes: str = "model"  # that model's path in the config
    frozen: Frozen | None = None
    fresh: tuple[str, ...] = ()  # top-level names of parameters that start from the seed even with train.init_from
    beside: tuple[str, ...] = ()  # those beside "model" that do where train.init_from has a single model
    nats: bool = True  # the loss is in nats a token
    asked: Callable[[Any], Any] = methodcaller("tokens_asked")  # batch -> uint32 []: tokens with loss
    # As `passes`, of models that are only read: a teacher's pass has no backward one.
    reads: Callable[[Lengths], list[tuple[config.Model, int | None]]] = lambda lengths: []
    updates: Updates | None = None  # that a step takes; None: one, on the batch itself
    adapter: Adapter | None = None
