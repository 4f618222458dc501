"""Noises of a text that a decoder gives back whole (BART, arXiv 1910.13461, section 2.2; T5's deshuffling)."""

from collections.abc import Callable

import numpy as np

from lm import config
from lm.objectives.masked import reconstruct, rounded, without_ends
from lm.types import Example

Noise = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Ends = Callable[[np.ndarray], np.ndarray]  # int [n] -> bool [n]: a sentence ends with the token


def infill(tokens: np.ndarray, rng: np.random.Generator, *, rate: float, mean_span: float, mask_id: int) -> np.ndarray:
    """Spans, each replaced by one mask token: the model has to find how many tokens are missing.

    A share `rate` of the tokens goes in spans of Poisson(`mean_span`) tokens, the last of them shortened. An empty span
    puts a mask token where nothing is missing; there are only so many that the text does not become longer.

    tokens    [20 21 22 23 24 25], half of it in the spans 21 22, nothing before 24, 25
    noised    [20  M 23  M 24  M]
    """
    left = rounded(rate * len(tokens), rng)
    spans: list[int] = []
    empty = 0
    while left > 0:
        span = min(int(rng.poisson(mean_span)), left)
        left -= span
        spans += [span] if span else []
        empty += span == 0
    spans += [0] * min(empty, sum(spans) - len(spans))
    # The noised text, place by place: a kept token takes one token of the text, a mask as many as its span has.
    takes = np.ones(len(tokens) - sum(spans) + len(spans), int)
    masks = rng.choice(len(takes), len(spans), replace=False)
    takes[masks] = spans
    starts = np.cumsum(takes) - takes
    noised = tokens[np.minimum(starts, len(tokens) - 1)]
    noised[masks] = mask_id
    return noised


def permute(tokens: np.ndarray, rng: np.random.Generator, *, share: float, sentence_ends: Ends) -> np.ndarray:
    """Sentences in another order: a `share` of them change places among themselves. `sentence_ends` is a tokenizer's.

    tokens    [20 21  . 22  .  \\n 23 24 25  .]
    noised    [22  .  \\n 23 24 25  . 20 21  .]   an end goes with the ends before it
    """
    ends = sentence_ends(tokens)
    last = ends[:-1] & ~ends[1:]
    sentences = np.split(tokens, np.flatnonzero(last) + 1)
    order = np.arange(len(sentences))
    moved = rng.permutation(order)[: int(np.ceil(share * len(order)))]
    order[np.sort(moved)] = moved
    return np.concatenate([sentences[i] for i in order])


def rotate(tokens: np.ndarray, rng: np.random.Generator, *, share: float) -> np.ndarray:
    """A `share` of the texts begin at a random token, and go on at their beginning.

    tokens    [20 21 22 23 24]
    noised    [23 24 20 21 22]
    """
    return np.roll(tokens, -int(rng.integers(max(len(tokens), 1)))) if rng.random() < share else tokens


def delete(tokens: np.ndarray, rng: np.random.Generator, *, rate: float) -> np.ndarray:
    """A share `rate` of the tokens is gone: the model has to find where.

    tokens    [20 21 22 23 24]
    noised    [20 22 23]
    """
    return np.delete(tokens, rng.choice(len(tokens), rounded(rate * len(tokens), rng), replace=False))


def mask(tokens: np.ndarray, rng: np.random.Generator, *, rate: float, mask_id: int) -> np.ndarray:
    """A share `rate` of the tokens, each replaced by a mask token.

    tokens    [20 21 22 23 24]
    noised    [20  M 22 23  M]
    """
    noised = tokens.copy()
    noised[rng.choice(len(tokens), rounded(rate * len(tokens), rng), replace=False)] = mask_id
    return noised


def noise(
    tokens: np.ndarray, rng: np.random.Generator, *, c: config.Denoise, mask_id: int | None, sentence_ends: Ends
) -> np.ndarray:
    """All that are on, those that move tokens before those that take some away. Never longer than the text."""
    if c.permute:
        tokens = permute(tokens, rng, share=c.permute, sentence_ends=sentence_ends)
    if c.rotate:
        tokens = rotate(tokens, rng, share=c.rotate)
    if c.delete:
        tokens = delete(tokens, rng, rate=c.delete)
    if c.mask and mask_id is not None:
        tokens = mask(tokens, rng, rate=c.mask, mask_id=mask_id)
    if c.infill and mask_id is not None:
        tokens = infill(tokens, rng, rate=c.infill, mean_span=c.mean_span, mask_id=mask_id)
    return tokens


def shuffle(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The tokens in a random order (T5, arXiv 1910.10683, section 3.3.1, table 3).

    tokens    [20 21 22 23 24]
    noised    [22 20 24 21 23]
    """
    return rng.permutation(tokens)


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, noise: Noise, bos: int, eos: int) -> Example:
    """The encoder reads the noised text, the decoder gives the whole text back.

    tokens    [20 21 22 23]
    encoder   [20  M 23 eos]
    decoder   [bos 20 21 22 23]
    targets   [20 21 22 23 eos]
    weights   [ 1  1  1  1  1]
    """
    tokens = without_ends(tokens, bos, eos)
    return reconstruct(tokens, noise(tokens, rng), bos=bos, eos=eos)
