"""Griffin's recurrent block: a convolution over a few tokens and the RG-LRU, beside a gated branch (arXiv 2402.19427).

Axes: B batch, T length, D width, R units, N blocks of the gates' matrices.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import ACTIVATIONS, Projection, parameter
from lm.models.mixers.common import Convolution, Kernel, Rows, carried, carry

SHARPNESS = 8.0  # c of equation 4: the exponent of the decay
SLOWEST, FASTEST = 0.999, 0.9  # between which the decays to the power of c begin (section 2.4)
LEAST = 1e-12  # of 1 - a^2, whose root has no derivative at 0


def scanned(decay: jax.Array, added: jax.Array, first: jax.Array) -> jax.Array:
    """Returns h[t] = decay[t] h[t - 1] + added[t], float32 [B, T, R], with h[-1] = first [B, R], in a logarithmic number of
    steps. What comes before a decay of 0 has no effect on what follows, to the bit."""
    added = added.at[:, 0].add(decay[:, 0] * first)

    def joined(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], left[1] * right[0] + right[1]

    return jax.lax.associative_scan(joined, (decay, added), axis=1)[1]


class _Gate(nn.Module):
    """x [B, T, R] -> sigmoid(x W + b), float32 [B, T, R], with a block-diagonal W."""

    blocks: int
    std: float | None
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1] // self.blocks
        axes = ("blocks", "block_in", "block_out")
        options: dict[str, Any] = dict(std=self.std, param_dtype=self.param_dtype)
        kernel = Kernel((self.blocks, size, size), axes, size, name="blocks", **options)().astype(self.dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.blocks, size), axes[::2], self.param_dtype)
        y = jnp.einsum("btni,nij->btnj", x.reshape(*x.shape[:-1], self.blocks, size).astype(self.dtype), kernel)
        return nn.sigmoid(y.astype(jnp.float32) + bias).reshape(x.shape)


class GatedLinear(nn.Module):
    """x [B, T, D] -> (gelu(x G) * h) V, [B, T, D], where h are the states of the RG-LRU over u = conv(x U).

    r, i = sigmoid(u W + b); a = exp(-8 softplus(L) r); h[t] = a[t] h[t - 1] + sqrt(1 - a[t]^2) i[t] u[t]. A document's first
    state is i u.
    """

    config: config.GatedLinear
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, rows: Rows) -> jax.Array:
        c, width = self.config, x.shape[-1]
        size, dtypes = c.size(width), dict[str, Any](dtype=self.dtype, param_dtype=self.param_dtype)

        def made(name: str) -> jax.Array:
            y = Projection((size,), ("embed", "hidden"), c.bias, self.std, name=name, **dtypes)(x)
            return nn.with_logical_constraint(y, ("batch", "keys", "hidden"))

        branch = ACTIVATIONS["gelu_tanh"](made("gate").astype(jnp.float32))
        u = Convolution(c.conv, ("hidden",), self.param_dtype, name="conv")(made("up"), rows)
        r, i = (_Gate(c.num_heads, self.std, name=name, **dtypes)(u) for name in ("decay_gate", "input_gate"))
        rate = parameter(self, "decay", _first_decay, (size,), ("hidden",), self.param_dtype).astype(jnp.float32)
        log_decay = -SHARPNESS * nn.softplus(rate) * r
        begins, token = rows.begins[..., None], rows.token[..., None]
        share = jnp.where(begins, 1.0, jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_decay), LEAST)))
        decay = jnp.where(token, jnp.where(begins, 0.0, jnp.exp(log_decay)), 1.0)
        h = scanned(decay, jnp.where(token, share * i * u, 0.0), carried(self, "hidden", (len(x), size)))
        carry(self, hidden=h[:, -1])
        y = nn.with_logical_constraint((branch * h).astype(self.dtype), ("batch", "keys", "hidden"))
        return Projection((width,), ("hidden", "embed"), c.bias, self.out_std, name="out", **dtypes)(y)


def _first_decay(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """L with exp(-8 softplus(L)) uniform between FASTEST and SLOWEST."""
    rate = -jnp.log(jax.random.uniform(key, shape, jnp.float32, FASTEST, SLOWEST)) / SHARPNESS
    return jnp.log(jnp.expm1(rate)).astype(dtype)
