"""The small parts: projection, norm, embedding, feed-forward. Axis letters stand in `lm.types`.

Every parameter names its axes where it is made; `lm.sharding` says what a name means on a mesh. Dropout is on exactly
when the caller gives a "dropout" rng, so there is no train flag to pass along.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.matmul import affine
from lm.sharding import PARAMETERS, divides, shard_map_by_axes, shards

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
}


def parameter(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...], axes: tuple[str, ...], dtype: str
) -> jax.Array:
    """A parameter of `module` whose axes have logical names."""
    value: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.dtype(dtype))
    return value


class Projection(nn.Module):
    """x [..., *inputs] -> [..., *outputs]: its last axes contracted with a kernel of shape inputs + outputs."""

    outputs: tuple[int, ...]
    axes: tuple[str, ...]  # logical names of the kernel's axes, inputs first
    bias: bool = False
    std: float | None = None  # of the initial kernel; None: fan-in ** -0.5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[x.ndim - (len(self.axes) - len(self.outputs)) :]
        init = nn.initializers.normal(self.std if self.std is not None else math.prod(inputs) ** -0.5)
        shape = (*inputs, *self.outputs)
        kernel = parameter(self, "kernel", init, shape, self.axes, self.param_dtype)
        bias = None
        if self.bias:
            axes = self.axes[len(inputs) :]
            bias = parameter(self, "bias", nn.initializers.zeros, self.outputs, axes, self.param_dtype)
            bias = bias.astype(jnp.float32)
        return affine(x.astype(self.dtype), kernel.astype(self.dtype), bias, contracted=len(inputs))


class Norm(nn.Module):
    """Layer norm (arXiv 1607.06450) or root-mean-square norm (arXiv 1910.07467) over the last axis, in float32."""

    config: config.Norm
    axis: str = "embed"
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, axes = (x.shape[-1],), (self.axis,)
        init = nn.initializers.zeros if self.config.unit_offset else nn.initializers.ones
        scale = parameter(self, "scale", init, shape, axes, self.param_dtype).astype(jnp.float32)
        if self.config.unit_offset:
            scale = 1.0 + scale
        y = x.astype(jnp.float32)
        if self.config.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.eps) * scale
        if self.config.kind == "layer" and self.config.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, shape, axes, self.param_dtype)
            y = y + bias.astype(jnp.float32)
        return y.astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def embedding_lookup(table: jax.Array, ids: jax.Array, dtype: str, axes: tuple[str, str]) -> jax.Array:
    """Rows `ids` [B, T] of a table whose axes have these names, in `dtype`: [B, T, D].

    What is less travels: the table to the tokens, or the tokens to all parts of the table and their vectors back. A
    partitioner, left to itself, makes the look-up of the whole batch on every device.
    """
    if not _tokens_travel(table, ids, axes):
        return jnp.take(nn.with_logical_constraint(table.astype(dtype), (axes[0], None)), ids, axis=0)

    def look(ids: jax.Array, part: jax.Array) -> jax.Array:
        every = jax.lax.all_gather(ids, PARTS)
        vectors = jnp.take(part, _own_rows(every, len(part), axes[0]), axis=0, mode="fill", fill_value=0)
        found = jax.lax.all_to_all(vectors, PARTS, 0, vectors.ndim - 2).reshape(*ids.shape, -1)
        return jnp.where(((ids >= 0) & (ids < len(table)))[..., None], found, jnp.nan)  # an id that is none

    return shard_map_by_axes(look, (PLACE, axes), (*PLACE, None), summed=axes[:1])(ids, table.astype(dtype))


PLACE = ("batch", "length")
PARTS = PARAMETERS["embed"]


def _tokens_travel(table: jax.Array, ids: jax.Array, axes: tuple[str, str]) -> bool:
    if axes[1] != "embed" or shards("embed") == 1 or not divides(ids, PLACE):
        return False
    return ids.size // (shards("batch") * shards("length")) < len(table) // shards(axes[0])


def _own_rows(ids: jax.Array, rows: int, axis: str) -> jax.Array:
    """Places in this device's part, `rows` of a table's first axis; what is another's gets `rows`, which is nowhere."""
    at = ids - rows * jax.lax.axis_index("tensor") if shards(axis) > 1 else ids
    return jnp.where((at >= 0) & (at < rows), at, rows)


