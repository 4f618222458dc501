"""Connectionist temporal classification: the loss of a text whose place in what is read nobody knows (Graves et al., 2006).

Axes: B batch, T vectors that are read, V vocabulary, L labels.
"""

import jax
import jax.numpy as jnp
import optax

from lm.types import Unaligned, WeightedMean


def ctc(logits: jax.Array, batch: Unaligned, blank: int) -> WeightedMean:
    """-log p(text | sound) in nats, summed over rows, and the number of labels: the probability is the sum over all ways to put
    a row's labels, in order, at its vectors, each held for one or more of them, with `blank` at all others.

    logits: [B, T, V]. A row without vectors or labels counts nothing. A text of more labels than vectors costs 1e5 or more.
    """
    heard = batch.example.encoder
    assert heard is not None
    there = heard.segments > 0
    padding = (1.0 - there, 1.0 - batch.weights)
    losses = optax.ctc_loss(logits.astype(jnp.float32), padding[0], batch.labels, padding[1], blank_id=blank)
    asked = jnp.sum(batch.weights, axis=1)
    return WeightedMean(jnp.sum(jnp.where(asked > 0, losses, 0.0)), jnp.sum(asked))
