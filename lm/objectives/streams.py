"""Token streams on the host: how objectives make, wrap, extend and shift them."""

from dataclasses import replace

import numpy as np

from lm.types import Example, TokenStream


def stream(tokens: np.ndarray, prefix: np.ndarray | None = None) -> TokenStream:
    """int32 [T] -> one segment: the tokens, positions 0..T-1, segments all 1. `prefix`: bool [T], see `TokenStream`."""
    tokens = np.asarray(tokens, np.int32)
    return TokenStream(tokens, np.arange(len(tokens), dtype=np.int32), np.ones(len(tokens), np.int32), prefix)


def without_ends(tokens: np.ndarray, bos: int | None, eos: int) -> np.ndarray:
    """int32 [n]: the piece without a leading bos and a trailing eos, for objectives that add their own. `bos`: None where there
    is none."""
    tokens = np.asarray(tokens, np.int32)
    first = 1 if len(tokens) and tokens[0] == bos else 0
    last = len(tokens) - 1 if len(tokens) > first and tokens[-1] == eos else len(tokens)
    return tokens[first:last]


def reconstruct(tokens: np.ndarray, noised: np.ndarray, *, bos: int, eos: int) -> Example:
    """The encoder reads `noised` and eos; the decoder predicts `tokens` and eos."""
    targets = np.concatenate([tokens, [eos]]).astype(np.int32)
    return Example(
        stream(np.concatenate([noised, [eos]])),
        stream(np.concatenate([[bos], tokens])),
        targets,
        np.ones(len(targets), np.float32),
    )


def prepend(s: TokenStream, token: int) -> TokenStream:
    """The stream [T] with one token before it, [T + 1]: the others' positions move up by 1, and a prefix covers the token."""
    return TokenStream(
        np.concatenate([[token], s.tokens]).astype(np.int32),
        np.concatenate([[0], s.positions + 1]).astype(np.int32),
        np.concatenate([s.segments[:1], s.segments]),
        None if s.prefix is None else np.concatenate([[True], s.prefix]),
        None if s.types is None else np.concatenate([s.types[:1], s.types]),
    )


def shift_positions(s: TokenStream | None) -> TokenStream | None:
    """The stream with each position one higher."""
    return s and replace(s, positions=s.positions + 1)
