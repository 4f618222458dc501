"""Vectors put before a decoder's tokens (`lm.config.Model.join` "prefix"): each document's before its own.

Axes: B batch, K vectors of a row, T tokens of a row, D width.
"""

import jax
import jax.numpy as jnp
from flax import struct

from lm.types import TokenStream


@struct.dataclass
class Joined:
    """Vectors and tokens as one row [B, K + T]."""

    x: jax.Array  # [B, K + T, D]
    segments: jax.Array
    positions: jax.Array
    prefix: jax.Array | None  # bool, as in a TokenStream
    tokens: jax.Array  # int32 [B, T]: where each token stands


def joined(vectors: jax.Array, vector_segments: jax.Array, x: jax.Array, stream: TokenStream, *, sort: bool) -> Joined:
    """Puts vectors [B, K, D] with segments [B, K] before tokens x [B, T, D].

    Tokens keep their positions, and the vectors count down to -1, so that tables of positions need no rows for them. With
    `sort` each document follows its own vectors and padding comes last; otherwise all vectors come before all tokens, as a
    cache holds them.

    vector_segments [1 1 2 2], segments [1 1 1 2 0]:
    segments        [ 1  1 1 1 1  2  2 2 0]
    positions       [-2 -1 0 1 2 -2 -1 0 0]
    tokens          [2 3 4 7 8]
    """
    B, K = vector_segments.shape
    segments = jnp.concatenate([vector_segments, stream.segments], axis=1)
    positions = jnp.concatenate([positions_before(vector_segments), stream.positions], axis=1)
    x = jnp.concatenate([vectors.astype(x.dtype), x], axis=1)
    prefix = stream.prefix
    if prefix is not None:
        prefix = jnp.concatenate([jnp.zeros((B, K), bool), prefix], axis=1)
    at = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    if sort:
        last = jnp.iinfo(jnp.int32).max
        order = jnp.argsort(jnp.where(segments > 0, segments, last), axis=1, stable=True)
        x = jnp.take_along_axis(x, order[..., None], axis=1)
        segments, positions = (jnp.take_along_axis(y, order, axis=1) for y in (segments, positions))
        prefix = None if prefix is None else jnp.take_along_axis(prefix, order, axis=1)
        at = jnp.argsort(order, axis=1)
    return Joined(x, segments, positions, prefix, at[:, K:])


def positions_before(segments: jax.Array) -> jax.Array:
    """int32 [B, K]: the position of each vector, of which those of a segment are neighbours: [1 1 2] -> [-2 -1 -1]."""
    K = segments.shape[1]
    place = jnp.arange(K)
    ends = jnp.diff(segments, axis=1, append=-1) != 0
    return place - jax.lax.cummin(jnp.where(ends, place + 1, K), axis=1, reverse=True)
