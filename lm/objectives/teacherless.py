"""Teacherless training: the rest of a text from its first part alone, all its tokens at once (arXiv 2403.06963, section 5).

A model of next tokens learns each token of an answer given the right ones before it, and may find the later ones so easily
that it never learns what the first one takes. Here it is given none of them.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lm import config
from lm.objectives import prefix
from lm.objectives.declaration import Declaration, Objective, Suit
from lm.objectives.prompts import Ask, Span, SpanPrompt, TextPrompt, as_is, mask_token, without_marks
from lm.objectives.vocabulary import Vocabulary, required_mask
from lm.types import Example


def decoder(tokens: np.ndarray, rng: np.random.Generator, given: int | None = None, *, mask_id: int) -> Example:
    """As `prefix.decoder`, with masks in place of what is predicted.

    tokens    [5 6 7 8 9], split after 2
    decoder   [5 6 M M]
    prefix    [1 1 0 0]
    targets   [6 7 8 9]
    weights   [0 1 1 1]
    """
    return hidden(prefix.decoder(tokens, rng, given), mask_id)


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, bos: int, mask_id: int) -> Example:
    """As `prefix.encoder_decoder`, with masks in place of what is predicted.

    tokens    [5 6 7 8 9], split after 2
    encoder   [5 6]
    decoder   [bos M M]
    targets   [7 8 9]
    weights   [1 1 1]
    """
    return hidden(prefix.encoder_decoder(tokens, rng, bos=bos), mask_id)


def hidden(e: Example, mask_id: int) -> Example:
    """The example with masks at all tokens of the decoder but those of its prefix; without one, but the first."""
    stream: Any = e.decoder
    seen = np.arange(len(stream.tokens)) < 1 if stream.prefix is None else stream.prefix
    return replace(e, decoder=replace(stream, tokens=np.where(seen, stream.tokens, mask_id).astype(np.int32)))


def build_decoder(c: config.Teacherless, data: config.Data, v: Vocabulary) -> Objective:
    """Windows as those of `lm.objectives.prefix`."""
    return replace(prefix.build_decoder(config.Prefix(), data, v), make=partial(decoder, mask_id=required_mask(v, c)))


def build_encoder_decoder(c: config.Teacherless, data: config.Data, v: Vocabulary) -> Objective:
    """Windows as those of `lm.objectives.prefix`."""
    make = partial(encoder_decoder, bos=v.bos_id, mask_id=required_mask(v, c))
    return replace(prefix.build_encoder_decoder(config.Prefix(), data, v), make=make)


def _hidden(ask: Ask) -> Ask:
    """Asks for the same without showing any of it."""

    def each(span: Span, v: Vocabulary) -> list[Example]:
        asked: list[Any] = ask(span, v)
        return [hidden(e, mask_token(v)) for e in asked]

    return each


AT_ONCE = "all its tokens at once, each without the others"
OBJECTIVE = Declaration(
    config.Teacherless,
    suits={
        "decoder": Suit(
            build_decoder,
            factors=False,
            reads_prefix=True,
            gives=True,
            spans={"suffix": SpanPrompt(_hidden(prefix.ask_decoder), True, AT_ONCE)},
        ),
        "encoder_decoder": Suit(
            build_encoder_decoder,
            factors=False,
            reads_prefix=False,
            spans={"suffix": SpanPrompt(_hidden(prefix.ask_encoder_decoder), True, AT_ONCE)},
        ),
    },
    refused={"encoder": "an encoder sees masks in its input; take 'masked_diffusion', or a decoder"},
    prompt=TextPrompt(as_is, without_marks, at_once=True),
)
