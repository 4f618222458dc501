"""The stem of sound: convolutions over time.

Axes: B batch, I frames, C numbers of a frame, W taps of a convolution, T vectors that the stack reads, D width.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import ACTIVATIONS, Projection


class Frames(nn.Module):
    """Frames [B, I, C] -> [B, T, D]: a convolution over time for each of the strides, each with a bias and GELU (Whisper, arXiv
    2212.04356, section 2.2).

    segments: [B, T]. What is not of an utterance, where they are 0, is read as zeros by every convolution, so that an utterance
    does not depend on the row's length.
    """

    config: config.Frames
    width: int
    std: float | None = None
    token_std: float = 0.02  # unused: it is here because every kind of stem is made with it
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, vectors: jax.Array, segments: jax.Array) -> jax.Array:
        c, x = self.config, vectors.astype(self.dtype)
        dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        for i, stride in enumerate(c.strides):
            every = math.prod(c.strides[i:])  # vectors of x to one that the stack reads
            spoken = jnp.repeat(segments > 0, every, axis=1)[:, : x.shape[1], None]
            axes = ("taps", "embed_in" if i else "stem_in", "embed")
            conv = Projection((self.width,), axes, True, self.std, name=f"conv_{i}", **dtypes)
            x = ACTIVATIONS["gelu"](conv(windows(jnp.where(spoken, x, 0), c.kernel, stride)))
        return x


def windows(x: jax.Array, width: int, stride: int) -> jax.Array:
    """[B, I, C] -> [B, ceil(I / stride), W, C]: the `width` neighbours of every `stride`-th vector, zeros beyond the ends."""
    half, count = width // 2, -(-x.shape[1] // stride)
    padded = jnp.pad(x, ((0, 0), (half, half + stride), (0, 0)))
    at = lambda tap: padded[:, tap : tap + count * stride : stride]
    return jnp.stack([at(tap) for tap in range(width)], axis=2)
