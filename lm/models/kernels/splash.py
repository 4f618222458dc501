"""Attention by splash, the TPU kernel that ships with JAX: computed tile by tile, so that no [T, S] array ever exists.

A `lm.models.mask.Mask` is passed in three ways: segments go to the kernel as they are; causal order and windows form a
static mask, whose empty tiles are skipped; a prefix or blocks, which differ from row to row, become a dense mask in memory.

Each device holds its rows, heads and queries, and all keys of those rows. With causal rows it holds an early and a late
chunk of the queries, so that all devices do the same work (the zigzag of context parallelism, as in arXiv 2407.21783,
section 3.3.2).

Axes: B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from lm import sharding
from lm.errors import UserError
from lm.models.mask import Mask

TILES = (512, 384, 256, 128)  # tile sizes; the first that divides a device's queries or keys is taken
# The backward kernel computes the three gradients of a tile in one pass, by five products; one kernel for the queries and one
# for the keys would take seven. It writes the queries' gradient once for each part of the keys, and the parts are then summed.
# Joining tiles of keys makes fewer parts, which take less memory: up to four, since a v5e has no on-chip memory for more. But a
# part that is visible only here and there is computed whole, so tiles are joined only if this many parts are left.
PARTS = 32
INTERPRET = False  # tests set it, to run on a CPU


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> jax.Array:
    """`lm.models.attention.attend` without biases and dropout: returns [B, T, N, H]."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    mesh, shards = jax.sharding.get_abstract_mesh(), sharding.shards("length")
    zigzag = shards if mask.causal and mask.k_prefix is None else 1  # in how many shards queries are reordered
    tile = _tile_size(T, shards * (2 if zigzag > 1 else 1), "queries"), _tile_size(S, 1, "keys")
    make = partial(_make_kernel, tile=tile, softcap=softcap)
    rows_differ = mask.k_prefix is not None or mask.k_blocks is not None
    if rows_differ:
        static, mesh_axis = None, None
    elif mask.causal or window is not None:
        static, mesh_axis = make(_static_mask(mask, T, S, window, zigzag), shards), "sequence"
    else:
        static, mesh_axis = make(masks.FullMask((T // shards, S)), 1), None

    def one_row(kernel: Any, q_NTH: jax.Array, k_KSH: jax.Array, v_KSH: jax.Array, segments: Any, each: Any) -> jax.Array:
        if kernel is None:
            first = jax.lax.axis_index("sequence") * (T // shards) if shards > 1 else 0
            arrays = {name: None if array is None else array[None] for name, array in each.items()}
            row_mask = replace(mask, q_segments=segments.q[None], k_segments=segments.kv[None], q_start=first, **arrays)
            kernel = make(row_mask.dense(window), 1)
        return kernel(q_NTH, k_KSH, v_KSH, segment_ids=segments)

    def local(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, q_segments: jax.Array, k_segments: jax.Array, each: Any):
        segments = kernels.SegmentIds(q_segments, k_segments)
        if zigzag > 1:
            q, segments = _to_zigzag(q, shards), segments._replace(q=_to_zigzag(q_segments, shards))
        heads_first = (jnp.swapaxes(x, 1, 2) for x in ((q * scale).astype(q.dtype), k, v))
        rows = jax.vmap(one_row, in_axes=(None, 0, 0, 0, 0, 0))(kernel, *heads_first, segments, each)
        y = jnp.swapaxes(rows, 1, 2).astype(q.dtype)
        return _to_zigzag(y, shards, inverse=True) if zigzag > 1 else y

    each = {"k_prefix": mask.k_prefix, "q_blocks": mask.q_blocks, "k_blocks": mask.k_blocks}  # arrays of a row, or None
    arguments = (static, q_BTNH, k_BSKH, v_BSKH, mask.q_segments, mask.k_segments, each)
    if mesh.empty:
        return local(*arguments)
    queries, keys = sharding.spec("batch", "length"), sharding.spec("batch", "keys")
    key_heads = sharding.spec("batch", "keys", sharding.kv_axis(k_BSKH.shape[2]), "head_dim")
    specs = (
        None if static is None else static.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, mesh_axis))),
        sharding.spec("batch", "length", "heads", "head_dim"),
        key_heads,
        key_heads,
        queries,
        keys,
        {name: None if each[name] is None else spec for name, spec in zip(each, (keys, queries, keys), strict=True)},
    )
    return jax.shard_map(local, in_specs=specs, out_specs=specs[1], check_vma=False)(*arguments)


def _make_kernel(mask: Any, shards: int, *, tile: tuple[int, int], softcap: float | None) -> Any:
    """Returns the kernel for a dense mask (bool [1, T, S]) or a static one ([T, S]), with queries in `shards` shards."""
    q, k = tile
    keys = mask.shape[-1]
    loaded = next(n for n in (4 * k, 2 * k, k) if n == k or (keys % n == 0 and keys // n >= PARTS))
    backward: dict[str, Any] = dict(block_q_dkv=q, block_kv_dkv=loaded, block_kv_dkv_compute=k, use_fused_bwd_kernel=True)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask]) if isinstance(mask, masks.Mask) else mask,
        block_sizes=kernels.BlockSizes(block_q=q, block_kv=k, block_kv_compute=k, **backward),
        head_shards=1,
        q_seq_shards=shards,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="attention",
        interpret=INTERPRET,
    )
    for name in ("fwd_mask_info", "dkv_mask_info"):
        # With a dense mask JAX traces this flag and then branches on it, which fails. It only chooses a name for profiles.
        setattr(kernel, name, getattr(kernel, name)._replace(is_dynamic_mask=None))
    return kernel


