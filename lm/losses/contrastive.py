"""Contrastive losses: each of a batch's vectors against those of the others.

The batch is the global one, whatever devices its rows lie on: every vector is compared with all others, and the loss does not
depend on the number of devices. Axes: B rows, P vectors of a row, D width, E size of a common space.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.losses.chunked import Apply
from lm.types import Example, WeightedMean

ABSENT = -1e30  # the logit of a vector that is padding


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., E] -> float32 of length 1; one of length 0 stays."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def vectors(params: Any, apply: Apply, example: Example, rngs: dict[str, jax.Array] | None) -> jax.Array:
    """float32 [B * P, D]: the hidden vectors at `example.where`, of length 1."""
    hidden = apply({"params": params}, example, method="hidden", rngs=rngs)
    return unit(hidden.reshape(-1, hidden.shape[-1]))


def views(
    params: Any, apply: Apply, example: Example, key: jax.Array, *, temperature: float
) -> tuple[WeightedMean, WeightedMean]:
    """The loss in nats a text and the share of texts that are nearest to themselves, of two views of each text that differ by
    dropout alone (SimCSE, arXiv 2104.08821, section 3).

    The loss is the cross-entropy of finding a text's second view among those of all texts of the batch, with logits cosine /
    temperature. A text is a predicted position of weight above 0.
    """
    one, two = jax.random.split(key)
    a, b = (vectors(params, apply, example, {"dropout": k}) for k in (one, two))
    return found(a @ b.T / temperature, example.weights.reshape(-1))


def pairs(a: jax.Array, b: jax.Array, weights: jax.Array, scale: jax.Array) -> tuple[WeightedMean, dict[str, WeightedMean]]:
    """The loss in nats a pair of vectors `a` and `b`, float32 [B, E] of length 1: the mean of the cross-entropies of finding b
    among all for each a, and a for each b, with logits cosine * scale (CLIP, arXiv 2103.00020, figure 3). Beside it how often
    each finds the other: "a_to_b", "b_to_a".

    `weights` float32 [B] are 0 for rows without a pair, which are no candidates either.
    """
    # Each direction is a product of its own, so that a device keeps the rows of its own vectors and sends no logits.
    (there, hits), (back, back_hits) = (found(_logits(x, y, scale), weights) for x, y in ((a, b), (b, a)))
    mean = WeightedMean((there.total + back.total) / 2, there.weight)
    return mean, {"a_to_b": hits, "b_to_a": back_hits}


def _logits(a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """cosine * scale of a's row i and b's row j, float32 [B, B], sharded by a's rows."""
    everywhere = nn.with_logical_constraint(b, ("keys", "embed_act"))
    logits = scale * jnp.matmul(a, everywhere.T, precision=jax.lax.Precision.HIGHEST)
    return nn.with_logical_constraint(logits, ("batch", "keys"))


def found(logits: jax.Array, weights: jax.Array) -> tuple[WeightedMean, WeightedMean]:
    """The cross-entropy of row i of logits [B, B] with its own column i, and the share of rows where that is the highest; rows
    and columns of weight 0 do not take part."""
    logits = jnp.where(weights[None] > 0, logits, ABSENT)
    own = jnp.arange(len(weights))
    right = jnp.sum(jnp.where(own[:, None] == own, logits, 0.0), axis=1)  # an index would gather all logits on each device
    nats = jax.nn.logsumexp(logits, axis=1) - right
    total = jnp.sum(weights)
    return (
        WeightedMean(jnp.sum(jnp.where(weights > 0, nats, 0.0) * weights), total),
        WeightedMean(jnp.sum((jnp.argmax(logits, axis=1) == own) * weights), total),
    )
