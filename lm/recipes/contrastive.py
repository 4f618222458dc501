"""Contrast of sentence vectors as a task: each text goes through the model twice, with other dropout (SimCSE)."""

from dataclasses import replace
from typing import Any

import jax

from lm import config
from lm.errors import UserError
from lm.losses.contrastive import views
from lm.models.transformer import Transformer
from lm.training.task import Task

EVALUATION = 0  # seed of the dropout by which held-out views differ


def task(run: config.Run) -> Task:
    c, model = run.objective, Transformer(run.model)
    assert isinstance(c, config.Contrastive)
    if not any(_dropouts(run.model)):
        raise UserError(
            "two views of a text differ by dropout alone, and the model has none: set --config.model.encoder.dropout=0.1 (of "
            "a decoder, --config.model.decoder.dropout)"
        )

    def loss(params: Any, frozen: Any, batch: Any, rngs: Any) -> tuple[Any, dict[str, Any]]:
        mean, accuracy = views(params, model.apply, batch, rngs["dropout"], temperature=c.temperature)
        return mean, {"accuracy": accuracy}

    def scores(params: Any, frozen: Any, batch: Any) -> dict[str, Any]:
        found = views(params, model.apply, batch, jax.random.key(EVALUATION), temperature=c.temperature)
        return dict(zip(("loss", "accuracy"), found, strict=True))

    trunk = replace(run.model, head=None)  # no logits are computed
    return Task(
        models={"model": run.model},
        init=lambda key, batch: model.init(key, batch)["params"],
        loss=loss,
        scores=scores,
        passes=lambda lengths: [(trunk, 0), (trunk, 0)],
        writer=lambda params, frozen: (model, params),
        nats=False,
    )


def _dropouts(model: config.Model) -> list[float]:
    """All rates of dropout."""
    found = [model.embed.dropout, model.embed.token_dropout]
    for stack in (model.encoder, model.decoder):
        if stack:
            found.append(stack.dropout)
            for block in stack.blocks.values():
                inner = block.ffn.dropout if isinstance(block.ffn, config.Mlp) else 0.0
                found += [block.dropout, block.attention.dropout if block.attention else 0.0, inner]
    return found
