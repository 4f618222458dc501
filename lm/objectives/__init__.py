"""Objectives: what is asked of a model, as pure functions `(tokens, rng) -> Example` on the host.

`SUITS` is the table of which architecture takes which objective; `REFUSED` says why the rest makes no sense and what
comes nearest. Both are what the README shows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from lm import config
from lm.errors import UserError
from lm.objectives import causal, denoise, fim, masked, mass, mixture, next_sentence, prefix, spans, special_tokens
from lm.types import Example


class Vocabulary(Protocol):
    """What objectives ask of a tokenizer."""

    vocab_size: int
    bos_id: Any
    eos_id: Any
    mask_id: int | None
    sentinel_ids: tuple[int, ...]
    special: np.ndarray  # bool [vocab_size]: ids that encoding a text never produces
    reserved: int  # ids 0..reserved-1 are special, and there may be others

    def boundaries(self, tokens: np.ndarray) -> np.ndarray: ...  # uint8 [n]: INSIDE, CHARACTER or WORD (`lm.types`)

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray: ...  # bool [n]


def controls(v: Vocabulary) -> list[int]:
    """Special tokens that are not below `reserved`, sorted: BERT's files have [CLS], [SEP] and [MASK] behind the unused ones,
    those of LLaMA 3 have all behind the vocabulary."""
    return (v.reserved + np.flatnonzero(v.special[v.reserved :])).tolist()


def of_texts(v: Vocabulary, size: int) -> np.ndarray:
    """bool [size]: ids that encoding a text can produce. Special tokens are not among them, nor ids past the vocabulary."""
    known = min(size, v.vocab_size)
    return np.concatenate([~v.special[:known], np.zeros(size - known, bool)])


@dataclass(frozen=True)
class Lengths:
    """Places in a row: of the encoder, of the decoder, and of predictions if fewer than there are places.

    `prefix`: the decoder's stream says which of its keys all may see. `types`: streams have token types.
    """

    encoder: int | None
    decoder: int | None
    predicted: int | None = None
    prefix: bool = False
    types: bool = False


@dataclass(frozen=True)
class Objective:
    """`make(tokens, rng)` turns a piece of one document into an Example of one segment.

    `window` is how many tokens of text fill a row, `stride` how far apart windows start (one less where the last token of
    a window is only predicted, so that it is read by the next), `dynamic` whether an epoch brings new randomness.
    `ends`: a piece that has no tokens but these is left out, where the model would be taught to write them from nothing.
    `other`: it is `make(tokens, rng, other)`, with a text from elsewhere. `sentinels` and `marks` are how many of the
    tokenizer's sentinels it uses, from the first and from the last on. `reach` is how many positions the decoder's tokens
    may have, where these are places of the encoder's text and not of their own row.
    """

    make: Callable[..., Example]
    lengths: Lengths
    window: int
    stride: int
    dynamic: bool = True
    shortest: int = 4  # a piece of fewer tokens is left out of the rows
    ends: frozenset[int] = frozenset()
    other: bool = False
    sentinels: int = 0
    marks: int = 0
    reach: int | None = None


def _causal(c: config.Causal, data: config.Data, v: Vocabulary) -> Objective:
    length = _need(data, "decoder_length")
    return Objective(causal.decoder, Lengths(None, length), length + 1, length, shortest=2)


def _prefix_decoder(c: config.Prefix, data: config.Data, v: Vocabulary) -> Objective:
    length = _need(data, "decoder_length")
    return Objective(prefix.decoder, Lengths(None, length, prefix=True), length + 1, length, shortest=2)


def _prefix_both(c: config.Prefix, data: config.Data, v: Vocabulary) -> Objective:
    encoder, decoder = _need(data, "encoder_length"), _need(data, "decoder_length")
    window = min(encoder, decoder) + 1
    return Objective(partial(prefix.encoder_decoder, bos=v.bos_id), Lengths(encoder, decoder), window, window, shortest=2)


def _mask(v: Vocabulary, c: config.Objective) -> int:
    if v.mask_id is None:
        name = config.kind_of(type(c))
        raise UserError(
            f"objective '{name}' needs a mask token and the tokenizer has none; data.tokenizer.path=None trains one"
        )
    return v.mask_id


def _noise(c: config.Masked, v: Vocabulary) -> Callable[..., Any]:
    return partial(
        masked.noise,
        rate=c.rate,
        mask=c.mask,
        random=c.random,
        mask_id=_mask(v, c),
        reserved=v.reserved,
        vocab_size=v.vocab_size,
        boundaries=v.boundaries if c.whole_word else None,
        controls=controls(v),
    )


def _masked_encoder(c: config.Masked, data: config.Data, v: Vocabulary) -> Objective:
    if c.rate == 0:
        raise UserError("objective.rate is 0, and the loss is a mean over what is masked; set it above 0")
    length = _need(data, "encoder_length")
    # A few places to spare: each document in a row rounds its own share.
    predicted = min(length, 8 * int(np.ceil((length * c.rate + 8) / 8)))
    make = partial(masked.encoder, noise=_noise(c, v))
    return Objective(make, Lengths(length, None, predicted), length, length, c.dynamic, shortest=1)


def _masked_both(c: config.Masked, data: config.Data, v: Vocabulary) -> Objective:
    encoder, decoder = _need(data, "encoder_length"), _need(data, "decoder_length")
    make = partial(masked.encoder_decoder, noise=_noise(c, v), bos=v.bos_id, eos=v.eos_id)
    window = min(encoder, decoder) - 1
    return Objective(make, Lengths(encoder, decoder), window, window, c.dynamic, shortest=1, ends=_ends(v))


def _replaced_tokens(c: config.ReplacedTokens, data: config.Data, v: Vocabulary) -> Objective:
    """What the generator reads: all that is chosen is masked (arXiv 2003.10555, section 2); the rest is the loss's."""
    return _masked_encoder(config.Masked(c.rate, mask=1.0, random=0.0), data, v)


