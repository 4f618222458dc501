"""Vector quantisation: each vector is replaced by the nearest row of a codebook (VQ-VAE, arXiv 1711.00937, section 3.1).

Axes: K codes, C size of a code; `...` any leading axes, here [B, T].
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lm import config
from lm.models.layers import parameter


@struct.dataclass
class Quantised:
    """What a codebook makes of vectors [..., C]."""

    read: jax.Array  # float32 [..., C], the vectors as they were compared with the rows
    chosen: jax.Array  # float32 [..., C], the nearest rows; their gradient goes to the codebook
    codes: jax.Array  # int32 [...], their numbers
    distances: jax.Array  # float32 [..., K], squared, from each vector to each row

    @property
    def vectors(self) -> jax.Array:
        """float32 [..., C]: the chosen rows, whose gradient is copied to `read`, as if nothing had been chosen (straight
        through, section 3.2)."""
        return self.read + jax.lax.stop_gradient(self.chosen - self.read)


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., C] of length 1 in the same directions, float32. The gradient at 0 is finite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def squared_distances(vectors: jax.Array, codebook: jax.Array) -> jax.Array:
    """float32 [..., K]: from each vector [..., C] to each row of the codebook [K, C]."""
    # Products that are rounded to bfloat16, as on a TPU by default, would choose other rows.
    products = jnp.einsum("...C,KC->...K", vectors, codebook, precision=jax.lax.Precision.HIGHEST)
    squares = lambda x: jnp.sum(x * x, axis=-1)
    return squares(vectors)[..., None] - 2.0 * products + squares(codebook)


def quantise(vectors: jax.Array, codebook: jax.Array) -> Quantised:
    """Vectors float32 [..., C] in a codebook [K, C]: each has the nearest row (equation 1), the first of equally near ones."""
    distances = squared_distances(vectors, codebook)
    codes = jnp.argmin(distances, axis=-1).astype(jnp.int32)
    return Quantised(vectors, jnp.take(codebook, codes, axis=0), codes, distances)


class Codebook(nn.Module):
    """K vectors of size C: maps vectors [..., C] to their Quantised. With `config.unit` vectors and rows have length 1."""

    config: config.Codebook
    param_dtype: str = "float32"

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(c.size**-0.5)
        self.table = parameter(self, "table", init, (c.codes, c.size), ("codes", "code"), self.param_dtype)

    def __call__(self, vectors: jax.Array) -> Quantised:
        vectors = vectors.astype(jnp.float32)
        return quantise(unit(vectors) if self.config.unit else vectors, self._table())

    def rows(self, codes: jax.Array) -> jax.Array:
        """int32 [...] -> float32 [..., C]: what `__call__` gives for these codes."""
        return jnp.take(self._table(), codes, axis=0)

    def _table(self) -> Any:
        table = self.table.astype(jnp.float32)
        return unit(table) if self.config.unit else table
