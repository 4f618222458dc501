"""Objectives: what is asked of a model, as pure functions `(tokens, rng) -> Example` on the host.

`SUITS` is the table of which architecture takes which objective; `REFUSED` says why the rest makes no sense and what
comes nearest. Both are what the README shows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from lm import config
from lm.errors import UserError
from lm.objectives import causal, masked, prefix, spans
from lm.types import Example


class Vocabulary(Protocol):
    """What objectives ask of a tokenizer."""

    vocab_size: int
    bos_id: Any
    eos_id: Any
    mask_id: int | None
    sentinel_ids: tuple[int, ...]
    reserved: int
    word_start: np.ndarray


@dataclass(frozen=True)
class Lengths:
    """Places in a row: of the encoder, of the decoder, and of predictions if fewer than there are places.

    `prefix`: the decoder's stream says which of its keys all may see.
    """

    encoder: int | None
    decoder: int | None
    predicted: int | None = None
    prefix: bool = False


@dataclass(frozen=True)
class Objective:
    """`make(tokens, rng)` turns a piece of one document into an Example of one segment.

    `window` is how many tokens of text fill a row, `stride` how far apart windows start (one less where the last token of
    a window is only predicted, so that it is read by the next), `dynamic` whether an epoch brings new randomness.
    """

    make: Callable[[np.ndarray, np.random.Generator], Example]
    lengths: Lengths
    window: int
    stride: int
    dynamic: bool = True
    shortest: int = 4


def _causal(c: config.Causal, data: config.Data, v: Vocabulary) -> Objective:
    length = _need(data, "decoder_length")
    return Objective(causal.decoder, Lengths(None, length), length + 1, length, shortest=2)


def _prefix_decoder(c: config.Prefix, data: config.Data, v: Vocabulary) -> Objective:
    length = _need(data, "decoder_length")
    return Objective(prefix.decoder, Lengths(None, length, prefix=True), length + 1, length)


def _prefix_both(c: config.Prefix, data: config.Data, v: Vocabulary) -> Objective:
    encoder, decoder = _need(data, "encoder_length"), _need(data, "decoder_length")
    window = min(encoder, decoder) + 1
    return Objective(partial(prefix.encoder_decoder, bos=v.bos_id), Lengths(encoder, decoder), window, window)


def _noise(c: config.Masked, v: Vocabulary) -> Callable[..., Any]:
    if v.mask_id is None:
        raise UserError("objective 'masked' needs a mask token and the tokenizer has none; train one, or take 'causal'")
    return partial(
        masked.noise,
        rate=c.rate,
        mask=c.mask,
        random=c.random,
        mask_id=v.mask_id,
        reserved=v.reserved,
        vocab_size=v.vocab_size,
        word_start=v.word_start if c.whole_word else None,
    )


def _masked_encoder(c: config.Masked, data: config.Data, v: Vocabulary) -> Objective:
    length = _need(data, "encoder_length")
    # A few places to spare: each document in a row rounds its own share.
    predicted = min(length, 8 * int(np.ceil((length * c.rate + 8) / 8)))
    make = partial(masked.encoder, noise=_noise(c, v))
    return Objective(make, Lengths(length, None, predicted), length, length, c.dynamic)


def _masked_both(c: config.Masked, data: config.Data, v: Vocabulary) -> Objective:
    encoder, decoder = _need(data, "encoder_length"), _need(data, "decoder_length")
    make = partial(masked.encoder_decoder, noise=_noise(c, v), bos=v.bos_id, eos=v.eos_id)
    window = min(encoder, decoder) - 1
    return Objective(make, Lengths(encoder, decoder), window, window, c.dynamic)


def _replaced_tokens(c: config.ReplacedTokens, data: config.Data, v: Vocabulary) -> Objective:
    """What the generator reads: all that is chosen is masked (arXiv 2003.10555, section 2); the rest is the loss's."""
    return _masked_encoder(config.Masked(c.rate, mask=1.0, random=0.0), data, v)


