"""The loss of a reward model: of two answers the better one gets the higher number (Bradley and Terry 1952; arXiv 2203.02155,
equation 1)."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.losses.chunked import Apply
from lm.losses.preference import Values, with_sown
from lm.types import Compared, Example


def rewards(params: Any, apply: Apply, example: Example) -> jax.Array:
    """float32 [B]: the one output of the head at the one position of each row, without dropout."""
    return apply({"params": params}, example)[:, 0, 0].astype(jnp.float32)


def bradley_terry(rewards: jax.Array, margin: jax.Array, there: jax.Array, *, centre: float = 0.0) -> Values:
    """The figures of pairs, from rewards [B, 2] of the chosen and the rejected answer; `there` [B] is 0 of a blank pair.

    The loss is -log sigmoid(chosen - rejected - margin) (margin: arXiv 2307.09288, equation 2) + centre * (chosen + rejected)^2
    (arXiv 2312.09244, equation 2), which keeps rewards near 0: a difference leaves their mean open.
    """
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    ahead = chosen - rejected
    figures = {
        "loss": jax.nn.softplus(margin - ahead) + centre * (chosen + rejected) ** 2,
        "accuracy": (ahead > 0).astype(jnp.float32),
        "margin": ahead,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
    }
    return {name: (value, there) for name, value in figures.items()}


def values(
    params: Any,
    apply: Apply,
    batch: Compared,
    *,
    centre: float = 0.0,
    trains: bool = False,
    rngs: dict[str, jax.Array] | None = None,
) -> Values:
    """The figures of a batch, whose Examples have one position each (`ExampleBuilder.reward_example`). `trains`: the loss has
    what the model sowed in "losses" as well, which held-out figures have not."""
    logits, sown = apply({"params": params}, batch.both, rngs=rngs, mutable=["losses"])
    both = logits[:, 0, 0].astype(jnp.float32).reshape(-1, 2)
    found = bradley_terry(both, batch.margin, batch.chosen.weights[:, 0], centre=centre)
    return with_sown(found, sown) if trains else found
