"""The losses of a quantised autoencoder (VQ-VAE, arXiv 1711.00937, equation 3), and how evenly its codes are used.

Axes: B batch, T patches, C numbers of a code, P pixels of a patch with their channels, K codes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lm.types import WeightedMean


def codebook(vectors: jax.Array, chosen: jax.Array) -> jax.Array:
    """float32 [...]: |sg[z] - e|^2 of vectors [..., C] and their rows of the codebook: moves the rows. (Second term.)"""
    return jnp.sum((jax.lax.stop_gradient(vectors) - chosen) ** 2, axis=-1)


def commitment(vectors: jax.Array, chosen: jax.Array) -> jax.Array:
    """float32 [...]: |z - sg[e]|^2: moves the vectors. (Third term, without its factor.)"""
    return jnp.sum((vectors - jax.lax.stop_gradient(chosen)) ** 2, axis=-1)


def squared_error(pixels: jax.Array, made: jax.Array) -> jax.Array:
    """float32 [...]: the mean squared difference of patches [..., P] from those that were made: -log p(x | z) of a Gaussian of
    fixed width, up to its factor and a constant. (First term.)"""
    return jnp.mean((pixels.astype(jnp.float32) - made.astype(jnp.float32)) ** 2, axis=-1)


def unevenness(distances: jax.Array, weights: jax.Array, *, temperature: float) -> jax.Array:
    """float32 []: log K - H(mean of softmax(-distances / temperature)), in nats, over vectors with their weights [B, T]: 0
    where all codes are used alike. It moves all rows of the codebook, also those that no vector has, which equation 3 never
    does (the second term of the entropy penalty of arXiv 2310.05737).

    distances: float32 [B, T, K], squared
    """
    shares = jax.nn.softmax(-distances / temperature, axis=-1)
    mean = jnp.sum(weights[..., None] * shares, axis=(0, 1)) / jnp.maximum(jnp.sum(weights), 1.0)
    return jnp.log(distances.shape[-1]) + jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30)))


def autoencoder(
    pixels: jax.Array, made: jax.Array, quantised: Any, weights: jax.Array, *, beta: float, even: float, temperature: float
) -> tuple[WeightedMean, dict[str, WeightedMean]]:
    """Equation 3 and the unevenness of codes, a sum over patches with their weights [B, T], and its terms as means.

    pixels, made: [B, T, P], the patches and what was made of their codes
    quantised: the `lm.models.vq.Quantised` of the patches
    beta, even: the weights of the commitment and of the unevenness
    """
    terms = {
        "error": squared_error(pixels, made),
        "codebook": codebook(quantised.read, quantised.chosen),
        "commitment": commitment(quantised.read, quantised.chosen),
    }
    weight = jnp.sum(weights)
    means = {name: WeightedMean(jnp.sum(weights * term), weight) for name, term in terms.items()}
    total = means["error"].total + means["codebook"].total + beta * means["commitment"].total
    if even:
        missing = unevenness(quantised.distances, weights, temperature=temperature)
        means["unevenness"] = WeightedMean(missing * weight, weight)
        total = total + even * means["unevenness"].total
    return WeightedMean(total, weight), means


def counts(codes: jax.Array, weights: jax.Array, size: int) -> jax.Array:
    """float32 [size]: how often each code occurs in codes int32 [...], each with its weight."""
    return jnp.zeros(size, jnp.float32).at[codes.reshape(-1)].add(weights.reshape(-1).astype(jnp.float32))


def perplexity(found: jax.Array) -> jax.Array:
    """float32 []: exp of the entropy of these counts [K]: 1 if a single code is used, K if all are used alike."""
    shares = found / jnp.maximum(jnp.sum(found), 1e-9)
    return jnp.exp(-jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-30)), 0.0)))
