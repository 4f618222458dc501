"""LSTM and GRU: one step after the other, with a matrix from the hidden vector to the gates.

Axes: B batch, T length, D width, H units.

Their units are not split over devices, since each step would gather them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import Projection, parameter
from lm.models.matmul import affine
from lm.models.mixers.common import Kernel, Rows, carried, carry

States = tuple[jax.Array, ...]  # float32 [B, H] each; the hidden vector first


def _stepped(cell: Callable[[States, jax.Array], States], states: States, inputs: jax.Array, rows: Rows) -> Any:
    """Returns the states after all tokens, and the hidden vectors float32 [B, T, H]. `cell` takes what the input [B, ...] of a
    token adds to the gates."""

    def step(states: States, token: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[States, jax.Array]:
        x, begins, counts = token
        new = cell(tuple(jnp.where(begins[:, None], 0.0, s) for s in states), x)
        states = tuple(jnp.where(counts[:, None], n, s) for n, s in zip(new, states, strict=True))
        return states, states[0]

    of_time = [jnp.moveaxis(y, 1, 0) for y in (inputs, rows.begins, rows.token)]
    states, hidden = jax.lax.scan(step, states, (of_time[0], of_time[1], of_time[2]))
    return states, jnp.moveaxis(hidden, 0, 1)


class _Cell(nn.Module):
    config: config.Lstm | config.Gru
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    def size(self, x: jax.Array) -> int:
        return self.config.size(x.shape[-1])

    def gates(self, x: jax.Array, count: int) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """Returns what the inputs add to the gates, float32 [B, T, gates, H], and a function from the hidden vector [B, H] to
        what it adds, [B, gates, H]."""
        size, axes = self.size(x), ("embed", "gates", "head_dim")
        options: dict[str, Any] = dict(std=self.std, param_dtype=self.param_dtype)
        inputs = Projection((count, size), axes, dtype=self.dtype, name="in", **options)(x).astype(jnp.float32)
        bias = parameter(self, "bias", self.first_bias, (count, size), axes[1:], self.param_dtype)
        kernel = Kernel((size, count, size), axes, size, name="recurrent", **options)().astype(self.dtype)
        return inputs + bias, lambda h: affine(h.astype(self.dtype), kernel).astype(jnp.float32)

    @staticmethod
    def first_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The bias at the start, [gates, H]."""
        return jnp.zeros(shape, dtype)

    def out(self, hidden: jax.Array, width: int) -> jax.Array:
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        return Projection((width,), ("hidden", "embed"), std=self.out_std, name="out", **options)(hidden.astype(self.dtype))


class Lstm(_Cell):
    """x [B, T, D] -> [B, T, D]. Gates are in the order of torch: input, forget, cell, output.

    i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b); c = f c + i g; h = o tanh(c); y = h V.
    """

    @staticmethod
    def first_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """1 for the forget gate, so that a new layer remembers (Jozefowicz et al., ICML 2015, section 2.1)."""
        return jnp.zeros(shape, dtype).at[1].set(1)

    @nn.compact
    def __call__(self, x: jax.Array, rows: Rows) -> jax.Array:
        inputs, recurrent = self.gates(x, 4)
        shape = (len(x), self.size(x))

        def cell(states: States, x: jax.Array) -> States:
            h, c = states
            i, f, g, o = jnp.moveaxis(x + recurrent(h), 1, 0)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            return nn.sigmoid(o) * jnp.tanh(c), c

        (h, c), hidden = _stepped(cell, (carried(self, "hidden", shape), carried(self, "cell", shape)), inputs, rows)
        carry(self, hidden=h, cell=c)
        return self.out(hidden, x.shape[-1])


class Gru(_Cell):
    """x [B, T, D] -> [B, T, D]. Gates are in the order of torch: reset, update, new.

    r, z = sigmoid(W x + U h + b), n = tanh(W x + b + r (U h + c)); h = (1 - z) n + z h; y = h V.
    """

    @nn.compact
    def __call__(self, x: jax.Array, rows: Rows) -> jax.Array:
        inputs, recurrent = self.gates(x, 3)
        size = self.size(x)
        bias = parameter(self, "recurrent_bias", nn.initializers.zeros, (size,), ("head_dim",), self.param_dtype)

        def cell(states: States, x: jax.Array) -> States:
            (h,), (own, from_h) = states, (x, recurrent(states[0]))
            r, z = (nn.sigmoid(own[:, k] + from_h[:, k]) for k in range(2))
            n = jnp.tanh(own[:, 2] + r * (from_h[:, 2] + bias))
            return ((1 - z) * n + z * h,)

        (h,), hidden = _stepped(cell, (carried(self, "hidden", (len(x), size)),), inputs, rows)
        carry(self, hidden=h)
        return self.out(hidden, x.shape[-1])