def _spans_decoder(c: config.SpanCorruption, data: config.Data, v: Vocabulary) -> Objective:
    length = _need(data, "decoder_length")
    window = spans.window(length, c, fits=lambda encoder, decoder: encoder + decoder)
    settings = _span_settings(c, v, window)
    used = spans.counts(window, c.rate, c.mean_span)[1]
    make = partial(spans.decoder, prefix=c.prefix, **settings)
    return Objective(make, Lengths(None, length, prefix=c.prefix), window, window, sentinels=used)


def _spans_both(c: config.SpanCorruption, data: config.Data, v: Vocabulary) -> Objective:
    encoder, decoder = _need(data, "encoder_length"), _need(data, "decoder_length")
    window = spans.window(encoder, c)
    targets = spans.lengths(window, c)[1]
    if targets > decoder:
        raise UserError(
            f"data.decoder_length is {decoder}; span corruption of {encoder} encoder tokens gives up to {targets} targets: "
            f"set data.decoder_length={targets} or more, or shorten data.encoder_length"
        )
    settings = _span_settings(c, v, window)
    used = spans.counts(window, c.rate, c.mean_span)[1]
    return Objective(partial(spans.encoder_decoder, **settings), Lengths(encoder, decoder), window, window, sentinels=used)


def _span_settings(c: config.SpanCorruption, v: Vocabulary, window: int) -> dict[str, Any]:
    needed = spans.counts(window, c.rate, c.mean_span)[1]
    if needed > len(v.sentinel_ids):
        raise UserError(
            f"span corruption of {window} tokens takes {needed} sentinels, the tokenizer has {len(v.sentinel_ids)}: "
            "raise objective.mean_span, lower objective.rate, or shorten the row"
        )
    sentinels = np.array(v.sentinel_ids, np.int32)
    return dict(rate=c.rate, mean_span=c.mean_span, sentinels=sentinels, bos=v.bos_id, eos=v.eos_id)


