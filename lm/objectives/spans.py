"""Span corruption (T5, arXiv 1910.10683, section 3.1.4; lengths as in section 3.3.4)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from lm import config
from lm.errors import UserError
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, both_lengths, required_length
from lm.objectives.prompts import EACH_WORD, Span, SpanPrompt, TextPrompt, answer, interleave, join, word_by_word
from lm.objectives.streams import stream, without_ends
from lm.objectives.vocabulary import Vocabulary, decoder_start
from lm.types import Example


def counts(n: int, rate: float, mean_span: float) -> tuple[int, int]:
    """How many of n tokens are noise, and in how many spans. At least one token is noise and one is text; each span has a
    token of text before it."""
    noise = min(max(round(n * rate), 1), n - 1)
    spans = min(max(round(noise / mean_span), 1), noise, n - noise)
    return noise, spans


def most_spans(n: int, c: config.SpanCorruption) -> int:
    """In how many spans the noise of n tokens is, at most: where the ends of the text meet, `roll` may cut one in two."""
    noise, spans = counts(n, c.rate, c.mean_span)
    return min(spans + c.roll, noise)


def lengths(n: int, c: config.SpanCorruption) -> tuple[int, int]:
    """Tokens of the corrupted text and of the targets that n tokens give at most, each with a sentinel for every span and an
    eos."""
    noise, spans = counts(n, c.rate, c.mean_span)[0], most_spans(n, c)
    return n - noise + spans + 1, noise + spans + 1


def window(room: int, c: config.SpanCorruption, *, fits: Callable[[int, int], int] = lambda encoder, _: encoder) -> int:
    """The most tokens of text whose corrupted form fits into `room`: 512 in the encoder take 568 and give 114 targets.

    `fits(inputs, targets)` is how much room the two need: their sum for one stream that holds both.
    """
    n = 2
    while fits(*lengths(n + 1, c)) <= room:
        n += 1
    # T5's exception for a rate of 50 %: the targets must not be longer than the inputs.
    return n - 1 if c.rate == 0.5 and lengths(n, c)[1] > lengths(n, c)[0] else n


def noise_mask(n: int, rng: np.random.Generator, *, rate: float, mean_span: float, roll: bool = False) -> np.ndarray:
    """bool [n], True for noise: spans of random lengths; the first token is text, the last is noise. With `roll` it is rotated
    by a random number of tokens, so that each token is noise equally often.

    [0 0 0 1 1 0 0 0 0 1]
    """
    noise, spans = counts(n, rate, mean_span)

    def partition(items: int) -> np.ndarray:
        """`spans` positive lengths that sum to `items`, uniform over all such lists."""
        cuts = np.sort(rng.choice(items - 1, spans - 1, replace=False)) + 1
        return np.diff(cuts, prepend=0, append=items)

    spread = np.stack([partition(n - noise), partition(noise)], axis=1).reshape(-1)
    mask = np.repeat(np.arange(2 * spans) % 2 == 1, spread)
    return np.roll(mask, rng.integers(n)) if roll else mask


def corrupt(
    tokens: np.ndarray, rng: np.random.Generator, *, rate: float, mean_span: float, sentinels: np.ndarray, roll: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The text with a sentinel in place of each span, and the spans after their sentinels; int32 both.

    tokens   [20 21 22 23 24 25 26 27 28 29], noise 23 24 and 29
    inputs   [20 21 22 s0 25 26 27 28 s1]
    targets  [s0 23 24 s1 29]
    """
    mask = noise_mask(len(tokens), rng, rate=rate, mean_span=mean_span, roll=roll)
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
    """One stream (T5, section 3.2.1): the inputs are a prefix that is seen from both sides, the targets follow.

    With `prefix=False` everything is read left to right (T5's Table 2: a "language model" under a denoising objective).

    tokens    [20 21 22 23 24 25]
    decoder   [20 21 s0 24 25 eos s0 22 23]
    prefix    [ 1  1  1  1  1   1  0  0  0]
    targets   [21 s0 24 25 eos s0 22 23 eos]
    weights   [ 0  0  0  0  0   1  1  1  1]
    """
    inputs, targets = corrupt(without_ends(tokens, bos, eos), rng, **settings)
    both = np.concatenate([inputs, [eos], targets, [eos]]).astype(np.int32)
    index, start = np.arange(len(both) - 1), len(inputs) + 1
    seen = index < start if prefix else None
    return Example(None, stream(both[:-1], prefix=seen), both[1:], (index >= start - 1).astype(np.float32))


