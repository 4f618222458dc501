"""Masked sequence to sequence: a decoder predicts one masked span of the text (MASS, arXiv 1905.02450, section 3.2)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lm import config
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, both_lengths
from lm.objectives.prompts import (
    EACH_WORD,
    Span,
    SpanPrompt,
    TextPrompt,
    answer,
    hide,
    join,
    mask_token,
    word_by_word,
)
from lm.objectives.streams import stream, without_ends
from lm.objectives.vocabulary import Vocabulary, required_mask
from lm.types import Example, TokenStream


def length(n: int, share: float) -> int:
    """Tokens in the masked span of a text of n: at least 1, at most n - 1."""
    return min(max(round(n * share), 1), n - 1)


def window(encoder: int, decoder: int, share: float) -> int:
    """The most tokens of text that fit: the encoder reads all of them and eos, the decoder the masked span."""
    return max(n for n in range(2, encoder) if n == 2 or length(n, share) <= decoder)


def encoder_decoder(tokens: np.ndarray, rng: np.random.Generator, *, share: float, mask_id: int, bos: int, eos: int) -> Example:
    """The decoder starts with a mask token, and has the span's positions in the text, so it knows where it is.

    tokens      [20 21 22 23 24 25], the span 22 23 24
    encoder     [20 21  M  M  M 25 eos]
    decoder     [ M 22 23]
    positions   [ 2  3  4]
    targets     [22 23 24]
    weights     [ 1  1  1]
    """
    tokens = without_ends(tokens, bos, eos)
    size = length(len(tokens), share)
    start = int(rng.integers(len(tokens) - size + 1))
    positions = np.arange(start, start + size, dtype=np.int32)
    noised, targets = tokens.copy(), tokens[positions]
    noised[positions] = mask_id
    reads = np.concatenate([[mask_id], targets[:-1]]).astype(np.int32)
    return Example(
        stream(np.append(noised, eos)),
        TokenStream(reads, positions, np.ones(size, np.int32)),
        targets,
        np.ones(size, np.float32),
    )


def build_encoder_decoder(c: config.Mass, data: config.Data, v: Vocabulary) -> Objective:
    """The decoder's positions reach to the window's end, past its own row."""
    encoder, decoder = both_lengths(data)
    size = window(encoder, decoder, c.share)
    make = partial(encoder_decoder, share=c.share, mask_id=required_mask(v, c), bos=v.bos_id, eos=v.eos_id)
    return Objective(make, Lengths(encoder, decoder), size, size, reach=size)


def ask(span: Span, v: Vocabulary) -> list[Example]:
    """encoder `left M..M right eos`, decoder `M target` at the target's positions in the text; the target is scored."""
    n = len(span.target)
    e = answer(join([mask_token(v)], span.target), n, encoder=stream(join(hide(span, 0, n, v), [v.eos_id])))
    decoder: Any = e.decoder
    return [replace(e, decoder=replace(decoder, positions=decoder.positions + len(span.left)))]


def with_masked_span(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    """As many masks as a prompt has tokens, up to `new_tokens`, at its mark, or at its end if it has none."""
    size = min(max(sum(map(len, parts)), 1), new_tokens)
    return [parts[0], np.full(size, tokenizer.mask_id, np.int32), *parts[1:]]


_IN_MASKS = "given its length in masks, left to right"

OBJECTIVE = Declaration(
    config.Mass,
    suits={
        "encoder_decoder": Suit(
            build_encoder_decoder,
            factors=False,
            reads_prefix=False,
            spans={
                "suffix": SpanPrompt(ask, True, _IN_MASKS, aligned=True, without_ends=True),
                "infill": SpanPrompt(ask, True, _IN_MASKS, aligned=True, without_ends=True),
                "pll": SpanPrompt(word_by_word(ask), False, EACH_WORD, aligned=True, without_ends=True),
            },
        )
    },
    refused={
        "decoder": "the masked text has no stream of its own; take 'span_corruption' with one long span, or an encoder-decoder",
        "encoder": "the span is predicted token by token, and an encoder predicts all at once; take 'masked', or an "
        "encoder-decoder",
    },
    prompt=TextPrompt(with_masked_span, noised=True, from_masks=True),
)
