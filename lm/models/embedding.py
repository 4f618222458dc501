"""Embedding tables, their lookup on a mesh, and the sum of embeddings that a stack reads.

Axes: B batch, T length, D width, V vocabulary (or the size of any other table).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import Dropout, Norm, Projection, parameter
from lm.models.matmul import affine_transposed
from lm.models.positions import sinusoidal
from lm.models.stem import stem
from lm.sharding import PARAMETERS, divides, shard_map_by_axes, shards
from lm.types import TokenStream

TOKEN_AXES = ("batch", "length")
TABLE_MESH_AXES = PARAMETERS["embed"]  # the mesh axes that shard a table's width


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def embedding_lookup(table: jax.Array, ids: jax.Array, dtype: str, axes: tuple[str, str]) -> jax.Array:
    """Returns rows `ids` [B, T] of a table [V, D] in `dtype`: [B, T, D]. `axes`: logical names of the table's axes.

    Moves whichever is smaller, the table or the activations: gathers the table's width to the tokens, or sends the tokens'
    ids to all shards of the table and the vectors back. Left to itself, XLA looks up the complete batch on every device.
    """
    if not _moves_tokens(table, ids, axes):
        return jnp.take(nn.with_logical_constraint(table.astype(dtype), (axes[0], None)), ids, axis=0)

    def lookup(ids: jax.Array, shard: jax.Array) -> jax.Array:
        all_ids = jax.lax.all_gather(ids, TABLE_MESH_AXES)
        vectors = jnp.take(shard, _row_in_shard(all_ids, len(shard), axes[0]), axis=0, mode="fill", fill_value=0)
        found = jax.lax.all_to_all(vectors, TABLE_MESH_AXES, 0, vectors.ndim - 2).reshape(*ids.shape, -1)
        return jnp.where(((ids >= 0) & (ids < len(table)))[..., None], found, jnp.nan)  # as `jnp.take` out of bounds

    return shard_map_by_axes(lookup, (TOKEN_AXES, axes), (*TOKEN_AXES, None), summed=axes[:1])(ids, table.astype(dtype))


def _moves_tokens(table: jax.Array, ids: jax.Array, axes: tuple[str, str]) -> bool:
    """Whether a device holds fewer tokens than rows of the table, so that moving the tokens is cheaper."""
    if axes[1] != "embed" or shards("embed") == 1 or not divides(ids, TOKEN_AXES):
        return False
    return ids.size // (shards("batch") * shards("length")) < len(table) // shards(axes[0])


def _row_in_shard(ids: jax.Array, rows: int, axis: str) -> jax.Array:
    """Returns the ids' rows in this device's shard of `rows` rows; `rows`, out of bounds, for ids in other shards."""
    local = ids - rows * jax.lax.axis_index("tensor") if shards(axis) > 1 else ids
    return jnp.where((local >= 0) & (local < rows), local, rows)


def _embedding_lookup_forward(table: jax.Array, ids: jax.Array, dtype: str, axes: tuple[str, str]) -> tuple[jax.Array, Any]:
    return embedding_lookup(table, ids, dtype, axes), (table, ids)


def _embedding_lookup_backward(
    dtype: str, axes: tuple[str, str], residuals: Any, gradient: jax.Array
) -> tuple[jax.Array, None]:
    """Returns the table's gradient. A device sums it in the table's dtype; if the table was gathered, sums over devices are
    in `dtype`."""
    table, ids = residuals
    rows = len(table) // shards(axes[0])

    def add(sums: jax.Array, ids: jax.Array, gradient: jax.Array) -> jax.Array:
        return sums.at[_row_in_shard(ids, rows, axes[0])].add(gradient.astype(table.dtype), mode="drop")

    def tokens_moved(ids: jax.Array, gradient: jax.Array) -> jax.Array:
        """Adds one device's tokens at a time: all at once, in float32 with few elements each, would pad to gigabytes of
        tiles on a TPU."""
        parts = gradient.reshape(*ids.shape, shards("embed"), -1)
        all_ids = jax.lax.all_gather(ids, TABLE_MESH_AXES)
        all_parts = jax.lax.all_to_all(parts, TABLE_MESH_AXES, parts.ndim - 2, 0)
        zero = jnp.zeros((rows, parts.shape[-1]), table.dtype)
        return jax.lax.scan(lambda sums, xs: (add(sums, *xs), None), zero, (all_ids, all_parts))[0]

    def table_moved(ids: jax.Array, gradient: jax.Array) -> jax.Array:
        return add(jnp.zeros((rows, gradient.shape[-1]), table.dtype), ids, gradient).astype(dtype)

    inputs = (TOKEN_AXES, (*TOKEN_AXES, None))
    if _moves_tokens(table, ids, axes):
        summed = shard_map_by_axes(tokens_moved, inputs, axes, summed=("batch_by_table",))
    else:
        summed = shard_map_by_axes(table_moved, inputs, (axes[0], None), summed=TOKEN_AXES)
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
        """The tied output layer: x [..., D] times the transposed table, plus bias [V] -> [..., V]."""
        return affine_transposed(x.astype(self.dtype), self.embedding.astype(self.dtype), bias)


class Embed(nn.Module):
    """Sums the embeddings of tokens, positions and types, as the stack has them -> [B, T, D]. A stack with a stem has the
    stem's vectors in place of tokens, and no types.

    Both stacks and a tied head share the token table. It is made only if a stack reads tokens.
    """

    config: config.Model

    def setup(self) -> None:
        m = self.config
        dtypes: dict[str, Any] = dict(dtype=m.dtype, param_dtype=m.param_dtype)
        width, axis = (m.width, "embed") if m.embed.width is None else (m.embed.width, "embed_in")
        self.tokens = Table(m.vocab_size, width, ("vocab", axis), m.embed_init_std, **dtypes) if m.reads_tokens else None
        if m.embed.width is not None:
            self.project = Projection((m.width,), ("embed_in", "embed"), True, m.init_std, name="project", **dtypes)
        if m.embed.types:
            self.types = Table(m.embed.types, width, ("types", axis), m.embed_init_std, **dtypes)
        if m.embed.ahead:
            self.ahead = Table(m.embed.ahead, width, ("position", axis), m.embed_init_std, **dtypes, name="ahead_positions")
        for name in ("encoder", "decoder"):
            stack = getattr(m, name)
            if stack and isinstance(stack.position, config.Learned):
                size = stack.position.max_length + stack.position.offset
                table = Table(size, width, ("position", axis), m.embed_init_std, **dtypes, name=f"{name}_positions")
                setattr(self, f"{name}_positions", table)
            if stack and m.embed.norm:
                setattr(self, f"{name}_norm", Norm(m.embed.norm, axis, **dtypes, name=f"{name}_norm"))
            if stack and stack.stem:
                setattr(self, f"{name}_stem", stem(m, name))
        self.dropout = Dropout(m.embed.dropout)

    def __call__(self, stream: TokenStream, name: str) -> jax.Array:
        """Embeds what the stack `name`, "encoder" or "decoder", reads."""
        m, stack = self.config, getattr(self.config, name)
        x = (
            self._of_tokens(stream, name)
            if stack.stem is None
            else getattr(self, f"{name}_stem")(stream.vectors, stream.segments)
        )
        match stack.position:
            case config.Learned(offset=offset):
                x = x + getattr(self, f"{name}_positions")(stream.positions + offset)
            case config.Sinusoidal():
                x = x + sinusoidal(stream.positions, m.width).astype(x.dtype)
        if m.embed.types and stack.stem is None:
            x = x + self.types(jnp.zeros_like(stream.tokens) if stream.types is None else stream.types)
        if m.embed.ahead and stack.stem is None:
            x = x + self.ahead(stream.positions + 1 if stream.ahead is None else stream.ahead)
        if m.embed.norm:
            x = getattr(self, f"{name}_norm")(x)
        x = self.dropout(x)
        if m.embed.width is not None:
            x = self.project(x)
        return nn.with_logical_constraint(x, ("batch", "length", "embed_act"))

    def _of_tokens(self, stream: TokenStream, name: str) -> jax.Array:
        """The tokens' vectors, [B, T, D], scaled and without those that are dropped."""
        m, table = self.config.embed, self.tokens
        assert table is not None
        x = table(stream.tokens)
        dropped = m.token_dropout_in in ("both", name)
        if m.token_dropout and dropped and self.has_rng("dropout"):
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - m.token_dropout, stream.tokens.shape)
            x = jnp.where(kept[..., None], x, 0)
        return x if m.scale is None else x * jnp.asarray(m.scale, x.dtype)
