"""One masked stretch of a text, given by the decoder (MASS, arXiv 1905.02450, section 3.2)."""

import numpy as np

from lm.objectives.causal import stream
from lm.objectives.masked import without_ends
from lm.types import Example, TokenStream


def length(n: int, share: float) -> int:
    """Tokens in the stretch of a text of n: at least one, and never all."""
    return min(max(round(n * share), 1), n - 1)


def window(encoder: int, decoder: int, share: float) -> int:
    """The most tokens of text that fit: the encoder reads all of them and eos, the decoder the stretch."""
    return max(n for n in range(2, encoder) if n == 2 or length(n, share) <= decoder)


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, share: float, mask_id: int, bos: int, eos: int) -> Example:
    """The decoder begins with a mask token, and its positions are those of the text, so that it knows where it is.

    tokens      [20 21 22 23 24 25], the stretch 22 23 24
    encoder     [20 21  M  M  M 25 eos]
    decoder     [ M 22 23]
    positions   [ 2  3  4]
    targets     [22 23 24]
    weights     [ 1  1  1]
    """
    tokens = without_ends(tokens, bos, eos)
    size = length(len(tokens), share)
    start = int(rng.integers(len(tokens) - size + 1))
    places = np.arange(start, start + size, dtype=np.int32)
    noised, asked = tokens.copy(), tokens[places]
    noised[places] = mask_id
    reads = np.concatenate([[mask_id], asked[:-1]]).astype(np.int32)
    return Example(
        stream(np.append(noised, eos)),
        TokenStream(reads, places, np.ones(size, np.int32)),
        asked,
        np.ones(size, np.float32),
    )
