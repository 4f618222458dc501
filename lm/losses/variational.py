"""The variational bound of a text: what it costs given its latents, and their divergence from the prior (arXiv 1312.6114).

    -log p(x)  <=  -E log p(x | z) + KL(q(z | x) || N(0, 1))         z ~ q(z | x) = N(mean, exp(log_var))

Axes: B batch, M documents of a row, k vectors of a document, Z numbers of a vector, R draws.
"""

import jax
import jax.numpy as jnp


def divergence(mean: jax.Array, log_var: jax.Array, there: jax.Array) -> jax.Array:
    """float32 [B, M]: KL(N(mean, exp(log_var)) || N(0, 1)) of each document in nats, summed over its numbers; 0 where `there`,
    bool [B, M], says that there is none. mean, log_var: [B, M, k, Z]. (arXiv 1312.6114, appendix B.)"""
    each = 0.5 * (mean**2 + jnp.exp(log_var) - 1.0 - log_var)
    return jnp.where(there, jnp.sum(each, axis=(-2, -1)), 0.0)


def charged(nats: jax.Array, there: jax.Array, free: float) -> jax.Array:
    """float32 [B, M]: the divergence that is trained on. Below `free` nats a document pays those and has no gradient, so that
    it gains nothing by saying less (free bits, arXiv 1606.04934, appendix C.8; there of a mean over the batch, here of each
    document, so that microbatches add up)."""
    return jnp.where(there, jnp.maximum(nats, free), 0.0)


def annealed(progress: jax.Array, share: float, weight: float) -> jax.Array:
    """float32, shaped like `progress`, the share of the training that is done: the weight of the divergence, which rises from 0
    to `weight` at a constant pace over the first `share` of it (arXiv 1511.06349, section 3.1)."""
    return weight * jnp.clip(progress / share, 0.0, 1.0) if share else jnp.full_like(progress, weight)


def of_documents(values: jax.Array, segments: jax.Array, documents: int) -> jax.Array:
    """float32 [B, M]: the sum of values [B, T] over the tokens of each document."""
    of = segments[:, None, :] == jnp.arange(1, documents + 1)[:, None]
    return jnp.einsum("bmt,bt->bm", of.astype(jnp.float32), values.astype(jnp.float32))


def log_ratio(z: jax.Array, mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """float32 [B, M]: log N(z; 0, 1) - log N(z; mean, exp(log_var)), summed over the numbers of each document."""
    return jnp.sum(0.5 * ((z - mean) ** 2 * jnp.exp(-log_var) + log_var - z**2), axis=(-2, -1))


def importance(log_weights: jax.Array) -> jax.Array:
    """float32 [...]: log of the mean of R weights p(x | z) p(z) / q(z | x), whose logarithms are [R, ...]: at most log p(x) on
    average, and nearer to it the larger R is (arXiv 1509.00519, equation 8)."""
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(log_weights.shape[0])