def _reconstruct(noise: denoise.Noise, data: config.Data, v: Vocabulary) -> Objective:
    encoder, decoder = _need(data, "encoder_length"), _need(data, "decoder_length")
    make = partial(denoise.encoder_decoder, noise=noise, bos=v.bos_id, eos=v.eos_id)
    window = min(encoder, decoder) - 1
    return Objective(make, Lengths(encoder, decoder), window, window, shortest=1, ends=_ends(v))


def _ends(v: Vocabulary) -> frozenset[int]:
    return frozenset({v.bos_id, v.eos_id})


def _denoise(c: config.Denoise, data: config.Data, v: Vocabulary) -> Objective:
    _shares(c, "infill", "permute", "mask", "delete", "rotate")
    if c.mean_span < 1:
        raise UserError(f"objective.mean_span is {c.mean_span}; set it to 1 or more")
    mask_id = _mask(v, c) if c.infill or c.mask else None
    return _reconstruct(partial(denoise.noise, c=c, mask_id=mask_id, sentence_ends=v.sentence_ends), data, v)


def _deshuffle(c: config.Deshuffle, data: config.Data, v: Vocabulary) -> Objective:
    return _reconstruct(denoise.shuffle, data, v)


def _mass(c: config.Mass, data: config.Data, v: Vocabulary) -> Objective:
    _shares(c, "share")
    encoder, decoder = _need(data, "encoder_length"), _need(data, "decoder_length")
    window = mass.window(encoder, decoder, c.share)
    make = partial(mass.encoder_decoder, share=c.share, mask_id=_mask(v, c), bos=v.bos_id, eos=v.eos_id)
    return Objective(make, Lengths(encoder, decoder), window, window, reach=window)


def _middle(c: config.FillInMiddle, data: config.Data, v: Vocabulary) -> Objective:
    _shares(c, "rate", "suffix_first")
    length = _need(data, "decoder_length")
    settings = dict(
        suffix_first=c.suffix_first, marks=special_tokens.fill_in_middle(v.sentinel_ids), bos=v.bos_id, eos=v.eos_id
    )
    make = partial(fim.decoder, rate=c.rate, **settings)
    window = length - special_tokens.MIDDLE  # three marks and eos come to it, and the last token is only predicted
    return Objective(make, Lengths(None, length), window, window - 1, shortest=2, marks=special_tokens.MIDDLE)


def _next_sentence(c: config.NextSentence, data: config.Data, v: Vocabulary) -> Objective:
    _shares(c, "negatives")
    length = _need(data, "encoder_length")
    if len(v.sentinel_ids) < 2:
        raise UserError("objective 'next_sentence' answers with two sentinels and the tokenizer has none; take 'masked'")
    predicted = min(length, 8 * int(np.ceil((length * c.masked.rate + 16) / 8)))  # each document asks one question more
    settings = dict(negatives=c.negatives, answers=v.sentinel_ids[:2], bos=v.bos_id, eos=v.eos_id)
    make = partial(next_sentence.encoder, noise=_noise(c.masked, v), **settings)
    lengths = Lengths(length, None, predicted, types=True)
    return Objective(make, lengths, length - 3, length - 3, c.masked.dynamic, shortest=1, other=True, sentinels=2)