def _embedding_lookup_forward(table: jax.Array, ids: jax.Array, dtype: str, axes: tuple[str, str]) -> tuple[jax.Array, Any]:
    return embedding_lookup(table, ids, dtype, axes), (table, ids)


def _embedding_lookup_backward(dtype: str, axes: tuple[str, str], kept: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    """The gradient is summed in the table's own precision on a device; a whole table's, between devices, in `dtype`."""
    table, ids = kept
    rows = len(table) // shards(axes[0])

    def add(sums: jax.Array, ids: jax.Array, gradient: jax.Array) -> jax.Array:
        return sums.at[_own_rows(ids, rows, axes[0])].add(gradient.astype(table.dtype), mode="drop")

    def exchanged(ids: jax.Array, gradient: jax.Array) -> jax.Array:
        """A device's tokens after the other's: all in float32 at once, few numbers each, would fill gigabytes of tiles."""
        parts = gradient.reshape(*ids.shape, shards("embed"), -1)
        every = jax.lax.all_gather(ids, PARTS), jax.lax.all_to_all(parts, PARTS, parts.ndim - 2, 0)
        zero = jnp.zeros((rows, parts.shape[-1]), table.dtype)
        return jax.lax.scan(lambda sums, xs: (add(sums, *xs), None), zero, every)[0]

    def whole(ids: jax.Array, gradient: jax.Array) -> jax.Array:
        return add(jnp.zeros((rows, gradient.shape[-1]), table.dtype), ids, gradient).astype(dtype)

    if _tokens_travel(table, ids, axes):
        summed = shard_map_by_axes(exchanged, (PLACE, (*PLACE, None)), axes, summed=("batch_by_table",))
    else:
        summed = shard_map_by_axes(whole, (PLACE, (*PLACE, None)), (axes[0], None), summed=PLACE)
    return summed(ids, gradient).astype(table.dtype), None


embedding_lookup.defvjp(_embedding_lookup_forward, _embedding_lookup_backward)


class Table(nn.Module):
    """Vectors by index: int32 [...] -> [..., D]."""

    size: int
    width: int
    axes: tuple[str, str]
    std: float
    dtype: str = "float32"
    param_dtype: str = "float32"

    def setup(self) -> None:
        init, shape = nn.initializers.normal(self.std), (self.size, self.width)
        self.embedding = parameter(self, "embedding", init, shape, self.axes, self.param_dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return embedding_lookup(self.embedding, ids, self.dtype, self.axes)

    def attend(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """x [..., D] -> its products with every vector, plus bias [V]: [..., V], the tied output layer."""
        return affine(x.astype(self.dtype), self.embedding.T.astype(self.dtype), bias)


class Dropout(nn.Module):
    """Zeroes a share `rate` of x and scales the rest, if a "dropout" rng was given."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.rate, deterministic=not self.has_rng("dropout"))(x) if self.rate else x


class Mlp(nn.Module):
    """x [..., D] -> act(x W) V, or gated: (act(x W) * x U) V (GLU variants, arXiv 2002.05202).

    `real`, which tokens are text, makes no difference here: every token is on its own.
    """

    config: config.Mlp
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        c, width = self.config, x.shape[-1]
        kinds: dict[str, Any] = dict(bias=c.bias, dtype=self.dtype, param_dtype=self.param_dtype)
        hidden = Projection((c.hidden,), ("embed", "hidden"), std=self.std, name="up", **kinds)(x)
        hidden = ACTIVATIONS[c.activation](hidden.astype(jnp.float32)).astype(self.dtype)
        if c.gated:
            hidden = hidden * Projection((c.hidden,), ("embed", "hidden"), std=self.std, name="gate", **kinds)(x)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "hidden"))
        hidden = Dropout(c.dropout)(hidden)
        return Projection((width,), ("hidden", "embed"), std=self.out_std, name="down", **kinds)(hidden)
