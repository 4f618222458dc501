"""Stems: the vectors of a stream -> what a stack reads. `lm.config.stem` has their settings.

Axes: B batch, I vectors of the stream, C numbers in each, T vectors that the stack reads, D width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.models.layers import Projection, parameter
from lm.models.stem_frames import Frames
from lm.types import TokenStream


class Patches(nn.Module):
    """Pixels of patches [B, I, C], uint8 or float32 -> [B, T, D]: projected, after the class token if there is one (ViT, arXiv
    2010.11929, equation 1, without the positions)."""

    config: config.Patches
    width: int
    std: float | None = None  # of the projection's initial values; None: fan-in ** -0.5
    token_std: float = 0.02  # of the class token's
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, vectors: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        c = self.config
        if vectors.dtype == jnp.uint8:
            vectors = normalised(vectors, c)
        dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = Projection((self.width,), ("stem_in", "embed"), c.bias, self.std, name="patches", **dtypes)(vectors)
        if c.class_token:
            init = nn.initializers.normal(self.token_std)
            token = parameter(self, "class_token", init, (self.width,), ("embed",), self.param_dtype).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        return x


# Each maps the vectors of a stream [B, I, C] and its segments [B, T] to [B, T, D], where T is at most `length` of its config.
STEMS: dict[type, Any] = {config.Patches: Patches, config.Frames: Frames}


def normalised(pixels: jax.Array, c: config.Patches) -> jax.Array:
    """uint8 [..., C] -> float32 [..., C]: (byte / 255 - mean) / std of each channel, which varies fastest in C."""
    repeat = lambda values: np.resize(np.asarray(values, np.float32), pixels.shape[-1])
    return (pixels.astype(jnp.float32) / 255 - repeat(c.mean)) / repeat(c.std)


def stem(model: config.Model, name: str) -> nn.Module:
    """The stem of the stack `name`, "encoder" or "decoder", which has one."""
    c = getattr(model, name).stem
    dtypes: dict[str, Any] = dict(dtype=model.dtype, param_dtype=model.param_dtype)
    return STEMS[type(c)](c, model.width, model.init_std, model.embed_init_std, **dtypes, name=f"{name}_stem")


def abstract_stream(stack: config.Stack) -> TokenStream:
    """Shapes and dtypes of a stream [1, T] as the stack reads it: 4 tokens, or a full row of vectors."""
    c = stack.stem
    one = jax.ShapeDtypeStruct((1, 4 if c is None else c.length), jnp.int32)
    return TokenStream(one, one, one, vectors=None if c is None else jax.ShapeDtypeStruct((1, *c.inputs), jnp.float32))
