"""Masked tokens and next-sentence prediction (BERT, arXiv 1810.04805, section 3.1, task 2)."""

from dataclasses import replace
from typing import Any

import numpy as np

from lm.objectives import masked
from lm.objectives.causal import stream
from lm.objectives.masked import Noise, without_ends
from lm.objectives.prefix import split
from lm.types import Example


def encoder(
    tokens: np.ndarray,
    rng: np.random.Generator,
    other: np.ndarray,
    *,
    noise: Noise,
    negatives: float,
    answers: tuple[int, int],
    bos: int,
    eos: int,
) -> Example:
    """A text cut in two, the second half at times from elsewhere (`other`, of one document); was it?

    The question is asked at bos; `answers`, the first two sentinels, are yes (s0: it follows) and no (s1). They are
    targets of the head that all masked tokens have, where BERT has a pooler and a classifier of two classes. Every place
    counts once, where BERT adds the mean of the tokens' loss and that of the pairs'. The cut is at any token, as `other`
    begins at any: a cut at a sentence's end would give the answer away. Without `other` text the answer is yes.
    A text of fewer than two tokens cannot be cut in two: it stands alone, and no more than its masks is asked for.

    tokens    [20 21 22 23 24], cut before 23, other [80 81 82 83]
    encoder   [bos 20  M 22 eos 81 82 eos]
    types     [  0  0  0  0   0  1  1   1]
    where     [ 0  2]
    targets   [s1 21]
    weights   [ 1  1]
    """
    text, elsewhere = without_ends(tokens, bos, eos), without_ends(other, bos, eos)
    if len(text) < 2:
        alone = np.concatenate([[bos], text, [eos]]).astype(np.int32)
        e: Any = masked.encoder(alone, rng, noise=noise)
        return replace(e, encoder=replace(e.encoder, types=np.zeros(len(alone), np.int32)))
    follows = len(elsewhere) == 0 or rng.random() >= negatives  # before all that depends on the length
    first, second = np.split(text, [split(len(text), rng)])
    if not follows:
        size = min(len(second), len(elsewhere))
        start = int(rng.integers(len(elsewhere) - size + 1))
        second = elsewhere[start : start + size]
    pair = np.concatenate([[bos], first, [eos], second, [eos]]).astype(np.int32)
    types = (np.arange(len(pair)) >= len(first) + 2).astype(np.int32)
    corrupted, chosen = noise(pair, rng)
    return Example(
        replace(stream(corrupted), types=types),
        None,
        np.concatenate([[answers[0 if follows else 1]], pair[chosen]]).astype(np.int32),
        np.ones(len(chosen) + 1, np.float32),
        np.concatenate([[0], chosen]).astype(np.int32),
    )
