"""Scores the held-out answers of a run that was trained on records from nothing, one by one."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.study import Measured
from lm import recipes
from lm.losses.log_probs import token_scores
from lm.models.transformer import Transformer, head_params
from lm.saved import Saved
from lm.types import Example

BATCH = 128


@dataclass(frozen=True)
class Answers:
    """Of N records, float64 [N] each.

    exact   1 if each token of the answer, its end included, is the most likely one given the right ones before it
    nats    -log p(answer and its end)
    tokens  of the answer and its end
    """

    exact: np.ndarray
    nats: np.ndarray
    tokens: np.ndarray


def scored(model: Saved) -> dict[str, Answers]:
    """The answers of each held-out source, in the order of the prepared data: the same for all runs on it."""
    assert model.run is not None
    recipe = recipes.recipe(model.run)
    run = recipe.complete(model.run, model.folder)
    rows: Any = recipe.rows(run, recipe.data(run, progress=False))["holdout"]
    network, params = Transformer(run.model), model.params()
    parts = []
    for first in range(0, rows.count, BATCH):
        example = rows.rows(np.arange(first, first + BATCH))  # blank past the last
        parts.append(jax.device_get(_scores(params, example, network=network)))
    every = [np.concatenate(values)[: rows.count].astype(float) for values in zip(*parts, strict=True)]
    ends = np.cumsum([about["rows"] for about in rows.report().values()])[:-1]
    by_source = zip(*(np.split(values, ends) for values in every), strict=True)
    return {name: Answers(*values) for name, values in zip(rows.report(), by_source, strict=True)}


def measured(model: Saved) -> Measured:
    """For each held-out source: `<source>/exact`, the share of right answers, and `<source>/nats`, nats a token."""
    items = {}
    for name, found in scored(model).items():
        items |= {f"{name}/exact": found.exact, f"{name}/nats": found.nats / found.tokens.mean()}
    return Measured({name: float(values.mean()) for name, values in items.items()}, items)


@partial(jax.jit, static_argnames="network")
def _scores(params: Any, example: Example, *, network: Transformer) -> tuple[jax.Array, jax.Array, jax.Array]:
    """exact, nats and tokens of each row: [B] each."""
    found = token_scores(params, network.apply, example, head_params=head_params, vocab_size=network.config.vocab_size)
    asked = example.weights > 0
    return (found.is_top | ~asked).all(axis=1), -(example.weights * found.log_probs).sum(axis=1), asked.sum(axis=1)