def _mixture(c: config.Mixture, data: config.Data, v: Vocabulary, *, architecture: str) -> Objective:
    """Parts in the order of their names: a config read back from JSON has no other."""
    weights = np.array([part.weight for _, part in sorted(c.parts.items())], float)
    modes = special_tokens.modes(c, v.sentinel_ids)
    parts = [_part(name, part, architecture, data, v, modes) for name, part in sorted(c.parts.items())]
    if len({o.lengths.predicted is None for o in parts}) > 1:
        raise UserError("a mixture cannot hold parts that predict at every place and parts that predict at some: split it")
    if len({o.dynamic for o in parts}) > 1:
        raise UserError("a mixture cannot hold parts with dynamic and with static masks; set dynamic alike in all")
    used = max(o.sentinels for o in parts) + max(o.marks for o in parts)
    if used > len(v.sentinel_ids):
        raise UserError(f"the mixture takes {used} sentinels, the tokenizer has {len(v.sentinel_ids)}: use longer spans")
    each = {name: [vars(o.lengths)[name] for o in parts] for name in vars(parts[0].lengths)}
    lengths: dict[str, Any] = {name: None if values[0] is None else max(values) for name, values in each.items()}
    window = min(o.window for o in parts)
    other = any(o.other for o in parts)
    beyond = [o.reach - o.window for o in parts if o.reach is not None]  # what a mode's token adds
    makes = [o.make if o.other or not other else partial(mixture.without_other, make=o.make) for o in parts]
    return Objective(
        partial(mixture.draw, makes=makes, shares=weights / weights.sum()),
        Lengths(**lengths),
        window,
        window - max(o.window - o.stride for o in parts),
        parts[0].dynamic,
        max(o.shortest for o in parts),
        frozenset().union(*(o.ends for o in parts)),
        other,
        reach=window + max(beyond) if beyond else None,
    )


def _part(
    name: str, part: config.Part, architecture: str, data: config.Data, v: Vocabulary, modes: dict[str, int]
) -> Objective:
    """A part's objective. With a mode it is built for a row that is one place shorter, which its token takes."""
    if isinstance(part.objective, config.Mixture):
        raise UserError(f"objective.parts.{name} is a mixture itself: put its parts beside the others")
    if isinstance(part.objective, config.ReplacedTokens):
        raise UserError(
            f"objective.parts.{name} is 'replaced_tokens', which trains two models by a loss of its own: make it the objective"
        )
    if part.mode is None:
        return build(part.objective, architecture, data, v)
    read = "decoder" if architecture == "decoder" else "encoder"
    length = _need(data, f"{read}_length")
    o = build(part.objective, architecture, replace(data, **{f"{read}_length": length - 1}), v)
    make = partial(mixture.with_mode, make=o.make, mode=modes[part.mode], aligned=o.reach is not None)
    reach, used = None if o.reach is None else o.reach + 1, special_tokens.MIDDLE + len(modes)
    return replace(o, make=make, lengths=replace(o.lengths, **{read: length}), marks=used, reach=reach)


def _shares(c: Any, *names: str, place: str = "objective") -> None:
    for name in names:
        if not 0 <= getattr(c, name) <= 1:
            raise UserError(f"{place}.{name} is {getattr(c, name)}; it is a share, from 0 to 1")


@dataclass(frozen=True)
class Suit:
    """How an objective is built for an architecture, and what else is to be known of it.

    `factors`: its loss is the negative log-probability of the text, token by token and each token once, so that bits per byte
    are defined. `reads_prefix`: a decoder alone that is trained so sees what it is given from both sides; a function of the
    config where that depends on it. Neither has a default: whoever adds an objective says what holds.
    """

    build: Callable[[Any, config.Data, Any], Objective]
    factors: bool
    reads_prefix: bool | Callable[[Any], bool]


def _some_part_reads(c: config.Mixture) -> bool:
    return any(reads_prefix("decoder", part.objective) for part in c.parts.values())


_NEITHER: dict[str, Any] = dict(factors=False, reads_prefix=False)

