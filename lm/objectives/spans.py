"""Span corruption (T5, arXiv 1910.10683, section 3.1.4; lengths as in section 3.3.4)."""

from collections.abc import Callable

import numpy as np

from lm import config
from lm.objectives.causal import stream
from lm.objectives.masked import without_ends
from lm.types import Example


def counts(n: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Of n tokens: how many are noise, and in how many spans. Both parts keep a token, each span one on either side."""
    noise = min(max(round(n * rate), 1), n - 1)
    spans = min(max(round(noise / mean_span), 1), noise, n - noise)
    return noise, spans


def lengths(n: int, c: config.SpanCorruption) -> tuple[int, int]:
    """Tokens on the encoder's and on the decoder's side: what stays or is noise, a sentinel a span, and eos."""
    noise, spans = counts(n, c.rate, c.mean_span)
    return n - noise + spans + 1, noise + spans + 1


def window(room: int, c: config.SpanCorruption, *, fits: Callable[[int, int], int] = lambda encoder, _: encoder) -> int:
    """The most tokens of text whose corrupted form fits: 512 encoder places take 568 tokens and give 114 targets.

    With `fits` adding both sides, the most for one stream that holds both.
    """
    n = 2
    while fits(*lengths(n + 1, c)) <= room:
        n += 1
    # T5's own exception at 50 %: the targets are not to be longer than the inputs.
    return n - 1 if c.rate == 0.5 and lengths(n, c)[1] > lengths(n, c)[0] else n


def noise_mask(n: int, rng: np.random.Generator, *, rate: float, mean_span: float) -> np.ndarray:
    """bool [n], True where noise: spans of random lengths, text first, noise last.

    [0 0 0 1 1 0 0 0 0 1]
    """
    noise, spans = counts(n, rate, mean_span)

    def partition(items: int) -> np.ndarray:
        """`spans` positive lengths that sum to `items`, every such list equally likely."""
        cuts = np.sort(rng.choice(items - 1, spans - 1, replace=False)) + 1
        return np.diff(cuts, prepend=0, append=items)

    spread = np.stack([partition(n - noise), partition(noise)], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, spread)


def corrupt(
    tokens: np.ndarray, rng: np.random.Generator, *, rate: float, mean_span: float, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The text with a sentinel for each span, and the spans behind their sentinels.

    tokens   [20 21 22 23 24 25 26 27 28 29], noise 23 24 and 29
    inputs   [20 21 22 s0 25 26 27 28 s1]
    targets  [s0 23 24 s1 29]
    """
    mask = noise_mask(len(tokens), rng, rate=rate, mean_span=mean_span)
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    number = np.cumsum(starts) - 1
    inputs = np.where(starts, sentinels[np.maximum(number, 0)], tokens)[~mask | starts]
    spans = np.flatnonzero(mask)
    targets = np.insert(tokens[spans], np.flatnonzero(starts[spans]), sentinels[: starts.sum()])
    return inputs.astype(np.int32), targets.astype(np.int32)


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, bos: int, eos: int, **settings) -> Example:
    """Two streams.

    tokens    [20 21 22 23 24 25]
    encoder   [20 21 s0 24 25 eos]
    decoder   [bos s0 22 23]
    targets   [s0 22 23 eos]
    weights   [ 1  1  1  1]
    """
    inputs, targets = corrupt(without_ends(tokens, bos, eos), rng, **settings)
    targets = np.append(targets, eos).astype(np.int32)
    return Example(
        stream(np.append(inputs, eos)),
        stream(np.concatenate([[bos], targets[:-1]])),
        targets,
        np.ones(len(targets), np.float32),
    )


def decoder(tokens: np.ndarray, rng: np.random.Generator, *, bos: int, eos: int, prefix: bool = True, **settings) -> Example:
    """One stream (T5, section 3.2.1): the inputs are a prefix seen from both sides, the targets follow.

    With `prefix=False` all is read left to right (the "language model" under a denoising objective of T5's Table 2).

    tokens    [20 21 22 23 24 25]
    decoder   [20 21 s0 24 25 eos s0 22 23]
    prefix    [ 1  1  1  1  1   1  0  0  0]
    targets   [21 s0 24 25 eos s0 22 23 eos]
    weights   [ 0  0  0  0  0   1  1  1  1]
    """
    inputs, targets = corrupt(without_ends(tokens, bos, eos), rng, **settings)
    both = np.concatenate([inputs, [eos], targets, [eos]]).astype(np.int32)
    places, start = np.arange(len(both) - 1), len(inputs) + 1
    seen = places < start if prefix else None
    return Example(None, stream(both[:-1], prefix=seen), both[1:], (places >= start - 1).astype(np.float32))
