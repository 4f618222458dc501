"""Mamba-2: a linear recurrence with one decay for each head and token, in chunks of matrix products (arXiv 2405.21060).

Axes: B batch, T length, D width, N heads, P units of a head, G groups of heads, R = N / G heads of a group, M numbers that each
unit remembers (the paper's N), C chunks, Q tokens of a chunk; S those tokens as what is read, Q as what reads.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import Projection, parameter
from lm.models.mixers.common import Convolution, Rows, carried, carry

DECAYS = 1.0, 16.0  # between which A begins, uniformly
STEPS = 1e-3, 0.1  # between which the steps begin, uniformly in their logarithm


def chunked(
    x_BTGRP: jax.Array,
    step_BTGR: jax.Array,
    log_decay_BTGR: jax.Array,
    b_BTGM: jax.Array,
    c_BTGM: jax.Array,
    begins_BT: jax.Array,
    state_BGRPM: jax.Array,
    *,
    size: int,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Returns y [B, T, G, R, P] and the last state, float32: state[t] = decay[t] state[t - 1] + step[t] x[t] b[t]^T, where the
    state before a token that `begins` is 0, and y[t] = state[t] c[t].

    Within chunks of `size` tokens it is attention with decays for weights; one state goes from chunk to chunk (section 6).
    """
    length = x_BTGRP.shape[1]
    size = min(size, length)
    count = -(-length // size)

    def cut(x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [B, C, Q, ...]; what is added has no step and no decay."""
        padded = jnp.pad(x, [(0, 0), (0, count * size - length), *[(0, 0)] * (x.ndim - 2)])
        return padded.reshape(len(x), count, size, *x.shape[2:])

    x, step, b, c = (cut(y) for y in (x_BTGRP, step_BTGR, b_BTGM, c_BTGM))
    total = jnp.cumsum(cut(log_decay_BTGR), axis=2)  # from the chunk's start up to each token
    document = jnp.cumsum(cut(begins_BT), axis=2)  # documents that began in the chunk
    added = (x * step[..., None]).astype(dtype)
    b, c = b.astype(dtype), c.astype(dtype)

    same = (document[:, :, :, None] == document[:, :, None, :]) & jnp.tril(jnp.ones((size, size), bool))  # [B, C, Q, S]
    gap = total[:, :, :, None] - total[:, :, None]
    decay = jnp.exp(jnp.where(same[..., None, None], gap, -jnp.inf))  # [B, C, Q, S, G, R]
    scores = jnp.einsum("bcqgm,bcsgm->bcqsg", c, b).astype(jnp.float32)[..., None] * decay
    y = jnp.einsum("bcqsgr,bcsgrp->bcqgrp", scores.astype(dtype), added).astype(jnp.float32)

    last = (document == document[:, :, -1:])[..., None, None]
    to_end = jnp.exp(jnp.where(last, total[:, :, -1:] - total, -jnp.inf))
    made = jnp.einsum("bcsgrp,bcsgm->bcgrpm", (added * to_end[..., None]).astype(dtype), b).astype(jnp.float32)
    first = (document == 0)[..., None, None]
    from_start = jnp.exp(jnp.where(first, total, -jnp.inf))

    def go_on(state: jax.Array, of_chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, made = of_chunk
        return state * kept[..., None, None] + made, state

    state, before = jax.lax.scan(go_on, state_BGRPM, (jnp.moveaxis(from_start[:, :, -1], 1, 0), jnp.moveaxis(made, 1, 0)))
    before = jnp.moveaxis(before, 0, 1).astype(dtype)
    y = y + from_start[..., None] * jnp.einsum("bcqgm,bcgrpm->bcqgrp", c, before).astype(jnp.float32)
    return y.reshape(len(x), count * size, *y.shape[3:])[:, :length], state


class Mamba2(nn.Module):
    """x [B, T, D] -> norm(y * silu(x Z)) V, [B, T, D], where y is the recurrence over silu(conv(x U)) plus a share of these.

    The norm is an RMS norm over the units of each group, in float32.
    """

    config: config.Mamba2
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, rows: Rows) -> jax.Array:
        c, width, (B, T, _) = self.config, x.shape[-1], x.shape
        heads, P, G, M = c.num_heads(width), c.head_dim, c.groups, c.state
        R, dtypes = heads // G, dict[str, Any](dtype=self.dtype, param_dtype=self.param_dtype)
        of_head, of_group = ("heads", "head_dim"), ("kv_head", "head_dim")

        def made(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
            y = Projection(shape, ("embed", *axes), std=self.std, name=name, **dtypes)(x)
            return nn.with_logical_constraint(y, ("batch", "keys", *axes))

        def convolved(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
            return nn.silu(Convolution(c.conv, axes, self.param_dtype, name=f"{name}_conv")(made(name, shape, axes), rows))

        def of_heads(name: str, init: Any) -> jax.Array:
            return parameter(self, name, init, (heads,), ("heads",), self.param_dtype).astype(jnp.float32)

        gate, u = made("gate", (heads, P), of_head), convolved("up", (heads, P), of_head)
        b, read = convolved("b", (G, M), of_group), convolved("c", (G, M), of_group)
        step = made("step", (heads,), ("heads",)).astype(jnp.float32) + of_heads("step_bias", _first_step)
        step = jnp.where(rows.token[..., None], nn.softplus(step), 0.0)
        log_decay = -jnp.exp(of_heads("decay", _first_decay)) * step
        grouped = lambda y: y.reshape(B, T, G, R, *y.shape[3:])
        state = carried(self, "state", (B, G, R, P, M))
        inputs = (grouped(u), grouped(step), grouped(log_decay), b, read, rows.begins, state)
        y, state = chunked(*inputs, size=c.chunk, dtype=self.dtype)
        carry(self, state=state)
        y = y.reshape(u.shape) + of_heads("skip", nn.initializers.ones)[:, None] * u
        y = (y * nn.silu(gate.astype(jnp.float32))).reshape(B, T, G, R * P)
        y = (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + c.eps)).reshape(u.shape)
        y = (y * parameter(self, "scale", nn.initializers.ones, (heads, P), of_head, self.param_dtype)).astype(self.dtype)
        y = nn.with_logical_constraint(y, ("batch", "keys", *of_head))
        return Projection((width,), (*of_head, "embed"), std=self.out_std, name="out", **dtypes)(y)


def _first_decay(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """log A."""
    return jnp.log(jax.random.uniform(key, shape, jnp.float32, *DECAYS)).astype(dtype)


def _first_step(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """What softplus makes a step of."""
    low, high = (jnp.log(x) for x in STEPS)
    step = jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high))
    return (step + jnp.log(-jnp.expm1(-step))).astype(dtype)
