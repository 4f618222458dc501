"""Replaced-token detection (ELECTRA, arXiv 2003.10555) as a task: a generator fills in masks, and the model finds what it
replaced. Both are trained at once, and share the tables that have the same shape in both.

Parameters are {"model", "generator"}, where the generator's lack the shared tables, and with `predict="all"` also "copy", the
gate of All-Tokens MLM. The losses are in `lm.losses.replaced`, the settings in `lm.config.ReplacedTokens`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm import config
from lm.errors import UserError
from lm.losses import replaced
from lm.models.layers import Projection
from lm.models.transformer import Transformer, head_params
from lm.training.task import Task
from lm.types import Example


def task(run: config.Run) -> Task:
    c: Any = run.objective
    _check_pair(run.model, c)
    pair = Pair(run.model, c)
    settings: dict[str, Any] = dict(predict=c.predict, rate=c.rate, weight=c.weight)
    settings |= dict(head_params=pair.head_params, vocab_size=run.model.vocab_size)
    everywhere = c.predict in ("replaced", "all")  # the model answers for every token, not only for the masked ones
    loss = partial(replaced.loss, apply=pair.apply, z_loss=run.train.z_loss, **settings)
    return Task(
        models={"model": run.model, "objective.generator": c.generator},
        init=pair.init,
        loss=lambda params, frozen, batch, rngs: (loss(complete(params), example=batch, rngs=rngs), {}),
        scores=lambda params, frozen, batch: replaced.scores(complete(params), pair.apply, batch, **settings),
        passes=lambda n: [(c.generator, n.predicted), (run.model, None if everywhere else n.predicted)],
        writer=lambda params, frozen: (pair.generator, complete(params)["generator"]),
        writes="objective.generator",
        nats=False,
        asked=lambda batch: batch.tokens_read() if everywhere else batch.tokens_asked(),
    )


class Pair:
    """The two networks, and the gate if tokens may be copied."""

    def __init__(self, model: config.Model, c: config.ReplacedTokens) -> None:
        self.model, self.generator = Transformer(model), Transformer(c.generator)
        self.gate = Projection((1,), ("embed", "outputs"), True, model.init_std, model.dtype) if c.predict == "all" else None
        self.apply: dict[str, Any] = {"generator": self.generator.apply, "model": self._apply_model}

    def init(self, key: jax.Array, example: Example) -> Any:
        keys = jax.random.split(key, 3)
        params = {
            name: getattr(self, name).init(k, example)["params"] for name, k in zip(("model", "generator"), keys, strict=False)
        }
        params["generator"] = without_shared_tables(params["generator"], params["model"])
        if self.gate is not None:
            params["copy"] = self.gate.init(keys[2], jnp.zeros((1, self.model.config.width)))["params"]
        return params

    def _apply_model(self, variables: Any, *args: Any, method: str, **kwargs: Any) -> Any:
        outputs = self.model.apply(variables, *args, method=method, **kwargs)
        if self.gate is not None and method == "logits":
            return outputs, self.gate.apply({"params": variables["params"]["copy"]}, *args)
        return outputs

    @staticmethod
    def head_params(params: Any) -> Any:
        """What `apply(..., method="logits")` reads of a network's parameters."""
        return head_params(params) | {name: tree for name, tree in params.items() if name == "copy"}


def complete(params: Any) -> dict[str, Any]:
    """{"generator", "model"}: the parameters of each network with all its tables, and the gate beside the model's."""
    generator = with_shared_tables(params["generator"], params["model"])
    return {"generator": generator, "model": params["model"] | {k: v for k, v in params.items() if k == "copy"}}


def without_shared_tables(params: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`params` without the tables of tokens, positions or types that `other` has in the same shape."""
    shapes = lambda table: [x.shape for x in jax.tree.leaves(table)]
    theirs = _tables(other)
    shared = [name for name, table in _tables(params).items() if name in theirs and shapes(table) == shapes(theirs[name])]
    embed = {name: part for name, part in params["embed"].items() if name not in shared}
    return {name: part for name, part in (params | {"embed": embed}).items() if part}


def with_shared_tables(params: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `without_shared_tables`: the missing tables are those of `other`."""
    return params | {"embed": _tables(other) | params.get("embed", {})}


def _tables(params: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in params.get("embed", {}).items() if "embedding" in part}


def _check_pair(model: config.Model, c: config.ReplacedTokens) -> None:
    """That the model answers what is asked, and that generator and model can share their table of tokens."""
    generator, width = c.generator, model.embed.width or model.width
    binary = c.predict in ("replaced", "replaced_chosen")
    outputs = model.head.outputs if model.head else 0
    if binary and outputs != 1:
        raise UserError(
            f"objective.predict='{c.predict}' needs a model that gives one number a token: set "
            "--config.model.head.outputs=1 --config.model.head.tied=False"
        )
    if not binary and outputs is not None:
        raise UserError(f"objective.predict='{c.predict}' asks for tokens: set --config.model.head.outputs=None")
    if generator.architecture != "encoder" or generator.head is None or generator.head.outputs is not None:
        raise UserError("objective.generator fills in masks: give it an encoder alone, and a head of the vocabulary")
    if generator.vocab_size != model.vocab_size:
        raise UserError(
            f"objective.generator.vocab_size={generator.vocab_size} and model.vocab_size={model.vocab_size} differ, but both "
            "read one table: make them equal"
        )
    if (generator.embed.width or generator.width) != width:
        raise UserError(
            f"objective.generator has tables {generator.embed.width or generator.width} wide and the model {width}, but both "
            f"read one table: set --config.objective.generator.embed.width={width}"
        )
