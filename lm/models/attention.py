"""Attention in all the forms the trunk knows: MHA, GQA, MQA, self and cross, windows, caps, biases, a decoding cache."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import Dropout, Norm, Projection
from lm.models.mask import Mask
from lm.models.matmul import batched
from lm.models.positions import rotate
from lm.sharding import kv_axis, shards

# Finite, so that a row with nothing to see (padding) becomes a mean instead of NaN; softmax gives exactly 0 beside
# any visible key.
HIDDEN = -1e30


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask,
    bias_NTS: jax.Array | None = None,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    dropout=lambda p: p,
) -> jax.Array:
    """softmax(q k^T * scale + bias) v over the keys that `mask` allows -> [B, T, N, H]; the softmax is in float32.

    Where queries are spread over devices ("length"), each has all keys, gathered, and its own queries in one block.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    places = ("batch", "keys", kv_axis(K), "head_dim")
    k_BSKH, v_BSKH = (nn.with_logical_constraint(x, places) for x in (k_BSKH, v_BSKH))
    # Heads before places: batches of plain matrix products, which a CPU's library takes as they are (1.4x).
    q_BKGTH = jnp.moveaxis((q_BTNH * scale).reshape(B, T, K, N // K, H), 1, 3)
    k_BKSH, v_BKSH = jnp.swapaxes(k_BSKH, 1, 2), jnp.swapaxes(v_BSKH, 1, 2)
    bias_KGTS = bias_NTS.reshape(K, N // K, T, S) if bias_NTS is not None else None
    parts = []
    for rows, keys in mask.blocks(window) if shards("length") == 1 else [(slice(0, T), slice(0, S))]:
        logits = _product(q_BKGTH[..., rows, :], jnp.swapaxes(k_BKSH[:, :, keys], 2, 3)).astype(jnp.float32)
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        if bias_KGTS is not None:
            logits = logits + bias_KGTS[..., rows, keys]
        logits = jnp.where(mask.dense(window, rows, keys)[:, None, None], logits, HIDDEN)
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        y = _product(dropout(weights).astype(v_BSKH.dtype), v_BKSH[:, :, keys])
        parts.append((y / total).astype(y.dtype))
    y_BKGTH = jnp.concatenate(parts, axis=3)
    return jnp.moveaxis(y_BKGTH, 3, 1).reshape(B, T, N, H)


def _product(x_BKGTI: jax.Array, y_BKIJ: jax.Array) -> jax.Array:
    """[B, K, G, T, I] x [B, K, I, J] -> [B, K, G, T, J]: the queries of a group as rows of one matrix, if T is whole."""
    B, K, G, T, I = x_BKGTI.shape
    if shards("length") > 1:
        return jnp.einsum("bkgti,bkij->bkgtj", x_BKGTI, y_BKIJ)
    return batched(x_BKGTI.reshape(B, K, G * T, I), y_BKIJ).reshape(B, K, G, T, -1)


class Attention(nn.Module):
    """x [B, T, D] attends to itself, or to `source` [B, S, D]; returns [B, T, D].

    With a mutable "cache" collection the keys and values of a self-attention are written at `mask.q_start` of a cache
    as long as `mask.k_segments`, and those of a cross-attention are kept from the first call on (`source` None later).
    """

    config: config.Attention
    rope: config.Rope | None = None
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
    kernel: str = "plain"  # `lm.config.Model.kernel`; with a cache, whose queries are few, it is plain

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
        kinds: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def heads(name: str, count: int, y: jax.Array) -> jax.Array:
            kind = "heads" if count == c.num_heads else kv_axis(count)
            axes = ("embed", kind, "head_dim")
            y = Projection((count, head_dim), axes, bias=c.bias, std=self.std, name=name, **kinds)(y)
            if c.qk_norm and name != "value":
                shape, over_all = y.shape, c.qk_norm_over == "all"
                norm = Norm(c.qk_norm, axis="heads_all" if over_all else "head_dim", name=f"{name}_norm", **kinds)
                y = norm(y.reshape(*shape[:-2], -1) if over_all else y).reshape(shape)
            if rope and positions is not None and name != "value" and not cross:
                y = rotate(y, positions, rope)
            return nn.with_logical_constraint(y, ("batch", "length", axes[1], "head_dim"))

        q = heads("query", c.num_heads, x)
        kv_heads = c.kv_heads
        k, v = self._cached(
            lambda y: (heads("key", kv_heads, y), heads("value", kv_heads, y)), source if cross else x, mask, cross
        )
        how: dict[str, Any] = dict(
            mask=mask,
            scale=c.scale if c.scale is not None else head_dim**-0.5,
            softcap=c.softcap,
            window=None if cross else c.window,
        )
        if self.kernel == "splash" and not self.is_initializing() and not self.is_mutable_collection("cache"):
            from lm.models.kernels import splash  # Pallas takes a second to import

            y = splash.attend(q, k, v, **how)
        else:
            y = attend(q, k, v, bias_NTS=bias, dropout=Dropout(c.dropout), **how)
        return Projection((width,), ("heads", "head_dim", "embed"), c.out_bias, self.out_std, name="out", **kinds)(y)

    def _cached(self, make, source: jax.Array | None, mask: Mask, cross: bool) -> tuple[jax.Array, jax.Array]:
        """Keys and values of `source`, through the cache if there is one."""
        if self.is_initializing() or not self.is_mutable_collection("cache"):
            return make(source)
        if source is None:
            return self.get_variable("cache", "key"), self.get_variable("cache", "value")
        k, v = make(source)
        if not cross:
            room = (k.shape[0], mask.k_segments.shape[1], *k.shape[2:])
            old = [self.get_variable("cache", n, jnp.zeros(room, y.dtype)) for n, y in (("key", k), ("value", v))]
            k, v = (jax.lax.dynamic_update_slice_in_dim(o, y, mask.q_start, 1) for o, y in zip(old, (k, v), strict=True))
        self.put_variable("cache", "key", k)
        self.put_variable("cache", "value", v)
        return k, v