SUITS: dict[tuple[str, type], Suit] = {
    ("decoder", config.Causal): Suit(_causal, factors=True, reads_prefix=False),
    ("decoder", config.Prefix): Suit(_prefix_decoder, factors=False, reads_prefix=True),
    ("decoder", config.SpanCorruption): Suit(_spans_decoder, factors=False, reads_prefix=lambda c: c.prefix),
    ("encoder", config.Masked): Suit(_masked_encoder, **_NEITHER),
    ("encoder", config.ReplacedTokens): Suit(_replaced_tokens, **_NEITHER),
    ("encoder_decoder", config.Prefix): Suit(_prefix_both, **_NEITHER),
    ("encoder_decoder", config.Masked): Suit(_masked_both, **_NEITHER),
    ("encoder_decoder", config.SpanCorruption): Suit(_spans_both, **_NEITHER),
    ("encoder_decoder", config.Denoise): Suit(_denoise, **_NEITHER),
    ("encoder_decoder", config.Deshuffle): Suit(_deshuffle, **_NEITHER),
    ("encoder_decoder", config.Mass): Suit(_mass, **_NEITHER),
    ("decoder", config.FillInMiddle): Suit(_middle, **_NEITHER),
    ("encoder", config.NextSentence): Suit(_next_sentence, **_NEITHER),
    ("decoder", config.Mixture): Suit(partial(_mixture, architecture="decoder"), factors=False, reads_prefix=_some_part_reads),
    ("encoder", config.Mixture): Suit(partial(_mixture, architecture="encoder"), **_NEITHER),
    ("encoder_decoder", config.Mixture): Suit(partial(_mixture, architecture="encoder_decoder"), **_NEITHER),
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
    ("decoder", config.Denoise): "the noised text has no stream of its own; take 'span_corruption', or an encoder-decoder",
    ("encoder", config.Denoise): "an encoder gives one token a place, and the noised text has other places than the text; "
    "take 'masked', or an encoder-decoder",
    ("decoder", config.Deshuffle): "the shuffled text has no stream of its own; take 'prefix', or an encoder-decoder",
    ("encoder", config.Deshuffle): "the token of a place would have to be told from all others without their order; take "
    "'masked', or an encoder-decoder",
    ("decoder", config.Mass): "the masked text has no stream of its own; take 'span_corruption' with one long span, or an "
    "encoder-decoder",
    ("encoder", config.Mass): "the stretch is given token by token, and an encoder gives all at once; take 'masked', or an "
    "encoder-decoder",
    ("encoder", config.FillInMiddle): "an encoder sees both sides of a gap as it is; take 'masked', or a decoder",
    ("encoder_decoder", config.FillInMiddle): "the encoder sees both sides of a gap as it is; take 'span_corruption', or a "
    "decoder alone",
    ("decoder", config.NextSentence): "a causal decoder has seen nothing where the question is asked; take 'causal', or an "
    "encoder",
    ("encoder_decoder", config.NextSentence): "the question is asked at a place of the encoder, and the decoder has the loss; "
    "take 'denoise', or an encoder alone",
}


def build(objective: config.Objective, architecture: str, data: config.Data, vocabulary: Vocabulary) -> Objective:
    """The objective for this architecture and these lengths; UserError with the reason where it makes no sense."""
    suit = suited(architecture, objective)
    if vocabulary.bos_id is None or vocabulary.eos_id is None:
        raise UserError("the tokenizer has no bos or no eos token, which mark where documents begin and end; train one here")
    return suit.build(objective, data, vocabulary)


def suited(architecture: str, objective: config.Objective) -> Suit:
    """The table's entry; UserError with the reason where there is none."""
    key = (architecture, type(objective))
    if key not in SUITS:
        reason = REFUSED.get(key, "the table of lm.objectives has no such pair")
        raise UserError(f"objective '{config.kind_of(key[1])}' does not suit the {architecture}: {reason}")
    return SUITS[key]


def reads_prefix(architecture: str, objective: config.Objective) -> bool:
    """Whether a decoder alone that was trained so sees what it is given from both sides."""
    read = suited(architecture, objective).reads_prefix
    return read(objective) if callable(read) else read


def _need(data: config.Data, name: str) -> int:
    length = getattr(data, name)
    if length is None or length < 8:
        raise UserError(f"data.{name} is {length}; this architecture and objective need it, 8 or more tokens")
    return length
