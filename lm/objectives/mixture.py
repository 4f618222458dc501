"""Several objectives, a piece of text under one of them each, and tokens that say which (UL2, arXiv 2205.05131, section 3)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lm.types import Example, TokenStream

Make = Callable[..., Example]


def draw(
    tokens: np.ndarray, rng: np.random.Generator, *other: np.ndarray, makes: Sequence[Make], shares: np.ndarray
) -> Example:
    """What one of `makes` makes of the piece; the i-th has probability `shares[i]`."""
    return makes[rng.choice(len(makes), p=shares)](tokens, rng, *other)


def without_other(tokens: np.ndarray, rng: np.random.Generator, *_: np.ndarray, make: Make) -> Example:
    """A part that has no use for the text from elsewhere, which another part of the mixture reads."""
    return make(tokens, rng)


def with_mode(
    tokens: np.ndarray, rng: np.random.Generator, *other: np.ndarray, make: Make, mode: int, aligned: bool = False
) -> Example:
    """The mode's token before what the model reads: before the encoder's text, or that of a decoder alone.

    It is seen from everywhere, as the prefix of a decoder is, and predicts nothing (R: the mode's token).

    made      decoder [5 6 7],   targets [6 7 8],   weights [1 1 1]
    decoder   [R 5 6 7]
    prefix    [1 0 0 0]   where the stream has one
    targets   [5 6 7 8]
    weights   [0 1 1 1]

    made      encoder [bos 20 M 22],   where [2]
    encoder   [R bos 20 M 22],   where [3]

    `aligned`: the decoder's positions are those of the encoder's text (MASS), and move with it.
    """
    e = make(tokens, rng, *other)
    if e.encoder is not None:
        where = e.where + 1 if e.where is not None and e.decoder is None else e.where
        return replace(e, encoder=in_front(e.encoder, mode), decoder=moved(e.decoder) if aligned else e.decoder, where=where)
    assert e.decoder is not None
    targets = np.concatenate([e.decoder.tokens[:1], e.targets])
    weights = np.concatenate([np.zeros(1, np.float32), e.weights])
    return replace(e, decoder=in_front(e.decoder, mode), targets=targets, weights=weights)


def moved(s: TokenStream | None) -> TokenStream | None:
    """One position on, as the text behind a mode's token is."""
    return s and replace(s, positions=s.positions + 1)


def in_front(s: TokenStream, mode: int) -> TokenStream:
    return TokenStream(
        np.concatenate([[mode], s.tokens]).astype(np.int32),
        np.concatenate([[0], s.positions + 1]).astype(np.int32),
        np.concatenate([s.segments[:1], s.segments]),
        None if s.prefix is None else np.concatenate([[True], s.prefix]),
        None if s.types is None else np.concatenate([s.types[:1], s.types]),
    )
