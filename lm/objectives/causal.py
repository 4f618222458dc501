"""Next-token prediction."""

import numpy as np

from lm import config
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, required_length
from lm.objectives.prompts import CHAIN, JOINT, Span, SpanPrompt, TextPrompt, answer, as_is, join, without_marks
from lm.objectives.streams import stream
from lm.objectives.vocabulary import Vocabulary
from lm.types import Example


def decoder(tokens: np.ndarray, rng: np.random.Generator, given: int = 0) -> Example:
    """Predicts every token from those before it, but for the first `given` ones, which are only read.

    tokens    [5 6 7 8]
    decoder   [5 6 7]
    targets   [6 7 8]
    weights   [1 1 1]; of 2 given [0 1 1]
    """
    weights = (np.arange(1, len(tokens)) >= given).astype(np.float32)
    return Example(None, stream(tokens[:-1]), np.asarray(tokens[1:], np.int32), weights)


def build_decoder(c: config.Causal, data: config.Data, v: Vocabulary) -> Objective:
    """A window has one token more than the row; its last token is only predicted, and read by the next window."""
    length = required_length(data, "decoder_length")
    return Objective(decoder, Lengths(None, length), length + 1, length, draws=False, shortest=2)


def ask(span: Span, v: Vocabulary) -> list[Example]:
    """decoder `left target right`; everything after `left` is scored."""
    return [answer(join(span.left, span.target, span.right), len(span.target) + len(span.right))]


OBJECTIVE = Declaration(
    config.Causal,
    suits={
        "decoder": Suit(
            build_decoder,
            factors=True,
            reads_prefix=False,
            gives=True,
            spans={"suffix": SpanPrompt(ask, True, CHAIN), "infill": SpanPrompt(ask, False, JOINT)},
        )
    },
    refused={
        "encoder": "an encoder sees the next token in its input; take 'masked', or a decoder",
        "encoder_decoder": "the encoder would have nothing to read; take 'prefix', or a decoder alone",
    },
    prompt=TextPrompt(as_is, without_marks),
)