class _UniformTiles:
    """Makes a static mask return a constant tile if the corners show that all of it, or none, is visible.

    The kernel reads every tile when it is made; at a length of 131,072 that takes seconds instead of minutes. A key is visible
    if query index - key index is from `nearest` to `farthest`.
    """

    q_sequence: Any  # the mask's indices of the queries, in their order
    nearest: float = 0
    farthest: float = np.inf

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        queries, keys = self.q_sequence[idx[0]], range(idx[1].start, idx[1].stop)
        least, most = int(queries.min()) - keys[-1], int(queries.max()) - keys[0]
        if self.nearest <= least and most <= self.farthest:
            return _constant_tile(len(queries), len(keys), True)
        if most < self.nearest or self.farthest < least:
            return _constant_tile(len(queries), len(keys), False)
        parent: Any = super()
        return parent.__getitem__(idx)


class _Causal(_UniformTiles, masks.CausalMask):
    """Keys up to the query."""


class _Local(_UniformTiles, masks.LocalMask):
    """Keys of a window."""


@cache
def _constant_tile(rows: int, columns: int, value: bool) -> np.ndarray:
    array = np.full((rows, columns), value)
    array.setflags(write=False)
    return array


def _static_mask(mask: Mask, queries: int, keys: int, window: int | None, shards: int) -> Any:
    """Returns the part of `mask` that depends on indices alone, [queries, keys], with queries in the order of `_to_zigzag`."""
    shape = (queries, keys)
    if window is None:
        static: Any = _Causal(shape)
    else:
        behind, ahead = (window - 1, 0) if mask.causal else (window // 2, window // 2)
        static = _Local(shape, (behind, ahead), 0)
        static.nearest, static.farthest = -ahead, behind
    chunks = np.arange(queries, dtype=np.int32).reshape(2 * shards, -1)
    if shards > 1:
        static.q_sequence = np.concatenate([chunks[c] for pair in zip(*_zigzag_chunks(shards), strict=True) for c in pair])
    return static


def _zigzag_chunks(shards: int) -> tuple[list[int], list[int]]:
    """Returns the even and the odd chunk of each device. Of 2 * shards chunks, device i holds i and 2 * shards - 1 - i."""
    both = [(i, 2 * shards - 1 - i) for i in range(shards)]
    return [next(c for c in pair if c % 2 == 0) for pair in both], [next(c for c in pair if c % 2) for pair in both]


def _to_zigzag(x: jax.Array, shards: int, *, inverse: bool = False) -> jax.Array:
    """Moves chunks of axis 1 from row order, where device i holds 2 i and 2 i + 1, to `_zigzag_chunks`, or back (`inverse`).

    Either way a device sends one even and one odd chunk, so two permutations suffice.
    """
    moved = []
    for half, chunks in zip(jnp.split(x, 2, axis=1), _zigzag_chunks(shards), strict=True):
        pairs = [(chunk // 2, device) for device, chunk in enumerate(chunks)]  # (from, to)
        moved.append(jax.lax.ppermute(half, "sequence", [(b, a) for a, b in pairs] if inverse else pairs))
    return jnp.concatenate(moved, axis=1)


def _tile_size(length: int, parts: int, what: str) -> int:
    """Returns the tile size for `length` queries or keys in `parts` equal parts; UserError if none divides them."""
    size, rest = divmod(length, parts)
    tile = next((t for t in TILES if size % t == 0), None)
    if rest or tile is None:
        among = f" a device ({length} in {parts} parts)" if parts > 1 else ""
        raise UserError(
            f"model.kernel='splash' needs {what} in multiples of 128{among}, not {size}: change data.*_length, or set "
            "--config.model.kernel=plain"
        )
    return tile
