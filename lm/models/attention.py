"""Attention: multi-head, grouped-query and multi-query; self and cross; windows, soft caps, biases, a decoding cache.

Axes: B batch, T query length, S key length, D width, N heads, K kv heads, G = N / K query heads of a kv head, H head dim.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm import config
from lm.models.layers import Dropout, Norm, Projection, parameter
from lm.models.mask import Mask, written, written_ring
from lm.models.matmul import batched_matmul
from lm.models.positions import rotate
from lm.sharding import kv_axis, shards

# The logit of a masked key. Finite, so that a query that sees no key (padding) gets a mean instead of NaN; beside any visible
# key its softmax is exactly 0.
MASKED_LOGIT = -1e30


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask,
    bias_NTS: jax.Array | None = None,  # or one for each row, [B, N, T, S]
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    dropout=lambda p: p,
) -> jax.Array:
    """Returns softmax(q k^T * scale + bias) v over the keys that `mask` allows, [B, T, N, H]; the softmax is in float32.

    If queries are sharded ("length"), each device gathers all keys and computes its queries in one block.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    if bias_NTS is None and shards("length") == 1 and (size := mask.local_block(window)):
        options: dict[str, Any] = dict(scale=scale, softcap=softcap, window=window, dropout=dropout)
        return _attend_locally(q_BTNH, k_BSKH, v_BSKH, mask, size, **options)
    axes = ("batch", "keys", kv_axis(K), "head_dim")
    k_BSKH, v_BSKH = (nn.with_logical_constraint(x, axes) for x in (k_BSKH, v_BSKH))
    # Heads before length gives batches of plain matrix products, which the CPU library accepts as they are (1.4x faster).
    q_BKGTH = jnp.moveaxis((q_BTNH * scale).reshape(B, T, K, N // K, H), 1, 3)
    k_BKSH, v_BKSH = jnp.swapaxes(k_BSKH, 1, 2), jnp.swapaxes(v_BSKH, 1, 2)
    bias_KGTS = bias_NTS.reshape(*bias_NTS.shape[:-3], K, N // K, T, S) if bias_NTS is not None else None
    outputs = []
    for queries, keys in mask.blocks(window) if shards("length") == 1 else [(slice(0, T), slice(0, S))]:
        logits = _grouped_query_matmul(q_BKGTH[..., queries, :], jnp.swapaxes(k_BKSH[:, :, keys], 2, 3)).astype(jnp.float32)
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        if bias_KGTS is not None:
            logits = logits + bias_KGTS[..., queries, keys]
        logits = jnp.where(mask.dense(window, queries, keys)[:, None, None], logits, MASKED_LOGIT)
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        y = _grouped_query_matmul(dropout(weights).astype(v_BSKH.dtype), v_BKSH[:, :, keys])
        outputs.append((y / total).astype(y.dtype))
    y_BKGTH = jnp.concatenate(outputs, axis=3)
    return jnp.moveaxis(y_BKGTH, 3, 1).reshape(B, T, N, H)


def attend_additively(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    score_NH: jax.Array,
    *,
    mask: Mask,
    bias_NTS: jax.Array | None = None,
    softcap: float | None = None,
    window: int | None = None,
    dropout=lambda p: p,
) -> jax.Array:
    """Returns the values weighted by softmax(score^T tanh(q + k) + bias) over the keys that `mask` allows, [B, T, N, H]
    (arXiv 1409.0473, appendix A.1.2). The scores and their softmax are in float32.

    The tanh of all pairs is computed again in the backward pass: kept, it would take H times the memory of the weights.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]

    @jax.checkpoint
    def scores(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k = q.reshape(B, T, 1, K, N // K, H), k[:, None, :, :, None]
        units = jnp.tanh(q.astype(jnp.float32) + k.astype(jnp.float32))  # [B, T, S, K, G, H]
        return jnp.moveaxis(jnp.sum(units * v.reshape(K, N // K, H).astype(jnp.float32), axis=-1), 2, -1)

    logits = scores(q_BTNH, k_BSKH, score_NH)  # [B, T, K, G, S]
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if bias_NTS is not None:
        bias = bias_NTS.reshape(*bias_NTS.shape[:-3], K, N // K, *bias_NTS.shape[-2:])
        logits = logits + jnp.moveaxis(bias, -2, -4)
    logits = jnp.where(mask.dense(window)[:, :, None, None], logits, MASKED_LOGIT)
    weights = dropout(jax.nn.softmax(logits, axis=-1)).astype(v_BSKH.dtype)
    return jnp.einsum("btkgs,bskh->btkgh", weights, v_BSKH).reshape(B, T, N, H)


def _attend_locally(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, size: int, **options: Any) -> jax.Array:
    """`attend` with blocks of `size` queries as the rows of a larger batch, each with the keys of `Mask.local_block`."""
    B, T = q.shape[:2]
    count = -(-T // size)

    def cut(x: jax.Array, fill: int = 0) -> jax.Array:
        """[B, T, ...] -> [B, count, size, ...]"""
        padding = [(0, 0), (0, count * size - T), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x, padding, constant_values=fill).reshape(B, count, size, *x.shape[2:])

    def around(x: jax.Array, fill: int = 0) -> jax.Array:
        """[B, T, ...] -> [B * count, 2 or 3 times size, ...]"""
        x = cut(x, fill)
        none = jnp.full_like(x[:, :1], fill)
        before, after = jnp.concatenate([none, x[:, :-1]], axis=1), jnp.concatenate([x[:, 1:], none], axis=1)
        return rows(jnp.concatenate([before, x] if mask.causal else [before, x, after], axis=2))

    def rows(x: jax.Array) -> jax.Array:
        return x.reshape(B * count, *x.shape[2:])

    # Padding has segments of its own: no query sees its keys.
    local = Mask(rows(cut(mask.q_segments, -2)), around(mask.k_segments, -1), q_start=size, causal=mask.causal)
    y = attend(rows(cut(q)), around(k), around(v), mask=local, **options)
    return y.reshape(B, count * size, *y.shape[2:])[:, :T]


def _grouped_query_matmul(x_BKGTI: jax.Array, y_BKIJ: jax.Array) -> jax.Array:
    """[B, K, G, T, I] @ [B, K, I, J] -> [B, K, G, T, J]. Merges G and T into the rows of one matrix unless T is sharded."""
    B, K, G, T, I = x_BKGTI.shape
    if shards("length") > 1:
        return jnp.einsum("bkgti,bkij->bkgtj", x_BKGTI, y_BKIJ)
    return batched_matmul(x_BKGTI.reshape(B, K, G * T, I), y_BKIJ).reshape(B, K, G, T, -1)


class Attention(nn.Module):
    """x [B, T, D] attends to itself, or if `cross` to `source` [B, S, D]; returns [B, T, D].

    If the collection "cache" is mutable, a self-attention writes its keys and values at index `mask.q_start` of a cache of
    the length of `mask.k_segments`; a cross-attention stores them in the first call and reads them when `source` is None.
    """

    config: config.Attention
    rope: config.Rope | None = None
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
    kernel: str = "plain"  # `lm.config.Model.kernel`; ignored with a cache, which has few queries

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: Mask,
        positions: jax.Array | None = None,
        bias: jax.Array | None = None,
        source: jax.Array | None = None,
        cross: bool = False,
    ) -> jax.Array:
        c, width = self.config, x.shape[-1]
        head_dim, rope = c.size(width), c.rope or self.rope
        dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def heads(name: str, count: int, y: jax.Array) -> jax.Array:
            axes = ("embed", "heads" if count == c.num_heads else kv_axis(count), "head_dim")
            bias = c.bias and (c.key_bias or name != "key")
            y = Projection((count, head_dim), axes, bias=bias, std=self.std, name=name, **dtypes)(y)
            if c.qk_norm and name != "value":
                shape, all_heads = y.shape, c.qk_norm_over == "all"
                norm = Norm(c.qk_norm, axis="heads_all" if all_heads else "head_dim", name=f"{name}_norm", **dtypes)
                y = norm(y.reshape(*shape[:-2], -1) if all_heads else y).reshape(shape)
            if rope and positions is not None and name != "value" and not cross:
                y = rotate(y, positions, rope)
            return checkpoint_name(nn.with_logical_constraint(y, ("batch", "length", axes[1], "head_dim")), "qkv")

        q = heads("query", c.num_heads, x)
        kv_heads = c.kv_heads
        k, v, mask = self._cached(
            lambda y: (heads("key", kv_heads, y), heads("value", kv_heads, y)), source if cross else x, mask, cross
        )
        options: dict[str, Any] = dict(
            mask=mask,
            scale=c.scale if c.scale is not None else head_dim**-0.5,
            softcap=c.softcap,
            window=None if cross else c.window,
        )
        kernel = "plain" if self.is_initializing() or self.is_mutable_collection("cache") else self.kernel
        if kernel == "splash":
            from lm.models.kernels import splash  # importing Pallas takes a second

            y = splash.attend(q, k, v, **options)
        elif kernel == "cudnn":
            from lm.models.kernels import cudnn

            del options["softcap"]  # refused by the config
            y = checkpoint_name(cudnn.attend(q, k, v, **options), "attention")
        elif c.score == "additive":
            init = nn.initializers.normal(head_dim**-0.5)
            v_NH = parameter(self, "score", init, (c.num_heads, head_dim), ("heads", "head_dim"), self.param_dtype)
            del options["scale"]
            y = attend_additively(q, k, v, v_NH, bias_NTS=bias, dropout=Dropout(c.dropout), **options)
        else:
            y = checkpoint_name(attend(q, k, v, bias_NTS=bias, dropout=Dropout(c.dropout), **options), "attention")
        return Projection((width,), ("heads", "head_dim", "embed"), c.out_bias, self.out_std, name="out", **dtypes)(y)

    def _cached(self, make, source: jax.Array | None, mask: Mask, cross: bool) -> tuple[jax.Array, jax.Array, Mask]:
        """Returns the keys and values of `source`, `make(source)`, read from and written to the cache if there is one, and
        their mask.

        There they are [B, K, S, H], as `attend` multiplies them, so that no step of decoding transposes the cache. They stay in
        the form in which they were allocated: of any float dtype, or int8 with a scale for each vector; a cache of fewer places
        than the mask has keys is a ring.
        """
        if self.is_initializing() or not self.is_mutable_collection("cache"):
            return *make(source), mask
        names = ("key", "value")
        if source is not None:
            made = [jnp.swapaxes(y, 1, 2) for y in make(source)]
            if cross:
                self._keep(dict(zip(names, made, strict=True)))
            else:
                B, K, _, H = made[0].shape
                empty = jnp.zeros((B, K, mask.k_segments.shape[1], H), made[0].dtype)
                old = [self.get_variable("cache", name, empty) for name in names]
                ring = old[0].shape[2] < mask.k_segments.shape[1]
                write = partial(written_ring if ring else written, start=mask.q_start, axis=2)
                new: dict[str, jax.Array] = {}
                for name, o, y in zip(names, old, made, strict=True):
                    if (scale := self.get_variable("cache", f"{name}_scale")) is not None:
                        y, scale_y = quantised(y)
                        new[f"{name}_scale"] = write(scale, scale_y)
                    new[name] = write(o, y.astype(o.dtype))
                # Without the barrier XLA repeats the write inside of what multiplies the cache, and copies the cache for it.
                self._keep(jax.lax.optimization_barrier(new))
                mask = mask.ring(old[0].shape[2]) if ring else mask
        k, v = (jnp.swapaxes(self._kept(name), 1, 2) for name in names)
        return k, v, mask

    def _keep(self, arrays: dict[str, jax.Array]) -> None:
        for name, x in arrays.items():
            self.put_variable("cache", name, x)

    def _kept(self, name: str) -> jax.Array:
        """[B, K, S, H] in the dtype of the computation."""
        x, scale = self.get_variable("cache", name), self.get_variable("cache", f"{name}_scale")
        return x.astype(self.dtype) if scale is None else (x * scale[..., None]).astype(self.dtype)


def quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Vectors [..., H] as int8 [..., H] with a float32 scale [...] each: the largest element is 127 times the scale."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1.0)[..., None]).astype(jnp.int8), scale
