"""Next-token prediction."""

import numpy as np

from lm.types import Example, TokenStream


def stream(tokens: np.ndarray, prefix: np.ndarray | None = None) -> TokenStream:
    """One segment: int32 [T] -> tokens, positions 0..T-1, segments 1."""
    tokens = np.asarray(tokens, np.int32)
    return TokenStream(tokens, np.arange(len(tokens), dtype=np.int32), np.ones(len(tokens), np.int32), prefix)


def decoder(tokens: np.ndarray, rng: np.random.Generator) -> Example:
    """Every token from those before it.

    tokens    [5 6 7 8]
    decoder   [5 6 7]
    targets   [6 7 8]
    weights   [1 1 1]
    """
    return Example(None, stream(tokens[:-1]), np.asarray(tokens[1:], np.int32), np.ones(len(tokens) - 1, np.float32))
