"""What flows through the house: token streams, examples, masks, weighted means, the training state.

Axis letters, here and in every file: B batch, T query length, S key length, P predicted places, D width, N heads,
K key-value heads, G query heads to a key-value head, H head dim, F hidden, V vocabulary, L layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Array = Any  # a jax.Array in the model, a numpy array on the host

INSIDE, CHARACTER, WORD = range(3)  # what begins with a token: nothing, it goes on inside a character; a character; a word


@struct.dataclass
class TokenStream:
    """What one stack reads. On the host a piece of a document ([T]) or rows ([B, T]); int32 but for `prefix`.

    tokens     [7 8 9 4 5 0]
    positions  [0 1 2 0 1 0]   place in its document
    segments   [1 1 1 2 2 0]   number of the document in the row; 0 is padding
    prefix     [1 1 0 1 0 0]   bool: in a causal stack, keys that all of their segment may see; None: none
    """

    tokens: Array
    positions: Array
    segments: Array
    prefix: Array | None = None
    types: Array | None = None  # BERT's token types; None: all 0


@struct.dataclass
class Example:
    """What an objective makes of tokens: streams, what to predict, and where.

    Targets belong to the decoder's places if there is a decoder, otherwise to the encoder's. With `where` None they
    stand at every place ([B, T]); otherwise at those indices of the row ([B, P]), so that a masked model forms logits
    for P places alone. `weights` are float32: 1 counts, 0 is padding or not asked for.
    """

    encoder: TokenStream | None
    decoder: TokenStream | None
    targets: Array
    weights: Array
    where: Array | None = None


BLOCK, MAX_BLOCKS = 256, 8  # queries in a block of causal attention, at least; blocks in a row, at most


@struct.dataclass
class Mask:
    """Which keys a query may see, described; `dense` builds it.

    Same segment, and, if causal, not after the query unless the key is of the prefix; within the window, if any.
    Order is order in the row: within a segment it is that of the positions.
    """

    q_segments: Array  # [B, T]
    k_segments: Array  # [B, S]
    k_prefix: Array | None = None  # [B, S] bool
    q_start: Array | int = 0  # place of the first query among the keys: where a decoding cache stands
    causal: bool = struct.field(pytree_node=False, default=False)

    def distance(self) -> jax.Array:
        """int32 [T, S]: how far behind the query a key stands."""
        t, s = self.q_segments.shape[-1], self.k_segments.shape[-1]
        return self.q_start + jnp.arange(t)[:, None] - jnp.arange(s)[None, :]

    def blocks(self, window: int | None = None) -> list[tuple[slice, slice]]:
        """Queries cut in blocks, each with the keys that its queries can see at all: half of all pairs if causal."""
        t, s = self.q_segments.shape[-1], self.k_segments.shape[-1]
        if not self.causal or self.k_prefix is not None or t != s or not isinstance(self.q_start, int):
            return [(slice(0, t), slice(0, s))]
        size = max(BLOCK, -(-t // MAX_BLOCKS))
        starts = range(0, t, size)
        return [(slice(i, min(i + size, t)), slice(max(0, i - window + 1) if window else 0, min(i + size, t))) for i in starts]

    def dense(self, window: int | None = None, queries: slice = slice(None), keys: slice = slice(None)) -> jax.Array:
        """bool [B, T, S], True where the query may look; of the given queries and keys."""
        distance = self.distance()[queries, keys]
        seen = self.q_segments[:, queries, None] == self.k_segments[:, None, keys]
        if window is not None:
            seen &= distance < window if self.causal else jnp.abs(distance) <= window // 2
        if self.causal:
            past = distance >= 0
            seen &= past if self.k_prefix is None else past | self.k_prefix[:, None, keys]
        return seen


@struct.dataclass
class WeightedMean:
    """A sum and its weight, so that means over microbatches, hosts and steps average rightly."""

    total: Array
    weight: Array

    def __add__(self, other: "WeightedMean") -> "WeightedMean":
        return WeightedMean(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> Array:
        return self.total / jnp.maximum(self.weight, 1e-9)


@struct.dataclass
class TrainState:
    """All that a step changes. The randomness of a step is a function of `step` alone."""

    step: Array  # int32 []
    params: Any
    opt_state: Any
    ema: Any  # an average of the parameters, or None
    skipped: Array  # int32 []: steps whose loss, gradient or update was not finite
    skipped_in_a_row: Array  # int32 []
    seen: Array  # uint32 [2, 2]: tokens read and places with loss, each as (low, high) 32 bits
