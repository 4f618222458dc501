"""Which keys a query may attend to, described by a few small arrays; the dense mask is built a block at a time.

Axes: B batch, T query length, S key length.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

# Causal attention is computed in blocks of at least MIN_BLOCK queries, and in at most MAX_BLOCKS blocks a row.
MIN_BLOCK, MAX_BLOCKS = 256, 8


def written(old: jax.Array, new: jax.Array, start: jax.Array | int, axis: int = 1) -> jax.Array:
    """`old` [B, ..., S, ...] with `new` [B, ..., T, ...] from index `start` of `axis` on, one for all rows or int32 [B]: a
    cache that grows."""
    if jnp.ndim(start) == 0:
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis)
    return jax.vmap(lambda o, n, i: jax.lax.dynamic_update_slice_in_dim(o, n, i, axis - 1))(old, new, start)


def written_ring(old: jax.Array, new: jax.Array, start: jax.Array | int, axis: int) -> jax.Array:
    """`old` with `new`, no longer than it, where the index i of a token is that of a ring, i % S."""
    size = old.shape[axis]
    at = (jnp.broadcast_to(start, old.shape[0])[:, None] + jnp.arange(new.shape[axis])) % size
    put = lambda o, n, i: jnp.moveaxis(jnp.moveaxis(o, axis - 1, 0).at[i].set(jnp.moveaxis(n, axis - 1, 0)), 0, axis - 1)
    return jax.vmap(put)(old, new, at)


def ring_index(end: jax.Array | int, size: int) -> jax.Array:
    """int32 [..., size]: which token lies at each place of a ring after `end` tokens, of which it keeps the last; below 0:
    none yet."""
    last = jnp.asarray(end)[..., None] - 1
    return last - (last - jnp.arange(size)) % size


@struct.dataclass
class Mask:
    """A query sees the keys of its segment, within `window` if one is given, and, if `causal`, none after itself but those
    of the prefix.

    "After" is by index in the row, which within a segment is the order of the positions.

    With blocks, which are never `causal`, it sees the keys of its own number and those of lower odd ones (block diffusion,
    arXiv 2503.09573): a text's tokens, of number 2b + 1 in block b, see their block and those before it; their
    noised copies, of number 2b, see each other within their block, and the text before it.

    text [5 6 7 8] in blocks of two, then its noised copy [M 6 M M]:
    blocks    [1 1 3 3 0 0 2 2]
    sees      1: 1      3: 1 3      0: 0      2: 1 2
    """

    q_segments: jax.Array  # int32 [B, T]
    k_segments: jax.Array  # int32 [B, S]
    k_prefix: jax.Array | None = None  # bool [B, S]: keys that all queries of their segment see; None: no key
    # Index of the first query among the keys, not 0 when decoding with a cache: one for all rows, or int32 [B].
    q_start: jax.Array | int = 0
    causal: bool = struct.field(pytree_node=False, default=False)
    q_blocks: jax.Array | None = None  # int32 [B, T]; None: no blocks
    k_blocks: jax.Array | None = None  # int32 [B, S]
    k_index: jax.Array | None = None  # int32 [S] or [B, S], of each key among the tokens; None: in order

    def distance(self) -> jax.Array:
        """Returns query index - key index, int32 [T, S]; [B, T, S] if each row has its own `q_start`."""
        t, s = self.q_segments.shape[-1], self.k_segments.shape[-1]
        keys = jnp.arange(s) if self.k_index is None else self.k_index
        return jnp.asarray(self.q_start)[..., None, None] + jnp.arange(t)[:, None] - keys[..., None, :]

    def ring(self, size: int) -> "Mask":
        """The mask for a cache that keeps the last `size` tokens as a ring, `ring_index`."""
        index = ring_index(jnp.asarray(self.q_start) + self.q_segments.shape[-1], size)
        at = jnp.broadcast_to(jnp.maximum(index, 0), (len(self.k_segments), size))
        of = lambda x: None if x is None else jnp.take_along_axis(x, at, axis=1)
        segments = jnp.where(index < 0, 0, jnp.take_along_axis(self.k_segments, at, axis=1))
        return dataclasses.replace(
            self, k_segments=segments, k_prefix=of(self.k_prefix), k_blocks=of(self.k_blocks), k_index=index
        )

    def blocks(self, window: int | None = None) -> list[tuple[slice, slice]]:
        """Returns (queries, keys) slices that cover every visible pair.

        Causal rows are cut into blocks of queries, each with the keys up to its end and from the window's start: about
        half of all pairs are left out. Any other mask is one block.
        """
        t, s = self.q_segments.shape[-1], self.k_segments.shape[-1]
        if not self.causal or self.k_prefix is not None or t != s or not isinstance(self.q_start, int):
            return [(slice(0, t), slice(0, s))]
        size = max(MIN_BLOCK, -(-t // MAX_BLOCKS))
        starts = range(0, t, size)
        return [(slice(i, min(i + size, t)), slice(max(0, i - window + 1) if window else 0, min(i + size, t))) for i in starts]

    def local_block(self, window: int | None) -> int | None:
        """Returns how many tokens a block has if a row is computed as many blocks, each with the keys of its neighbours: the
        one before, and unless `causal` the one behind. None where `blocks` has as little to compute, or a key may be farther.

        Then a long row takes time and memory in proportion to its length, where `blocks` has at most MAX_BLOCKS parts.
        """
        t, s = self.q_segments.shape[-1], self.k_segments.shape[-1]
        simple = self.k_prefix is None and self.q_blocks is None and self.k_index is None and isinstance(self.q_start, int)
        if window is None or t != s or not simple:
            return None
        reach = window - 1 if self.causal else window // 2
        size = max(1, -(-reach // MIN_BLOCK)) * MIN_BLOCK
        return size if t >= MAX_BLOCKS * size and (not self.causal or t > MAX_BLOCKS * MIN_BLOCK) else None

    def dense(self, window: int | None = None, queries: slice = slice(None), keys: slice = slice(None)) -> jax.Array:
        """Returns bool [B, T, S], True where the query sees the key; T and S are those of the given slices."""
        distance = self.distance()[..., queries, keys]
        visible = self.q_segments[:, queries, None] == self.k_segments[:, None, keys]
        if window is not None:
            visible &= distance < window if self.causal else jnp.abs(distance) <= window // 2
        if self.causal:
            past = distance >= 0
            visible &= past if self.k_prefix is None else past | self.k_prefix[:, None, keys]
        if self.q_blocks is not None and self.k_blocks is not None:
            q, k = self.q_blocks[:, queries, None], self.k_blocks[:, None, keys]
            visible &= (q == k) | ((k % 2 == 1) & (k < q))
        return visible
