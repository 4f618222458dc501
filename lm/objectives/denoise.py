"""Denoising: a decoder predicts the complete text from a noised one (BART, arXiv 1910.13461, section 2.2)."""

from collections.abc import Callable
from functools import partial

import numpy as np

from lm import config
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, both_lengths
from lm.objectives.masked import rounded
from lm.objectives.prompts import (
    EACH_WORD,
    Span,
    SpanPrompt,
    TextPrompt,
    answer,
    join,
    mask_token,
    with_masks,
    word_by_word,
)
from lm.objectives.streams import reconstruct, stream, without_ends
from lm.objectives.vocabulary import Vocabulary, decoder_start, ends, required_mask
from lm.types import Example

Noise = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Ends = Callable[[np.ndarray], np.ndarray]  # int [n] -> bool [n]: a sentence ends with the token


def infill(tokens: np.ndarray, rng: np.random.Generator, *, rate: float, mean_span: float, mask_id: int) -> np.ndarray:
    """Replaces spans by one mask token each, so that the model has to find how many tokens are missing.

    A share `rate` of the tokens is removed, in spans of Poisson(`mean_span`) tokens of which the last is cut short. An empty
    span inserts a mask token; there are at most as many of these as keep the text from getting longer.

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
    # How many tokens of the text each token of the noised one stands for: a kept token for one, a mask for its span.
    takes = np.ones(len(tokens) - sum(spans) + len(spans), int)
    masks = rng.choice(len(takes), len(spans), replace=False)
    takes[masks] = spans
    starts = np.cumsum(takes) - takes
    noised = tokens[np.minimum(starts, len(tokens) - 1)]
    noised[masks] = mask_id
    return noised


def permute(tokens: np.ndarray, rng: np.random.Generator, *, share: float, sentence_ends: Ends) -> np.ndarray:
    """Shuffles a `share` of the sentences among themselves. `sentence_ends` is a tokenizer's.

    tokens    [20 21  . 22  .  \\n 23 24 25  .]
    noised    [22  .  \\n 23 24 25  . 20 21  .]   consecutive end tokens stay together
    """
    ends = sentence_ends(tokens)
    last = ends[:-1] & ~ends[1:]
    sentences = np.split(tokens, np.flatnonzero(last) + 1)
    order = np.arange(len(sentences))
    moved = rng.permutation(order)[: int(np.ceil(share * len(order)))]
    order[np.sort(moved)] = moved
    return np.concatenate([sentences[i] for i in order])


def rotate(tokens: np.ndarray, rng: np.random.Generator, *, share: float) -> np.ndarray:
    """Rotates a `share` of the texts to begin at a random token.

    tokens    [20 21 22 23 24]
    noised    [23 24 20 21 22]
    """
    return np.roll(tokens, -int(rng.integers(max(len(tokens), 1)))) if rng.random() < share else tokens


def delete(tokens: np.ndarray, rng: np.random.Generator, *, rate: float) -> np.ndarray:
    """Removes a share `rate` of the tokens, so that the model has to find where.

    tokens    [20 21 22 23 24]
    noised    [20 22 23]
    """
    return np.delete(tokens, rng.choice(len(tokens), rounded(rate * len(tokens), rng), replace=False))


def mask(tokens: np.ndarray, rng: np.random.Generator, *, rate: float, mask_id: int) -> np.ndarray:
    """Replaces a share `rate` of the tokens by a mask token each.

    tokens    [20 21 22 23 24]
    noised    [20  M 22 23  M]
    """
    noised = tokens.copy()
    noised[rng.choice(len(tokens), rounded(rate * len(tokens), rng), replace=False)] = mask_id
    return noised


def noise(
    tokens: np.ndarray, rng: np.random.Generator, *, c: config.Denoise, mask_id: int | None, sentence_ends: Ends
) -> np.ndarray:
    """Applies every noise that is on: first those that move tokens, then those that remove some. Never longer than the text."""
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


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, noise: Noise, bos: int, eos: int) -> Example:
    """The encoder reads the noised text, the decoder predicts the complete one.

    tokens    [20 21 22 23]
    encoder   [20  M 23 eos]
    decoder   [bos 20 21 22 23]
    targets   [20 21 22 23 eos]
    weights   [ 1  1  1  1  1]
    """
    tokens = without_ends(tokens, bos, eos)
    return reconstruct(tokens, noise(tokens, rng), bos=bos, eos=eos)


def build_noised(noise: Noise, data: config.Data, v: Vocabulary) -> Objective:
    """Predicts the text from what `noise` makes of it. Windows one shorter than the shorter row, for eos or bos."""
    rows = both_lengths(data)
    make = partial(encoder_decoder, noise=noise, bos=v.bos_id, eos=v.eos_id)
    window = min(rows) - 1
    return Objective(make, Lengths(*rows), window, window, shortest=1, ends=ends(v))


def build_encoder_decoder(c: config.Denoise, data: config.Data, v: Vocabulary) -> Objective:
    """UserError if a noise that is on needs a mask token and the tokenizer has none."""
    mask_id = required_mask(v, c) if c.infill or c.mask else None
    return build_noised(partial(noise, c=c, mask_id=mask_id, sentence_ends=v.sentence_ends), data, v)


def ask(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left M right eos`, one mask token for the whole target; decoder `bos left target`; the target is scored."""
    encoder = stream(join(span.left, [mask_token(v)], span.right, [v.eos_id]))
    return [answer(join([decoder_start(v)], span.left, span.target), len(span.target), encoder=encoder)]


_GAP = "given a gap of unknown length, the decoder rewriting the text up to it"

OBJECTIVE = Declaration(
    config.Denoise,
    suits={
        "encoder_decoder": Suit(
            build_encoder_decoder,
            factors=False,
            reads_prefix=False,
            spans={
                "suffix": SpanPrompt(ask, True, _GAP, without_ends=True),
                "infill": SpanPrompt(ask, True, _GAP, without_ends=True),
                "pll": SpanPrompt(word_by_word(ask), False, EACH_WORD, without_ends=True),
            },
        )
    },
    refused={
        "decoder": "the noised text has no stream of its own; take 'span_corruption', or an encoder-decoder",
        "encoder": "an encoder predicts a token for each position that it reads, and the noised text has other positions than "
        "the text; take 'masked', or an encoder-decoder",
    },
    prompt=TextPrompt(with_masks, noised=True, rewrites=True),
)
