"""What flows through the house: token streams, examples, weighted means, the training state.

Axis letters, here and in every file: B batch, T query length, S key length, P predicted places, D width, N heads,
K key-value heads, G query heads to a key-value head, H head dim, F hidden, V vocabulary, L layers.
"""

from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
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


class Batch(Protocol):
    """What a step reads: a pytree of arrays whose leading axis is the rows. It counts its own tokens, on the host or traced."""

    def tokens_read(self) -> Array:
        """uint32 []: tokens that a model reads, without padding."""
        ...

    def tokens_asked(self) -> Array:
        """uint32 []: tokens that the loss is over."""
        ...


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

    def tokens_read(self) -> Array:
        """uint32 []: tokens of both streams, without padding."""
        streams = [s for s in (self.encoder, self.decoder) if s is not None]
        return sum((s.segments > 0).sum() for s in streams).astype(np.uint32)

    def tokens_asked(self) -> Array:
        """uint32 []: the sum of the weights."""
        return self.weights.sum().astype(np.uint32)


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