def _spans_decoder(c: config.SpanCorruption, data: config.Data, v: Vocabulary) -> Objective:
    length = _need(data, "decoder_length")
    window = spans.window(length, c, fits=lambda encoder, decoder: encoder + decoder)
    make = partial(spans.decoder, **_span_settings(c, v, window))
    return Objective(make, Lengths(None, length, prefix=True), window, window)


def _spans_both(c: config.SpanCorruption, data: config.Data, v: Vocabulary) -> Objective:
    encoder, decoder = _need(data, "encoder_length"), _need(data, "decoder_length")
    window = spans.window(encoder, c)
    targets = spans.lengths(window, c)[1]
    if targets > decoder:
        raise UserError(
            f"data.decoder_length is {decoder}; span corruption of {encoder} encoder tokens gives up to {targets} targets: "
            f"set data.decoder_length={targets} or more, or shorten data.encoder_length"
        )
    make = partial(spans.encoder_decoder, **_span_settings(c, v, window))
    return Objective(make, Lengths(encoder, decoder), window, window)


def _span_settings(c: config.SpanCorruption, v: Vocabulary, window: int) -> dict[str, Any]:
    needed = spans.counts(window, c.rate, c.mean_span)[1]
    if needed > len(v.sentinel_ids):
        raise UserError(
            f"span corruption of {window} tokens takes {needed} sentinels, the tokenizer has {len(v.sentinel_ids)}: "
            "raise objective.mean_span, lower objective.rate, or shorten the row"
        )
    sentinels = np.array(v.sentinel_ids, np.int32)
    return dict(rate=c.rate, mean_span=c.mean_span, sentinels=sentinels, bos=v.bos_id, eos=v.eos_id)


SUITS: dict[tuple[str, type], Callable[[Any, config.Data, Any], Objective]] = {
    ("decoder", config.Causal): _causal,
    ("decoder", config.Prefix): _prefix_decoder,
    ("decoder", config.SpanCorruption): _spans_decoder,
    ("encoder", config.Masked): _masked_encoder,
    ("encoder", config.ReplacedTokens): _replaced_tokens,
    ("encoder_decoder", config.Prefix): _prefix_both,
    ("encoder_decoder", config.Masked): _masked_both,
    ("encoder_decoder", config.SpanCorruption): _spans_both,
}

REFUSED: dict[tuple[str, type], str] = {
    ("decoder", config.Masked): "a causal decoder does not see what follows a mask; take 'span_corruption', which asks for "
    "the same tokens behind the text, or an encoder",
    ("encoder", config.Causal): "an encoder sees the next token in its input; take 'masked', or a decoder",
    ("encoder", config.Prefix): "an encoder sees the continuation in its input; take 'masked', or a decoder",
    ("encoder", config.SpanCorruption): "an encoder gives one token a place and a span has several; take 'masked', or an "
    "encoder-decoder",
    ("decoder", config.ReplacedTokens): "masks are filled in from both sides; take 'causal', or an encoder",
    ("encoder_decoder", config.ReplacedTokens): "a decoder has nothing to write; take 'masked', or an encoder",
    ("encoder_decoder", config.Causal): "the encoder would have nothing to read; take 'prefix', or a decoder alone",
}


def build(objective: config.Objective, architecture: str, data: config.Data, vocabulary: Vocabulary) -> Objective:
    """The objective for this architecture and these lengths; UserError with the reason where it makes no sense."""
    key = (architecture, type(objective))
    if key not in SUITS:
        raise UserError(f"objective '{config.kind_of(key[1])}' does not suit the {architecture}: {REFUSED[key]}")
    if vocabulary.bos_id is None or vocabulary.eos_id is None:
        raise UserError("the tokenizer has no bos or no eos token, which mark where documents begin and end; train one here")
    return SUITS[key](objective, data, vocabulary)


def _need(data: config.Data, name: str) -> int:
    length = getattr(data, name)
    if length is None or length < 8:
        raise UserError(f"data.{name} is {length}; this architecture and objective need it, 8 or more tokens")
    return length
