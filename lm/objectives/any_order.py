"""Next tokens in any order: each token has its own position and that of the token to come (sigma-GPT, arXiv 2404.09562).

XLNet (arXiv 1906.08237) predicts in random orders too. Its second stream of attention exists to tell a query which position is
asked for without showing the token there; a second position on each input does the same in one stream.
"""

from functools import partial

import numpy as np

from lm import config
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, required_length
from lm.objectives.prompts import Span, SpanPrompt, TextPrompt, as_is, join, without_marks
from lm.objectives.vocabulary import Vocabulary
from lm.types import Example, TokenStream

GIVEN = "chain rule, left to right, given its length"


def decoder(tokens: np.ndarray, rng: np.random.Generator, *, left_to_right: float = 0.0) -> Example:
    """Predicts all tokens but the first in a random order, each from those before it in that order.

    tokens      [bos 20 21 22], in the order 0 2 3 1
    decoder     [bos 21 22]
    positions   [ 0  2  3 ]
    ahead       [ 2  3  1 ]
    targets     [21 22 20]
    weights     [ 1  1  1 ]
    """
    later = np.arange(1, len(tokens))
    return ordered(tokens, np.append(0, later if rng.random() < left_to_right else rng.permutation(later)))


def ordered(tokens: np.ndarray, order: np.ndarray) -> Example:
    """Predicts the tokens at the positions order[1:], each from those at the positions before it in `order`, int32 [n]."""
    tokens, order = np.asarray(tokens, np.int32), np.asarray(order, np.int32)
    read = order[:-1]
    stream = TokenStream(tokens[read], read, np.ones(len(read), np.int32), ahead=order[1:])
    return Example(None, stream, tokens[order[1:]], np.ones(len(read), np.float32))


def build_decoder(c: config.AnyOrder, data: config.Data, v: Vocabulary) -> Objective:
    """A window has one token more than the row, as that of `causal`; its first token is only read."""
    length = required_length(data, "decoder_length")
    make = partial(decoder, left_to_right=c.left_to_right)
    return Objective(make, Lengths(None, length, ahead=True), length + 1, length, shortest=2)


def ask(span: Span, v: Vocabulary) -> list[Example]:
    """decoder `left right target`, in positions of the text; the target is scored from left to right."""
    text, n, size = join(span.left, span.target, span.right), len(span.left), len(span.target)
    places = np.arange(len(text))
    e = ordered(text, np.concatenate([places[:n], places[n + size :], places[n : n + size]]))
    last = np.arange(len(text) - 1 - size, len(text) - 1, dtype=np.int32)
    return [Example(None, e.decoder, e.targets[last], e.weights[last], last)]


OBJECTIVE = Declaration(
    config.AnyOrder,
    suits={
        "decoder": Suit(
            build_decoder,
            factors="bound",
            reads_prefix=False,
            spans={"suffix": SpanPrompt(ask, True, GIVEN), "infill": SpanPrompt(ask, True, GIVEN)},
        )
    },
    refused={
        "encoder": "an encoder predicts all tokens at once; take 'masked_diffusion', whose bound is over the same orders",
        "encoder_decoder": "the encoder would have nothing to read; take 'prefix', or a decoder alone",
    },
    prompt=TextPrompt(as_is, without_marks),
)