def build_decoder(c: config.SpanCorruption, data: config.Data, v: Vocabulary) -> Objective:
    """A window's corrupted text and its targets fill one row."""
    length = required_length(data, "decoder_length")
    size = window(length, c, fits=lambda inputs, targets: inputs + targets)
    make = partial(decoder, prefix=c.prefix, **_settings(c, v, size))
    return Objective(make, Lengths(None, length, prefix=c.prefix), size, size, sentinels=most_spans(size, c))


def build_encoder_decoder(c: config.SpanCorruption, data: config.Data, v: Vocabulary) -> Objective:
    """A window's corrupted text fills the encoder's row; UserError if its targets do not fit the decoder's."""
    encoder, decoder = both_lengths(data)
    size = window(encoder, c)
    targets = lengths(size, c)[1]
    if targets > decoder:
        raise UserError(
            f"data.decoder_length is {decoder}; span corruption of {encoder} encoder tokens gives up to {targets} targets: "
            f"set data.decoder_length={targets} or more, or shorten data.encoder_length"
        )
    make = partial(encoder_decoder, **_settings(c, v, size))
    return Objective(make, Lengths(encoder, decoder), size, size, sentinels=most_spans(size, c))


def _settings(c: config.SpanCorruption, v: Vocabulary, size: int) -> dict[str, Any]:
    """Keyword arguments of the functions above; UserError if a window of this size has more spans than there are sentinels."""
    needed = most_spans(size, c)
    if needed > len(v.sentinel_ids):
        raise UserError(
            f"span corruption of {size} tokens takes {needed} sentinels, the tokenizer has {len(v.sentinel_ids)}: "
            "raise objective.mean_span, lower objective.rate, or shorten the row"
        )
    sentinels = np.array(v.sentinel_ids, np.int32)
    return dict(rate=c.rate, mean_span=c.mean_span, roll=c.roll, sentinels=sentinels, bos=v.bos_id, eos=v.eos_id)


def ask_decoder(span: Span, v: Vocabulary) -> list[Example]:
    """decoder `left s0 right eos s0 target`; the prefix ends with eos, the target is scored."""
    s0 = v.sentinel_ids[:1]
    given = join(span.left, s0, span.right, [v.eos_id])
    return [answer(join(given, s0, span.target), len(span.target), prefix=len(given))]


def ask_encoder_decoder(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left s0 right eos`, decoder `bos s0 target`; the target is scored."""
    s0 = v.sentinel_ids[:1]
    given = stream(join(span.left, s0, span.right, [v.eos_id]))
    return [answer(join([decoder_start(v)], s0, span.target), len(span.target), encoder=given)]


def with_sentinels(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    """A sentinel at each mark of a prompt, in order."""
    known = tokenizer.sentinel_ids
    if len(parts) - 1 > len(known):
        raise UserError(
            f"a prompt of log.samples has {len(parts) - 1} marks, the tokenizer {len(known)} sentinels: leave some out"
        )
    return interleave(parts, [[known[k]] for k in range(len(parts) - 1)])


_ANSWER = "behind its sentinel; the answer's end mark is not counted"
_TWO_SIDED = "behind its sentinel, which never ended an input in training as `right` does; the end mark is not counted"

OBJECTIVE = Declaration(
    config.SpanCorruption,
    suits={
        "decoder": Suit(
            build_decoder,
            factors=False,
            reads_prefix=lambda c: c.prefix,
            spans={
                "suffix": SpanPrompt(ask_decoder, True, _ANSWER, without_ends=True),
                "infill": SpanPrompt(ask_decoder, True, _TWO_SIDED, without_ends=True),
                "pll": SpanPrompt(word_by_word(ask_decoder), False, EACH_WORD, without_ends=True),
            },
        ),
        "encoder_decoder": Suit(
            build_encoder_decoder,
            factors=False,
            reads_prefix=False,
            spans={
                "suffix": SpanPrompt(ask_encoder_decoder, True, _ANSWER, without_ends=True),
                "infill": SpanPrompt(ask_encoder_decoder, True, _TWO_SIDED, without_ends=True),
                "pll": SpanPrompt(word_by_word(ask_encoder_decoder), False, EACH_WORD, without_ends=True),
            },
        ),
    },
    refused={
        "encoder": "an encoder predicts one token for a position, and a span has several; take 'masked', or an encoder-decoder"
    },
    prompt=TextPrompt(with_sentinels, noised=True, sentinels=True),
)
