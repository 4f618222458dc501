"""The bottleneck between encoder and decoder: k vectors of each document are all that the decoder reads.

Axes: B batch, S encoder length, M documents that a row may hold, k vectors of a document, D width, Z numbers of a vector.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lm import config
from lm.models.attention import Attention
from lm.models.layers import Projection, parameter
from lm.models.mask import Mask


@struct.dataclass
class Gaussians:
    """The distributions that the vectors of a batch are drawn from; of a document that is not there, those of padding."""

    mean: jax.Array  # float32 [B, M, k, Z]
    log_var: jax.Array  # float32 [B, M, k, Z], the logarithms of the variances
    drawn: jax.Array  # float32 [B, M, k, Z], what the decoder reads: the mean where nothing is drawn
    there: jax.Array  # bool [B, M]: the row has the document


class Bottleneck(nn.Module):
    """Maps the encoder's vectors [B, S, D] with their segments [B, S] to [B, M k, D] with segments [B, M k]: document m has the
    vectors from (m - 1) k on, and a document that is not there has segment 0.

    A row of more than M documents gives NaN, so that it never trains as if it had fewer. Of latent "gaussian" the vectors are
    drawn if an rng "latent" is passed, and otherwise are the means; the distributions are sown in "latents" (`gaussians`).
    """

    config: config.Model

    def setup(self) -> None:
        m, b = self.config, self.config.bottleneck
        assert b is not None
        dtypes: dict[str, Any] = dict(dtype=m.dtype, param_dtype=m.param_dtype)
        width = b.size(m.width)
        if b.pool == "queries":
            init = nn.initializers.normal(1.0)
            self.queries = parameter(self, "queries", init, (b.vectors, m.width), ("position", "embed"), m.param_dtype)
            self.attention = Attention(config.Attention(b.num_heads), None, m.init_std, m.init_std, **dtypes)
        down = lambda: Projection((width,), ("embed", "latent"), True, m.init_std, **dtypes)
        if b.latent == "gaussian":
            self.mean, self.log_var = down(), down()
        elif b.width is not None:
            self.down = down()
        if b.width is not None:
            self.up = Projection((m.width,), ("latent", "embed"), True, m.init_std, **dtypes)

    def __call__(self, x: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
        b = self.config.bottleneck
        assert b is not None
        pooled = self.pooled(x, segments)
        z, there = self._means(pooled), _documents(segments, b.documents).any(axis=-1)
        if b.latent == "gaussian":
            mean, log_var = z, self.log_var(pooled).astype(jnp.float32)
            if self.has_rng("latent"):
                z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(self.make_rng("latent"), z.shape)
            self.sow("latents", "gaussians", Gaussians(mean, log_var, z, there))
        z = jnp.where((jnp.max(segments, axis=1) > b.documents)[:, None, None, None], jnp.nan, z)
        numbers = jnp.where(there, jnp.arange(1, b.documents + 1), 0)
        return self.expanded(z), jnp.repeat(numbers, b.vectors, axis=1)

    def latents(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """float32 [B, M, k, Z]: each document's vectors, of a gaussian their means."""
        return self._means(self.pooled(x, segments))

    def expanded(self, z: jax.Array) -> jax.Array:
        """Latents [B, M, k, Z] as the decoder reads them, [B, M k, D]."""
        m, b = self.config, self.config.bottleneck
        assert b is not None
        y = z.astype(m.dtype) if b.width is None else self.up(z)
        return nn.with_logical_constraint(y.reshape(len(y), -1, m.width), ("batch", None, "embed_act"))

    def pooled(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """[B, M, k, D]: the vectors before they are projected."""
        b = self.config.bottleneck
        assert b is not None
        of = _documents(segments, b.documents)  # [B, M, S]
        if b.pool == "mean":
            total = jnp.einsum("bms,bsd->bmd", of.astype(x.dtype), x, preferred_element_type=jnp.float32)
            return (total / jnp.maximum(jnp.sum(of, axis=-1), 1)[..., None]).astype(x.dtype)[:, :, None]
        if b.pool == "queries":
            B, M, width = len(x), b.documents, x.shape[-1]
            queries = jnp.broadcast_to(jnp.tile(self.queries, (M, 1)).astype(x.dtype), (B, M * b.vectors, width))
            numbers = jnp.where(of.any(axis=-1), jnp.arange(1, M + 1), 0)
            mask = Mask(jnp.repeat(numbers, b.vectors, axis=1), segments)
            return self.attention(queries, mask=mask, source=x, cross=True).reshape(B, M, b.vectors, width)
        at = jnp.argmax(of, axis=-1) if b.pool == "first" else of.shape[-1] - 1 - jnp.argmax(of[..., ::-1], axis=-1)
        return jnp.take_along_axis(x, at[..., None], axis=1)[:, :, None]

    def _means(self, pooled: jax.Array) -> jax.Array:
        b = self.config.bottleneck
        assert b is not None
        projected = self.mean if b.latent == "gaussian" else self.down if b.width is not None else lambda y: y
        return projected(pooled).astype(jnp.float32)


def gaussians(sown: Any) -> Gaussians:
    """What a model with a gaussian bottleneck sowed: `apply(..., mutable=["latents"])[1]`."""
    (found,) = sown["latents"]["bottleneck"]["gaussians"]
    return found


def _documents(segments: jax.Array, most: int) -> jax.Array:
    """bool [B, M, S]: the tokens of each document."""
    return segments[:, None, :] == jnp.arange(1, most + 1)[:, None]
