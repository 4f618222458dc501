"""Contrastive loss of sentence vectors: each text against the others of the batch (SimCSE, arXiv 2104.08821, section 3)."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.losses.chunked import Apply
from lm.types import Example, WeightedMean


def vectors(params: Any, apply: Apply, example: Example, rngs: dict[str, jax.Array] | None) -> jax.Array:
    """float32 [B * P, D]: the hidden vectors at `example.where`, of length 1."""
    hidden = apply({"params": params}, example, method="hidden", rngs=rngs)
    flat = hidden.reshape(-1, hidden.shape[-1]).astype(jnp.float32)
    return flat / jnp.maximum(jnp.linalg.norm(flat, axis=-1, keepdims=True), 1e-12)


def views(
    params: Any, apply: Apply, example: Example, key: jax.Array, *, temperature: float
) -> tuple[WeightedMean, WeightedMean]:
    """The loss in nats a text and the share of texts that are nearest to themselves, of two views of each text that differ by
    dropout alone.

    The loss is the cross-entropy of finding a text's second view among those of all texts of the batch, with logits cosine /
    temperature. A text is a predicted position of weight above 0.
    """
    one, two = jax.random.split(key)
    a, b = (vectors(params, apply, example, {"dropout": k}) for k in (one, two))
    weights = example.weights.reshape(-1)
    logits = jnp.where(weights[None] > 0, a @ b.T / temperature, -1e30)
    own = jnp.arange(len(weights))
    nats = jax.nn.logsumexp(logits, axis=1) - logits[own, own]
    total = jnp.sum(weights)
    return (
        WeightedMean(jnp.sum(jnp.where(weights > 0, nats, 0.0) * weights), total),
        WeightedMean(jnp.sum((jnp.argmax(logits, axis=1) == own) * weights), total),
    )
