"""The types that all packages share: token streams, examples, weighted means, the training state.

Axis letters, here and in every file: B batch, T query length, S key length, P predicted positions, D width, N heads,
K key-value heads, G query heads to a key-value head, H head dim, F hidden, V vocabulary, L layers.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = Any  # a jax.Array in the model, a numpy array on the host

INSIDE, CHARACTER, WORD = range(3)  # what starts at a token: nothing (it continues a character), a character, a word


@dataclass(frozen=True)
class TreeSizes:
    """The axes of a row's `Tree`: S, W and C."""

    steps: int
    width: int
    children: int


@struct.dataclass
class Tree:
    """How the nodes of rows [B, T] are nested, each tree within one segment. int32; -1: none. Inner nodes are computed in steps
    of W nodes, each after its children.

    ((7 8) 9)   tokens    [7 8 - 9 -]
                children  [. . [0 1] . [2 3]]   [B, T, C]: nodes of the row
                steps     [[2] [4]]             [B, S, W]: nodes of the row
                slots     [. . 0 . 1]           [B, T]: where among the S W of the steps a node is
                edges     [0 1 2 3 .]           [B, T]: where among the S W C children of these it is
    """

    children: Array
    steps: Array
    slots: Array
    edges: Array


@struct.dataclass
class TokenStream:
    """The input of one stack: rows [B, T], or on the host also a piece of a document [T]. int32 except for `prefix`.

    tokens     [7 8 9 4 5 0]
    positions  [0 1 2 0 1 0]   index in its document
    segments   [1 1 1 2 2 0]   number of the document in the row; 0 is padding
    prefix     [1 1 0 1 0 0]   bool: keys of a causal stack that every query of their segment may see; None: none
    """

    tokens: Array
    positions: Array
    segments: Array
    prefix: Array | None = None
    types: Array | None = None  # BERT's token types; None: all 0
    ahead: Array | None = None  # position of the token that each predicts; None: one above its own
    blocks: Array | None = None  # block diffusion: 2b + 1 at a text's tokens in block b, 2b at their noised copies; None: none
    # What the stack reads in place of the tokens, which are 0 (`lm.models.stem`): float32 [B, I, C], or uint8 of pixels.
    vectors: Array | None = None
    tree: Tree | None = None  # how the tokens are nested; None: they are not


def vector_stream(vectors: Any, length: int) -> TokenStream:
    """A stream of vectors [..., I, C] that are one document, of which a stack reads `length` vectors: NumPy arrays, with tokens
    that are 0 (`lm.models.stem`)."""
    shape = (*vectors.shape[:-2], length)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    return TokenStream(np.zeros(shape, np.int32), places, np.ones(shape, np.int32), vectors=vectors)


class Batch(Protocol):
    """The input of a step: a pytree of arrays [B, ...] that counts its own tokens, as numpy arrays or traced."""

    def tokens_read(self) -> Array:
        """uint32 []: tokens that models read, without padding."""
        ...

    def tokens_asked(self) -> Array:
        """uint32 []: tokens that the loss is over."""
        ...


@struct.dataclass
class Example:
    """What an objective makes of tokens: the input of each stack, and what to predict at which positions.

    Targets int32 are at the decoder's positions if there is a decoder, else at the encoder's: at all of them ([B, T]) if
    `where` is None, otherwise at the indices `where` int32 [B, P] of the row, so that a masked model computes logits only
    there. `weights` are float32: 1 where there is loss, 0 at padding and where nothing is asked.
    """

    encoder: TokenStream | None
    decoder: TokenStream | None
    targets: Array
    weights: Array
    where: Array | None = None
    progress: Array | None = None  # float32 [B]: share of the training that is done, of objectives that ask for it

    def tokens_read(self) -> Array:
        """uint32 []: tokens of both streams, without padding."""
        streams = [s for s in (self.encoder, self.decoder) if s is not None]
        return sum((s.segments > 0).sum() for s in streams).astype(np.uint32)

    def tokens_asked(self) -> Array:
        """uint32 []: the sum of the weights."""
        return self.weights.sum().astype(np.uint32)


class Two:
    """What batches of two Examples [B rows each] have in common; a row is a pair."""

    @property
    def examples(self) -> tuple[Example, Example]:
        raise NotImplementedError

    @property
    def both(self) -> Example:
        """[2 B] rows: the first of each pair, then its second. A value of each row, [2 B], is [B, 2] of the pairs."""
        put = lambda a, b: np.stack([a, b], 1) if isinstance(a, np.ndarray) else jnp.stack([a, b], 1)
        return jax.tree.map(lambda a, b: put(a, b).reshape(-1, *a.shape[1:]), *self.examples)

    def tokens_read(self) -> Array:
        """uint32 []: tokens of both, without padding."""
        first, second = self.examples
        return first.tokens_read() + second.tokens_read()

    def tokens_asked(self) -> Array:
        """uint32 []: the sum of the weights of both."""
        first, second = self.examples
        return first.tokens_asked() + second.tokens_asked()


@struct.dataclass
class Compared(Two):
    """Two answers to each prompt. A blank pair has weights 0."""

    chosen: Example
    rejected: Example
    margin: Array  # float32 [B]: by how much reward the chosen answer should be ahead; 0: none is given

    @property
    def examples(self) -> tuple[Example, Example]:
        return self.chosen, self.rejected


@struct.dataclass
class Judged(Two):
    """One answer to each prompt, and the answer of another record to it, which shows how far the model has moved."""

    answer: Example
    mismatched: Example
    good: Array  # float32 [B]: 1 if the answer is good, else 0

    def tokens_asked(self) -> Array:
        """uint32 []: the sum of the answers' weights; the mismatched ones have no loss."""
        return self.answer.tokens_asked()

    @property
    def examples(self) -> tuple[Example, Example]:
        return self.answer, self.mismatched


@struct.dataclass
class Unaligned:
    """What an encoder reads, and what is said in it: shorter, in the same order, nobody knows where (`lm.losses.ctc`)."""

    example: Example  # its targets are not read; it has logits at all positions
    labels: Array  # int32 [B, L]
    weights: Array  # float32 [B, L]: 1 at labels, 0 at padding

    def tokens_read(self) -> Array:
        """uint32 []: vectors that the encoder reads, without padding."""
        return self.example.tokens_read()

    def tokens_asked(self) -> Array:
        """uint32 []: labels."""
        return self.weights.sum().astype(np.uint32)

    @property
    def examples(self) -> tuple[Example]:
        return (self.example,)


@struct.dataclass
class WeightedMean:
    """A weighted sum and the sum of its weights. Adding two gives the mean over both, whatever their weights."""

    total: Array
    weight: Array

    def __add__(self, other: "WeightedMean") -> "WeightedMean":
        return WeightedMean(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> Array:
        return self.total / jnp.maximum(self.weight, 1e-9)


@struct.dataclass
class TrainState:
    """Everything that a step changes. The randomness of a step depends only on the seed and `step`."""

    step: Array  # int32 []
    params: Any
    opt_state: Any
    ema: Any  # an average of the parameters, or None
    skipped: Array  # int32 []: steps whose loss, gradient or update was not finite
    skipped_in_a_row: Array  # int32 []
    seen: Array  # uint32 [2, 2]: tokens read and tokens with loss, each as (low, high) 32 bits
