"""Texts of different lengths as rows of few lengths, so that few programs are compiled."""

import numpy as np

from lm.types import TokenStream

SMALLEST = 16  # tokens of the smallest bucket


def buckets(most: int) -> list[int]:
    """The lengths that prompts of up to `most` tokens are padded to: SMALLEST, doubled until `most` is reached, and that."""
    sizes = [SMALLEST]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return [*(size for size in sizes if size < most), most]


def bucket(size: int, most: int) -> int:
    """The smallest bucket that has room for so many tokens."""
    return next(room for room in buckets(most) if room >= size)


def padded(tokens: np.ndarray, most: int) -> np.ndarray:
    """int32 [1, P]: P is the smallest bucket that has room."""
    return np.pad(tokens.astype(np.int32), (0, bucket(len(tokens), most) - len(tokens)))[None]


def whole(tokens: np.ndarray | TokenStream, most: int | None = None, *, full: bool = False) -> TokenStream:
    """What an encoder reads, [1, P], padded to a bucket of at most `most` tokens, or if `full` to so many; None: not padded. A
    stream is one already."""
    if isinstance(tokens, TokenStream):
        return tokens
    row = padded(tokens, most) if most else tokens[None].astype(np.int32)
    if full and most:
        row = np.pad(row, ((0, 0), (0, most - row.shape[1])))
    place = np.arange(row.shape[1], dtype=np.int32)[None]
    return TokenStream(row, place, (place < len(tokens)).astype(np.int32), None)


def source_length(given: TokenStream | np.ndarray) -> int:
    """How many places of an encoder's row `lm.generation.engine.Request.encoder` takes."""
    return given.segments.shape[1] if isinstance(given, TokenStream) else len(given)


def left_padded(prompts: list[np.ndarray], *, prefix: bool = False, length: int | None = None) -> TokenStream:
    """Returns prompts of different lengths as rows [B, T] that end together: padding, of segment 0, stands in front.

    T is `length`, or the longest prompt's. With `prefix` the tokens of a prompt all attend to each other.
    """
    length = max(len(p) for p in prompts) if length is None else length
    tokens, segments, positions = (np.zeros((len(prompts), length), np.int32) for _ in range(3))
    for i, p in enumerate(prompts):
        tokens[i, length - len(p) :] = p
        segments[i, length - len(p) :] = 1
        positions[i, length - len(p) :] = np.arange(len(p))
    return TokenStream(tokens, positions, segments, segments > 0 if prefix else None)
