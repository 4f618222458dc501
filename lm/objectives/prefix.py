"""Prefix language modelling (T5, arXiv 1910.10683, section 3.2.3): a text is split at random, its second part predicted."""

from functools import partial

import numpy as np

from lm import config
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, both_lengths, required_length
from lm.objectives.prompts import CHAIN, JOINT, Span, SpanPrompt, TextPrompt, answer, as_is, join, without_marks
from lm.objectives.streams import stream
from lm.objectives.vocabulary import Vocabulary, decoder_start
from lm.types import Example


def split(n: int, rng: np.random.Generator) -> int:
    """Tokens in the prefix: uniform on 1..n-1, so that neither part is empty."""
    return int(rng.integers(1, n))


def decoder(tokens: np.ndarray, rng: np.random.Generator, given: int | None = None) -> Example:
    """One stream; the prefix is seen from both sides, and only the tokens after it have weight. With `given` it has so many
    tokens.

    tokens    [5 6 7 8 9], split after 2
    decoder   [5 6 7 8]
    prefix    [1 1 0 0]
    targets   [6 7 8 9]
    weights   [0 1 1 1]
    """
    n = len(tokens)
    k = split(n, rng) if given is None else given
    index = np.arange(n - 1)
    return Example(
        None,
        stream(tokens[:-1], prefix=index < k),
        np.asarray(tokens[1:], np.int32),
        (index >= k - 1).astype(np.float32),
    )


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, bos: int) -> Example:
    """Two streams: the encoder reads the prefix, the decoder predicts the rest.

    tokens    [5 6 7 8 9], split after 2
    encoder   [5 6]
    decoder   [bos 7 8]
    targets   [7 8 9]
    weights   [1 1 1]
    """
    k = split(len(tokens), rng)
    rest = np.asarray(tokens[k:], np.int32)
    return Example(
        stream(tokens[:k]),
        stream(np.concatenate([[bos], rest[:-1]])),
        rest,
        np.ones(len(rest), np.float32),
    )


def build_decoder(c: config.Prefix, data: config.Data, v: Vocabulary) -> Objective:
    """Windows as those of `lm.objectives.causal`."""
    length = required_length(data, "decoder_length")
    return Objective(decoder, Lengths(None, length, prefix=True), length + 1, length, shortest=2)


def build_encoder_decoder(c: config.Prefix, data: config.Data, v: Vocabulary) -> Objective:
    """Either part may be all of the window but one token, so the shorter row limits it."""
    encoder, decoder = both_lengths(data)
    window = min(encoder, decoder) + 1
    return Objective(partial(encoder_decoder, bos=v.bos_id), Lengths(encoder, decoder), window, window, shortest=2)


def ask_decoder(span: Span, v: Vocabulary) -> list[Example]:
    """decoder `left target right`, `left` the prefix; everything after it is scored."""
    count = len(span.target) + len(span.right)
    return [answer(join(span.left, span.target, span.right), count, prefix=len(span.left))]


def ask_encoder_decoder(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left`, decoder `bos target right`; everything after bos is scored."""
    count = len(span.target) + len(span.right)
    return [answer(join([decoder_start(v)], span.target, span.right), count, encoder=stream(span.left))]


OBJECTIVE = Declaration(
    config.Prefix,
    suits={
        "decoder": Suit(
            build_decoder,
            factors=False,
            reads_prefix=True,
            gives=True,
            spans={"suffix": SpanPrompt(ask_decoder, True, CHAIN), "infill": SpanPrompt(ask_decoder, False, JOINT)},
        ),
        "encoder_decoder": Suit(
            build_encoder_decoder,
            factors=False,
            reads_prefix=False,
            spans={
                "suffix": SpanPrompt(ask_encoder_decoder, True, CHAIN),
                "infill": SpanPrompt(ask_encoder_decoder, False, JOINT),
            },
        ),
    },
    refused={"encoder": "an encoder sees the continuation in its input; take 'masked', or a decoder"},
    prompt=TextPrompt(as_is, without_marks),
)
