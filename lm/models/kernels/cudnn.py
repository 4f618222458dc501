"""Attention by cuDNN, NVIDIA's kernel for GPUs: computed tile by tile, so that no [N, T, S] scores exist.

Keys above a causal diagonal are skipped. Whatever else hides a key (segments, windows, prefixes, blocks) is one array [B, T, S]
in the dtype of the queries, which all heads share: cuDNN knows no segments, and its own packing (offsets of each document) has
no place in `jax.nn`.

Each device holds its rows and heads, and whole rows.

Axes: B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

from typing import Any

import jax

from lm import sharding
from lm.errors import UserError
from lm.models.mask import Mask


def attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, mask: Mask, scale: float, window: int | None = None
) -> jax.Array:
    """`lm.models.attention.attend` without biases, soft caps and dropout, in bfloat16: returns [B, T, N, H]. UserError for an
    odd length, which cuDNN refuses beside a mask, and for a row on several devices."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    if T % 2 or S % 2:
        raise UserError(f"model.kernel='cudnn' takes rows of an even length, not {T} and {S}: change data.*_length")
    if sharding.shards("length") > 1:
        raise UserError("model.kernel='cudnn' needs whole rows on a device: set --config.mesh.sequence=1, or kernel=plain")
    causal = mask.causal and mask.k_prefix is None and T == S

    def local(q: jax.Array, k: jax.Array, v: jax.Array, seen_BTS: jax.Array) -> jax.Array:
        masks: dict[str, Any] = dict(mask=seen_BTS[:, None], is_causal=causal)
        return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn", **masks)

    arguments = (q_BTNH, k_BSKH, v_BSKH, mask.dense(window))
    if jax.sharding.get_abstract_mesh().empty:
        return local(*arguments)
    rows, keys = ("batch", None), ("batch", "keys", sharding.kv_axis(k_BSKH.shape[2]), "head_dim")
    queries = sharding.spec(*rows, "heads", "head_dim")
    specs = (queries, sharding.spec(*keys), sharding.spec(*keys), sharding.spec(*rows, None))
    return jax.shard_map(local, in_specs=specs, out_specs=queries, check_vma=False)(*arguments)
