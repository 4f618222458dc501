"""Prefix language modelling (T5, arXiv 1910.10683, section 3.2.3): a random split, the second part from the first."""

import numpy as np

from lm.objectives.causal import stream
from lm.types import Example


def split(n: int, rng: np.random.Generator) -> int:
    """Tokens in the prefix: uniform on 1..n-1, so that both parts exist."""
    return int(rng.integers(1, n))


def decoder(tokens: np.ndarray, rng: np.random.Generator) -> Example:
    """One stream; the prefix is seen from both sides, and only what follows it counts.

    tokens    [5 6 7 8 9], split after 2
    decoder   [5 6 7 8]
    prefix    [1 1 0 0]
    targets   [6 7 8 9]
    weights   [0 1 1 1]
    """
    n = len(tokens)
    k = split(n, rng)
    places = np.arange(n - 1)
    return Example(
        None,
        stream(tokens[:-1], prefix=places < k),
        np.asarray(tokens[1:], np.int32),
        (places >= k - 1).astype(np.float32),
    )


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, bos: int) -> Example:
    """Two streams: the encoder reads the prefix, the decoder gives the rest.

    tokens    [5 6 7 8 9], split after 2
    encoder   [5 6]
    decoder   [bos 7 8]
    targets   [7 8 9]
    weights   [1 1 1]
    """
    k = split(len(tokens), rng)
    rest = np.asarray(tokens[k:], np.int32)
    return Example(
        stream(tokens[:k]),
        stream(np.concatenate([[bos], rest[:-1]])),
        rest,
        np.ones(len(rest), np.float32),
    )
