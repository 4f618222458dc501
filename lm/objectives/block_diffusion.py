"""Block diffusion: blocks of tokens from left to right, each by masked diffusion (BD3-LM, arXiv 2503.09573)."""

from functools import partial

import numpy as np

from lm import config
from lm.errors import UserError
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, required_length, spread
from lm.objectives.masked_diffusion import draw
from lm.objectives.prompts import REVEALED, Span, SpanPrompt, TextPrompt, as_is, join, mask_token
from lm.objectives.vocabulary import Vocabulary, required_mask
from lm.types import Example, TokenStream


def decoder(
    tokens: np.ndarray,
    rng: np.random.Generator,
    at: float | None = None,
    *,
    block: int,
    mask_id: int,
    bos: int,
    schedule: str = "linear",
) -> Example:
    """The text and its noised copy, in which every block has masks of its own number (`masked_diffusion.draw`). A noised block
    sees the text before it (`lm.models.mask`). Weights of a block sum to its tokens, bos apart.

    tokens      [bos 20 21 22 eos], blocks of 2
    decoder     [bos 20 21 22 eos  bos  M  M 22  M ]
    positions   [ 0  1  2  3   4    0   1  2  3  4 ]
    blocks      [ 1  1  3  3   5    0   0  2  2  4 ]
    where       [ 5  6  7  8   9 ]
    targets     [bos 20 21 22 eos]
    weights     [ 0  1  2  0   1 ]
    """
    tokens = np.asarray(tokens, np.int32)
    n = len(tokens)
    noised, weights = tokens.copy(), np.zeros(n, np.float32)
    for number, first in enumerate(range(0, n, block)):
        candidates = first + np.flatnonzero(tokens[first : first + block] != bos)
        if len(candidates):
            part = None if at is None else spread(number, at)
            chosen, weight = draw(candidates, rng, part, schedule)
            noised[chosen], weights[chosen] = mask_id, weight
    return Example(None, twice(tokens, noised, block), tokens, weights, np.arange(n, 2 * n, dtype=np.int32))


def twice(tokens: np.ndarray, noised: np.ndarray, block: int, first: int = 0) -> TokenStream:
    """A text and a noised copy of its tokens from index `first` on, as one segment."""
    positions = np.arange(max(len(tokens), first + len(noised)), dtype=np.int32)
    text, copy = positions[: len(tokens)], positions[first : first + len(noised)]
    return TokenStream(
        join(tokens, noised),
        join(text, copy),
        np.ones(len(tokens) + len(noised), np.int32),
        blocks=join(2 * (text // block) + 1, 2 * (copy // block)),
    )


def build_decoder(c: config.BlockDiffusion, data: config.Data, v: Vocabulary) -> Objective:
    """Windows half as long as the row."""
    length = required_length(data, "decoder_length")
    window = length // 2
    if c.block > window:
        raise UserError(f"objective.block={c.block} is longer than the text of a row, {window} tokens: data.decoder_length / 2")
    make = partial(decoder, block=c.block, mask_id=required_mask(v, c), bos=v.bos_id, schedule=c.schedule)
    return Objective(make, Lengths(None, length, window, blocks=c.block), window, window, shortest=1, stratified=True)


def ask(span: Span, v: Vocabulary, *, block: int) -> list[Example]:
    """For each token: it and the rest of the target in its block are masked, given the text before the block.

    left [5 6 7], target [8 9 10], blocks of 2, the second token
    decoder   [5 6 7 8  M M],   blocks [1 1 3 3  4 4],   where [4],   targets [9]
    """
    text, out = join(span.left, span.target), []
    for at in range(len(span.left), len(text)):
        first = at // block * block
        noised = text[first : first + block].copy()
        noised[at - first :] = mask_token(v)
        where = np.array([at], np.int32)  # the copy begins at `first`, where the text ends
        stream = twice(text[:first], noised, block, first)
        out.append(Example(None, stream, text[at : at + 1], np.ones(1, np.float32), where))
    return out


def spans(c: config.BlockDiffusion) -> dict[str, SpanPrompt]:
    return {"suffix": SpanPrompt(partial(ask, block=c.block), True, f"{REVEALED}, within blocks of {c.block}")}


OBJECTIVE = Declaration(
    config.BlockDiffusion,
    suits={"decoder": Suit(build_decoder, factors="bound", reads_prefix=False, spans=spans)},
    refused={
        "encoder": "an encoder sees all blocks at once; take 'masked_diffusion', or a decoder",
        "encoder_decoder": "blocks follow each other in one stack; take 'masked', or a decoder",
    },
    prompt=TextPrompt(as_is, blocks=True),
)
