"""What a run trains and is judged by, chosen by its objective's type; recipe, step and loop have no branch for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lm import config
from lm.errors import UserError
from lm.losses import replaced
from lm.losses.cross_entropy import cross_entropy, scores
from lm.models.layers import Projection
from lm.models.transformer import Transformer, head_params, own_tables, with_tables
from lm.objectives import Lengths
from lm.training.step import Loss
from lm.types import Example, WeightedMean


@dataclass(frozen=True)
class Task:
    """`models` are all that take part, by their place in the config; `passes` says at how many places each gives logits, the
    one that is asked for last."""

    models: dict[str, config.Model]
    init: Callable[[jax.Array, Example], Any]  # parameters that carry logical axis names
    loss: Loss
    scores: Callable[[Any, Example], dict[str, WeightedMean]]
    passes: Callable[[Lengths], list[tuple[config.Model, int | None]]]
    writer: Callable[[Any], tuple[Transformer, Any]]  # of all parameters: the model that gives texts, and its own
    writes: str = "model"  # the one that gives texts, by its place
    nats: bool = True  # the loss is in nats a token


def task(run: config.Run) -> Task:
    return TASKS.get(type(run.objective), _tokens)(run)


def _tokens(run: config.Run) -> Task:
    """One model, the cross-entropy of the tokens that the objective asks for."""
    model = Transformer(run.model)
    settings: dict[str, Any] = dict(head_params=head_params, vocab_size=run.model.vocab_size)
    return Task(
        models={"model": run.model},
        init=lambda key, example: model.init(key, example)["params"],
        loss=lambda params, example, rngs: cross_entropy(
            params, model.apply, example, rngs=rngs, z_loss=run.train.z_loss, **settings
        ),
        scores=lambda params, example: scores(params, model.apply, example, **settings),
        passes=lambda lengths: [(run.model, lengths.predicted)],
        writer=lambda params: (model, params),
    )


def _replaced_tokens(run: config.Run) -> Task:
    """Parameters {"model", "generator"}: tables that both have are the model's; and "copy", the gate of All-Tokens MLM."""
    c: Any = run.objective
    _check_pair(run.model, c)
    modules = {"model": Transformer(run.model), "generator": Transformer(c.generator)}
    gate = Projection((1,), ("embed", "outputs"), True, run.model.init_std, run.model.dtype)
    copies = c.predict == "all"

    def init(key: jax.Array, example: Example) -> Any:
        keys = jax.random.split(key, 3)
        params = {name: module.init(k, example)["params"] for (name, module), k in zip(modules.items(), keys, strict=False)}
        params["generator"] = own_tables(params["generator"], params["model"])
        if copies:
            params["copy"] = gate.init(keys[2], jnp.zeros((1, run.model.width)))["params"]
        return params

    def whole(params: Any) -> dict[str, Any]:
        generator = with_tables(params["generator"], params["model"])
        return {"generator": generator, "model": params["model"] | {k: v for k, v in params.items() if k == "copy"}}

    def model_apply(variables: Any, *args: Any, method: str, **kwargs: Any) -> Any:
        outputs = modules["model"].apply(variables, *args, method=method, **kwargs)
        if copies and method == "logits":
            return outputs, gate.apply({"params": variables["params"]["copy"]}, *args)
        return outputs

    def heads(params: Any) -> Any:
        return head_params(params) | {k: v for k, v in params.items() if k == "copy"}

    apply: dict[str, Any] = {"generator": modules["generator"].apply, "model": model_apply}
    asked: dict[str, Any] = dict(predict=c.predict, rate=c.rate, weight=c.weight)
    settings: dict[str, Any] = asked | dict(head_params=heads, vocab_size=run.model.vocab_size)
    everywhere = c.predict in ("replaced", "all")
    return Task(
        models={"model": run.model, "objective.generator": c.generator},
        init=init,
        loss=lambda params, example, rngs: replaced.loss(
            whole(params), apply, example, rngs=rngs, z_loss=run.train.z_loss, **settings
        ),
        scores=lambda params, example: replaced.scores(whole(params), apply, example, **settings),
        passes=lambda n: [(c.generator, n.predicted), (run.model, None if everywhere else n.predicted)],
        writer=lambda params: (modules["generator"], whole(params)["generator"]),
        writes="objective.generator",
        nats=False,
    )


def _check_pair(model: config.Model, c: config.ReplacedTokens) -> None:
    """That the model answers what is asked, and that generator and model can share their table of tokens."""
    generator, width = c.generator, model.embed.width or model.width
    binary = c.predict in ("replaced", "replaced_chosen")
    outputs = model.head.outputs if model.head else 0
    if binary and outputs != 1:
        raise UserError(
            f"objective.predict='{c.predict}' needs a model that gives one number a place: set "
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


TASKS: dict[type, Callable[[config.Run], Task]] = {config.ReplacedTokens: _replaced_tokens}
