"""Masked language modelling (BERT, arXiv 1810.04805, section 3.1 and appendix A.1)."""

from collections.abc import Callable, Sequence

import numpy as np

from lm.objectives.causal import stream
from lm.types import Example

Noise = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def noise(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float,
    mask: float,
    random: float,
    mask_id: int,
    reserved: int,
    vocab_size: int,
    word_start: np.ndarray | None = None,
    controls: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupted tokens and the sorted places that were chosen.

    Of the tokens that are not reserved (control tokens have ids below `reserved`, or are `controls`), a share `rate`, at
    least one, is chosen; each of these becomes the mask token (probability `mask`), a random token (`random`), or stays.
    With `word_start` (bool [V]) whole words are chosen together.

    tokens      [bos 20 21 22 23 24 25]
    corrupted   [bos 20  M 22 23  7 25]
    chosen      [2 5]
    """
    tokens = np.asarray(tokens, np.int32)
    open_places = np.flatnonzero((tokens >= reserved) & ~np.isin(tokens, controls))
    if len(open_places) == 0:
        return tokens, open_places.astype(np.int32)
    budget = max(1, round(rate * len(open_places)))
    if word_start is None:
        chosen = rng.choice(open_places, budget, replace=False)
    else:
        chosen = _whole_words(tokens, open_places, budget, word_start, rng)
    chosen = np.sort(chosen).astype(np.int32)
    draw = rng.random(len(chosen))
    corrupted = tokens.copy()
    corrupted[chosen[draw < mask]] = mask_id
    swapped = chosen[(draw >= mask) & (draw < mask + random)]
    drawn = rng.integers(reserved, vocab_size, len(swapped))
    corrupted[swapped] = np.where(np.isin(drawn, controls), tokens[swapped], drawn)
    return corrupted, chosen


def _whole_words(
    tokens: np.ndarray, places: np.ndarray, budget: int, word_start: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Words in random order as long as they fit the budget; the shortest word where none does. None is ever split."""
    starts = word_start[tokens[places]] | (np.diff(places, prepend=places[0] - 2) > 1)
    words = np.split(places, np.flatnonzero(starts)[1:])
    chosen: list[np.ndarray] = []
    for i in rng.permutation(len(words)):
        if len(words[i]) <= budget:
            chosen.append(words[i])
            budget -= len(words[i])
        if budget == 0:
            break
    return np.concatenate(chosen) if chosen else min(words, key=len)


def encoder(tokens: np.ndarray, rng: np.random.Generator, *, noise: Noise) -> Example:
    """The chosen tokens from both sides. `where` holds their places: no logits are formed elsewhere.

    tokens    [bos 20 21 22 23 24 25]
    encoder   [bos 20  M 22 23  7 25]
    where     [ 2  5]
    targets   [21 24]
    weights   [ 1  1]
    """
    corrupted, chosen = noise(tokens, rng)
    targets = np.asarray(tokens, np.int32)[chosen]
    return Example(stream(corrupted), None, targets, np.ones(len(chosen), np.float32), chosen)


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, noise: Noise, bos: int, eos: int) -> Example:
    """BERT-style denoising (T5, section 3.3.1): the decoder gives the whole text back.

    tokens    [20 21 22 23]
    encoder   [20  M 22 23 eos]
    decoder   [bos 20 21 22 23]
    targets   [20 21 22 23 eos]
    weights   [ 1  1  1  1  1]
    """
    tokens = without_ends(tokens, bos, eos)
    return given_back(tokens, noise(tokens, rng)[0], bos=bos, eos=eos)


def given_back(tokens: np.ndarray, noised: np.ndarray, *, bos: int, eos: int) -> Example:
    """The encoder reads `noised` and eos; the decoder gives `tokens` and eos."""
    targets = np.concatenate([tokens, [eos]]).astype(np.int32)
    return Example(
        stream(np.concatenate([noised, [eos]])),
        stream(np.concatenate([[bos], tokens])),
        targets,
        np.ones(len(targets), np.float32),
    )


def without_ends(tokens: np.ndarray, bos: int, eos: int) -> np.ndarray:
    """A piece without the marks of its document's ends, which the streams get anew."""
    tokens = np.asarray(tokens, np.int32)
    first = 1 if len(tokens) and tokens[0] == bos else 0
    last = len(tokens) - 1 if len(tokens) > first and tokens[-1] == eos else len(tokens)
    return tokens[first:last]
