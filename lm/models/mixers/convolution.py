"""The Conformer's convolution module, in the place of self-attention (arXiv 2005.08100, section 2.2, figure 2).

Axes: B batch, T length, D width, W taps.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.context import Context
from lm.models.layers import ACTIVATIONS, Norm, Projection, parameter


class Convolution(nn.Module):
    """x [B, T, D] -> [B, T, D]: a gated linear unit, a convolution of each channel over time, a norm, swish, and a projection.

    The paper normalises with the batch's statistics, which would make a row depend on the other rows of its batch; here each
    vector is normalised by itself. Tokens of other segments are zeros to the convolution.
    """

    config: config.Convolution
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        c, width = self.config, x.shape[-1]
        dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        # Each device computes whole rows: a token's neighbours may be another device's.
        x = nn.with_logical_constraint(x, ("batch", "keys", "embed_act"))
        value, gate = (
            Projection((width,), ("embed", "hidden"), True, self.std, name=name, **dtypes)(x) for name in ("up", "gate")
        )
        init, axes = nn.initializers.normal(c.kernel**-0.5), ("taps", "hidden")
        taps = parameter(self, "taps", init, (c.kernel, width), axes, self.param_dtype).astype(self.dtype)
        y = neighbours(value * nn.sigmoid(gate), taps, context.mask.q_segments)
        y = ACTIVATIONS["silu"](Norm(config.Norm(eps=c.eps), axis="hidden", name="norm", **dtypes)(y))
        y = Projection((width,), ("hidden", "embed"), True, self.out_std, name="down", **dtypes)(y)
        return nn.with_logical_constraint(y, ("batch", "length", "embed_act"))


def neighbours(x: jax.Array, taps: jax.Array, segments: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T, D]: each channel's sum over the W (odd) tokens around each token times `taps` [W, D], of tokens of
    the same segment alone. (As a sum of shifted arrays it is one fused loop; XLA's grouped convolution is slow on CPUs.)"""
    half, length = len(taps) // 2, x.shape[1]
    beyond = lambda y: jnp.pad(y, [(0, 0), (half, half), *[(0, 0)] * (y.ndim - 2)])
    wide, owner = beyond(x), beyond(segments)
    total = jnp.zeros_like(x)
    for tap, weight in enumerate(taps):
        same = owner[:, tap : tap + length] == segments
        total += jnp.where(same[..., None], wide[:, tap : tap + length], 0) * weight
    return total
