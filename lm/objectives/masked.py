"""Masked language modelling (BERT, arXiv 1810.04805, section 3.1 and appendix A.1)."""

from collections.abc import Callable, Sequence

import numpy as np

from lm.objectives.causal import stream
from lm.types import CHARACTER, WORD, Example

_LONGEST = 24  # tokens of a word that is never split, unless it is over half of its text

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
    boundaries: Callable[[np.ndarray], np.ndarray] | None = None,
    controls: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupted tokens and the sorted places that were chosen.

    Of the tokens that are text (special ones have ids below `reserved`, or are among the sorted `controls`), a share `rate`
    is chosen: on average, so that of short texts there often is none. Each of these becomes the mask token (probability
    `mask`), a random token of texts (`random`), or stays. With `boundaries` (of a tokenizer) whole words are chosen together.

    tokens      [bos 20 21 22 23 24 25]
    corrupted   [bos 20  M 22 23  7 25]
    chosen      [2 5]
    """
    tokens = np.asarray(tokens, np.int32)
    open_places = np.flatnonzero((tokens >= reserved) & ~np.isin(tokens, controls))
    if len(open_places) == 0:
        return tokens, open_places.astype(np.int32)
    budget = rate * len(open_places)
    if boundaries is None:
        chosen = rng.choice(open_places, rounded(budget, rng), replace=False)
    else:
        chosen = _whole_words(open_places, boundaries(tokens)[open_places], budget, rng)
    chosen = np.sort(chosen).astype(np.int32)
    draw = rng.random(len(chosen))
    corrupted = tokens.copy()
    corrupted[chosen[draw < mask]] = mask_id
    swapped = chosen[(draw >= mask) & (draw < mask + random)]
    corrupted[swapped] = _texts(rng, len(swapped), reserved, vocab_size, controls)
    return corrupted, chosen


def rounded(amount: float, rng: np.random.Generator) -> int:
    """One of the two integers next to a number, so that on average it is that number: a rate holds for short texts too."""
    whole = int(amount)
    return whole + int(rng.random() < amount - whole)


def _texts(rng: np.random.Generator, count: int, reserved: int, vocab_size: int, controls: Sequence[int]) -> np.ndarray:
    """int64 [count]: tokens of texts, each of them equally likely."""
    among = np.asarray(controls, np.int64)
    drawn = rng.integers(reserved, vocab_size - len(among), count)
    # The n-th token that is no control token: one on for each control token up to it.
    return drawn + np.searchsorted(among - np.arange(len(among)), drawn, side="right")


def _whole_words(places: np.ndarray, begins: np.ndarray, budget: float, rng: np.random.Generator) -> np.ndarray:
    """Places of whole words, `budget` of them on average: words in random order until one does not fit what is left. Whether
    that one is taken as well is a coin, whose probability is the part of it that fits.

    `begins` (uint8 [n], see `lm.data.word_boundaries`) says what begins at each position. A word is split into its
    characters if it is over half of the text, or longer than any word usually is: text without spaces, an address, base 64.
    """
    apart = np.diff(places, prepend=places[0] - 2) > 1
    words = np.split(places, np.flatnonzero((begins == WORD) | apart)[1:])
    longest = min(max(_LONGEST, int(budget) // 2), max(1, len(places) // 2))
    inner = np.split(begins >= CHARACTER, np.cumsum([len(word) for word in words])[:-1])
    parts: list[np.ndarray] = []
    for word, splits in zip(words, inner, strict=True):
        parts += np.split(word, np.flatnonzero(splits[1:]) + 1) if len(word) > longest else [word]
    chosen = [places[:0]]
    for i in rng.permutation(len(parts)):
        if len(parts[i]) > budget:
            chosen += [parts[i]] if rng.random() * len(parts[i]) < budget else []
            break
        chosen.append(parts[i])
        budget -= len(parts[i])
    return np.concatenate(chosen)


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
    return reconstruct(tokens, noise(tokens, rng)[0], bos=bos, eos=eos)


def reconstruct(tokens: np.ndarray, noised: np.ndarray, *, bos: int, eos: int) -> Example:
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
