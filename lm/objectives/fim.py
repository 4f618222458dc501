"""Fill-in-the-middle (arXiv 2207.14255, section 3): a causal model learns to infill from texts with a part moved behind."""

import numpy as np

from lm.objectives import causal
from lm.objectives.masked import without_ends
from lm.types import Example


def rearrange(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    suffix_first: float,
    marks: tuple[int, int, int],
    bos: int,
    eos: int,
) -> np.ndarray:
    """A text cut at two random places, its middle behind the rest. eos says that the middle meets the suffix.

    P, S and M are the marks of prefix, suffix and middle: the last three sentinels. With probability `suffix_first` the
    suffix comes before the prefix, and the middle goes on where the prefix ends (the paper's second variant of SPM, which
    shares its marks with PSM). Cuts are between tokens; the paper's are between characters.

    tokens         [bos 20 21 22 23 24 25 eos], cut before 22 and 24
    prefix first   [bos  P 20 21  S 24 25  M 22 23 eos]
    suffix first   [bos  P  S 24 25  M 20 21 22 23 eos]
    """
    text = without_ends(tokens, bos, eos)
    begin = tokens[:1] if tokens[0] == bos else tokens[:0]
    prefix, middle, suffix = np.split(text, np.sort(rng.integers(len(text) + 1, size=2)))
    p, s, m = ([mark] for mark in marks)
    order = [p, s, suffix, m, prefix, middle] if rng.random() < suffix_first else [p, prefix, s, suffix, m, middle]
    return np.concatenate([begin, *order, [eos]]).astype(np.int32)


def decoder(tokens: np.ndarray, rng: np.random.Generator, *, rate: float, **settings) -> Example:
    """A share `rate` of the pieces is rearranged. Every token counts, the marks as well.

    tokens    [bos 20 21 22 eos], cut before 21 and 22
    decoder   [bos  P 20  S 22  M 21]
    targets   [  P 20  S 22  M 21 eos]
    weights   [  1  1  1  1  1  1  1]
    """
    return causal.decoder(rearrange(tokens, rng, **settings) if rng.random() < rate else tokens, rng)
