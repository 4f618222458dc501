"""Attention by splash, the TPU kernel that ships with JAX: computed tile by tile, so that no [T, S] array ever exists.

A `lm.models.mask.Mask` is passed in three ways: segments go to the kernel as they are; causal order and windows form a
static mask, whose empty tiles are skipped; a prefix, which differs from row to row, becomes a dense mask in memory.

Each device holds its rows, heads and queries, and all keys of those rows. With causal rows it holds an early and a late
chunk of the queries, so that all devices do the same work (the zigzag of context parallelism, as in arXiv 2407.21783,
section 3.3.2).
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

TILES = (512, 384, 256, 128)  # the first that divides the places of a device
INTERPRET = False  # on a CPU, for tests


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
    """What `lm.models.attention.attend` gives, without biases and dropout -> [B, T, N, H]."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    mesh, parts = jax.sharding.get_abstract_mesh(), sharding.shards("length")
    zigzag = parts if mask.causal and mask.k_prefix is None else 1
    tile = _tile(T, parts * (2 if zigzag > 1 else 1), "queries"), _tile(S, 1, "keys")
    make = partial(_kernel, tile=tile, softcap=softcap)
    if mask.k_prefix is not None:
        static, cut = None, None
    elif mask.causal or window is not None:
        static, cut = make(_order(mask, T, S, window, zigzag), parts), "sequence"
    else:
        static, cut = make(masks.FullMask((T // parts, S)), 1), None

    def one_row(kernel: Any, q_NTH: jax.Array, k_KSH: jax.Array, v_KSH: jax.Array, segments: Any, prefix: Any) -> jax.Array:
        if kernel is None:
            first = jax.lax.axis_index("sequence") * (T // parts) if parts > 1 else 0
            seen = replace(
                mask, q_segments=segments.q[None], k_segments=segments.kv[None], k_prefix=prefix[None], q_start=first
            )
            kernel = make(seen.dense(window), 1)
        return kernel(q_NTH, k_KSH, v_KSH, segment_ids=segments)

    def local(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, q_segments: jax.Array, k_segments: jax.Array, prefix: Any):
        segments = kernels.SegmentIds(q_segments, k_segments)
        if zigzag > 1:
            q, segments = _exchange(q, parts), segments._replace(q=_exchange(q_segments, parts))
        heads_first = (jnp.swapaxes(x, 1, 2) for x in ((q * scale).astype(q.dtype), k, v))
        rows = jax.vmap(one_row, in_axes=(None, 0, 0, 0, 0, 0))(kernel, *heads_first, segments, prefix)
        y = jnp.swapaxes(rows, 1, 2).astype(q.dtype)
        return _exchange(y, parts, back=True) if zigzag > 1 else y

    prefix = mask.k_prefix
    arguments = (static, q_BTNH, k_BSKH, v_BSKH, mask.q_segments, mask.k_segments, prefix)
    if mesh.empty:
        return local(*arguments)
    queries, keys = sharding.spec("batch", "length"), sharding.spec("batch", "keys")
    many = sharding.spec("batch", "keys", sharding.kv_axis(k_BSKH.shape[2]), "head_dim")
    specs = (
        None if static is None else static.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, cut))),
        sharding.spec("batch", "length", "heads", "head_dim"),
        many,
        many,
        queries,
        keys,
        None if prefix is None else keys,
    )
    return jax.shard_map(local, in_specs=specs, out_specs=specs[1], check_vma=False)(*arguments)


def _kernel(mask: Any, parts: int, *, tile: tuple[int, int], softcap: float | None) -> Any:
    """The kernel of a mask, [1, T, S] of an array or a static one of [T, S], for queries in `parts`."""
    q, k = tile
    backward: dict[str, Any] = dict(block_q_dkv=q, block_kv_dkv=k, block_kv_dkv_compute=k, block_q_dq=q, block_kv_dq=k)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask]) if isinstance(mask, masks.Mask) else mask,
        block_sizes=kernels.BlockSizes(block_q=q, block_kv=k, block_kv_compute=k, **backward),
        head_shards=1,
        q_seq_shards=parts,
        attn_logits_soft_cap=softcap,
        interpret=INTERPRET,
    )
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
        # Of an array's kernel JAX traces this flag as well, and then asks it; it only chooses a name for profiles.
        setattr(kernel, name, getattr(kernel, name)._replace(is_dynamic_mask=None))
    return kernel


class _Corners:
    """Of a static mask: tiles whose corners settle that all or nothing is seen are not looked into.

    The kernel asks for every tile; at 131,072 places that is seconds where it was minutes. `near` and `far` are how many
    places behind a query a key may stand, at least and at most.
    """

    q_sequence: Any  # of the mask: numbers of the queries, in their order
    near: float = 0
    far: float = np.inf

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        queries, keys = self.q_sequence[idx[0]], range(idx[1].start, idx[1].stop)
        least, most = int(queries.min()) - keys[-1], int(queries.max()) - keys[0]
        if self.near <= least and most <= self.far:
            return _uniform(len(queries), len(keys), True)
        if most < self.near or self.far < least:
            return _uniform(len(queries), len(keys), False)
        inside: Any = super()
        return inside.__getitem__(idx)


class _Causal(_Corners, masks.CausalMask):
    """Keys at the query and behind it."""


class _Local(_Corners, masks.LocalMask):
    """Keys of a window."""


@cache
def _uniform(rows: int, columns: int, value: bool) -> np.ndarray:
    array = np.full((rows, columns), value)
    array.setflags(write=False)
    return array


def _order(mask: Mask, queries: int, keys: int, window: int | None, parts: int) -> Any:
    """What `mask` says of places alone; queries in the order in which `_exchange` leaves them."""
    shape = (queries, keys)
    if window is None:
        static: Any = _Causal(shape)
    else:
        behind, ahead = (window - 1, 0) if mask.causal else (window // 2, window // 2)
        static = _Local(shape, (behind, ahead), 0)
        static.near, static.far = -ahead, behind
    chunks = np.arange(queries, dtype=np.int32).reshape(2 * parts, -1)
    if parts > 1:
        static.q_sequence = np.concatenate([chunks[c] for pair in zip(*_homes(parts), strict=True) for c in pair])
    return static


def _homes(parts: int) -> tuple[list[int], list[int]]:
    """The even and the odd chunk of each of `parts` devices: of 2 * parts, device i has chunks i and 2 * parts - 1 - i."""
    both = [(i, 2 * parts - 1 - i) for i in range(parts)]
    return [next(c for c in pair if c % 2 == 0) for pair in both], [next(c for c in pair if c % 2) for pair in both]


def _exchange(x: jax.Array, parts: int, *, back: bool = False) -> jax.Array:
    """Chunks 2 i and 2 i + 1 of axis 1 of device i -> those of `_homes`, or the way back; one even, one odd each time."""
    moved = []
    for half, homes in zip(jnp.split(x, 2, axis=1), _homes(parts), strict=True):
        ways = [(chunk // 2, device) for device, chunk in enumerate(homes)]
        moved.append(jax.lax.ppermute(half, "sequence", [(b, a) for a, b in ways] if back else ways))
    return jnp.concatenate(moved, axis=1)


def _tile(places: int, cuts: int, what: str) -> int:
    size, rest = divmod(places, cuts)
    tile = next((t for t in TILES if size % t == 0), None)
    if rest or tile is None:
        among = f" a device ({places} in {cuts} parts)" if cuts > 1 else ""
        raise UserError(
            f"model.kernel='splash' needs {what} in multiples of 128{among}, not {size}: change data.*_length, or set "
            "--config.model.kernel=plain"
        )
    return tile
