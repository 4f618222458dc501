"""Attention: multi-head, grouped-query and multi-query; self and cross; windows, soft caps, biases, a decoding cache.

Axes: B batch, T query length, S key length, D width, N heads, K kv heads, G = N / K query heads of a kv head, H head dim.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import Dropout, Norm, Projection
from lm.models.mask import Mask, written
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
            y = Projection((count, head_dim), axes, bias=c.bias, std=self.std, name=name, **dtypes)(y)
            if c.qk_norm and name != "value":
                shape, all_heads = y.shape, c.qk_norm_over == "all"
                norm = Norm(c.qk_norm, axis="heads_all" if all_heads else "head_dim", name=f"{name}_norm", **dtypes)
                y = norm(y.reshape(*shape[:-2], -1) if all_heads else y).reshape(shape)
            if rope and positions is not None and name != "value" and not cross:
                y = rotate(y, positions, rope)
            return nn.with_logical_constraint(y, ("batch", "length", axes[1], "head_dim"))

        q = heads("query", c.num_heads, x)
        kv_heads = c.kv_heads
        k, v = self._cached(
            lambda y: (heads("key", kv_heads, y), heads("value", kv_heads, y)), source if cross else x, mask, cross
        )
        options: dict[str, Any] = dict(
            mask=mask,
            scale=c.scale if c.scale is not None else head_dim**-0.5,
            softcap=c.softcap,
            window=None if cross else c.window,
        )
        if self.kernel == "splash" and not self.is_initializing() and not self.is_mutable_collection("cache"):
            from lm.models.kernels import splash  # importing Pallas takes a second

            y = splash.attend(q, k, v, **options)
        else:
            y = attend(q, k, v, bias_NTS=bias, dropout=Dropout(c.dropout), **options)
        return Projection((width,), ("heads", "head_dim", "embed"), c.out_bias, self.out_std, name="out", **dtypes)(y)

    def _cached(self, make, source: jax.Array | None, mask: Mask, cross: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the keys and values of `source`, `make(source)`, read from and written to the cache if there is one."""
        if self.is_initializing() or not self.is_mutable_collection("cache"):
            return make(source)
        if source is None:
            return self.get_variable("cache", "key"), self.get_variable("cache", "value")
        k, v = make(source)
        if not cross:
            shape = (k.shape[0], mask.k_segments.shape[1], *k.shape[2:])
            old = [self.get_variable("cache", n, jnp.zeros(shape, y.dtype)) for n, y in (("key", k), ("value", v))]
            k, v = (written(o, y, mask.q_start) for o, y in zip(old, (k, v), strict=True))
        self.put_variable("cache", "key", k)
        self.put_variable("cache", "value", v)
        return k, v
