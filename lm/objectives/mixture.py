"""Several objectives: each piece of text under one of them, and a token that says which (UL2, arXiv 2205.05131, section 3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lm import config
from lm.errors import UserError
from lm.objectives import special_tokens
from lm.objectives.declaration import (
    DECLARATIONS,
    Declaration,
    Lengths,
    Objective,
    Suit,
    build,
    reads_prefix,
    required_length,
    span_prompts,
)
from lm.objectives.prompts import Ask, Span, SpanPrompt
from lm.objectives.streams import prepend, shift_positions
from lm.objectives.vocabulary import Vocabulary
from lm.types import Example

Make = Callable[..., Example]


def draw(
    tokens: np.ndarray, rng: np.random.Generator, *other: np.ndarray, makes: Sequence[Make], shares: np.ndarray
) -> Example:
    """The Example that one of `makes` makes of the piece; the i-th has probability `shares[i]`."""
    return makes[rng.choice(len(makes), p=shares)](tokens, rng, *other)


def without_other(tokens: np.ndarray, rng: np.random.Generator, *_: np.ndarray, make: Make) -> Example:
    """`make` of a part that does not need the text of another document, in a mixture where another part does."""
    return make(tokens, rng)


def with_mode(
    tokens: np.ndarray, rng: np.random.Generator, *other: np.ndarray, make: Make, mode: int, aligned: bool = False
) -> Example:
    """Puts the mode's token before the tokens that the encoder reads, or a decoder that is alone.

    It is visible from everywhere, as a prefix is, and predicts nothing (R: the mode's token).

    made      decoder [5 6 7],   targets [6 7 8],   weights [1 1 1]
    decoder   [R 5 6 7]
    prefix    [1 0 0 0]   where the stream has one
    targets   [5 6 7 8]
    weights   [0 1 1 1]

    made      encoder [bos 20 M 22],   where [2]
    encoder   [R bos 20 M 22],   where [3]

    `aligned`: the decoder's positions are those of the encoder's text (MASS), and move with it.
    """
    e = make(tokens, rng, *other)
    if e.encoder is not None:
        where = e.where + 1 if e.where is not None and e.decoder is None else e.where
        decoder = shift_positions(e.decoder) if aligned else e.decoder
        return replace(e, encoder=prepend(e.encoder, mode), decoder=decoder, where=where)
    assert e.decoder is not None
    targets = np.concatenate([e.decoder.tokens[:1], e.targets])
    weights = np.concatenate([np.zeros(1, np.float32), e.weights])
    return replace(e, decoder=prepend(e.decoder, mode), targets=targets, weights=weights)


def build_mixture(c: config.Mixture, data: config.Data, v: Vocabulary, *, architecture: str) -> Objective:
    """Rows that fit every part. Parts are sorted by name: their order is lost when a config is read back from JSON."""
    weights = np.array([part.weight for _, part in sorted(c.parts.items())], float)
    modes = special_tokens.modes(c, v.sentinel_ids)
    parts = [_build_part(name, part, architecture, data, v, modes) for name, part in sorted(c.parts.items())]
    if len({o.lengths.predicted is None for o in parts}) > 1:
        raise UserError("a mixture cannot hold parts that predict every position and parts that predict some: split it")
    if len({o.dynamic for o in parts}) > 1:
        raise UserError("a mixture cannot hold parts with dynamic and with static masks; set dynamic alike in all")
    used = max(o.sentinels for o in parts) + max(o.marks for o in parts)
    if used > len(v.sentinel_ids):
        raise UserError(f"the mixture takes {used} sentinels, the tokenizer has {len(v.sentinel_ids)}: use longer spans")
    by_field = {name: [vars(o.lengths)[name] for o in parts] for name in vars(parts[0].lengths)}
    lengths: dict[str, Any] = {name: None if values[0] is None else max(values) for name, values in by_field.items()}
    window = min(o.window for o in parts)
    needs_other = any(o.needs_other for o in parts)
    beyond = [o.reach - o.window for o in parts if o.reach is not None]  # positions of a mode's token
    makes = [o.make if o.needs_other or not needs_other else partial(without_other, make=o.make) for o in parts]
    return Objective(
        partial(draw, makes=makes, shares=weights / weights.sum()),
        Lengths(**lengths),
        window,
        window - max(o.window - o.stride for o in parts),
        parts[0].dynamic,
        max(o.shortest for o in parts),
        frozenset().union(*(o.ends for o in parts)),
        needs_other,
        reach=window + max(beyond) if beyond else None,
    )


def _build_part(
    name: str, part: config.Part, architecture: str, data: config.Data, v: Vocabulary, modes: dict[str, int]
) -> Objective:
    """A part's objective. One with a mode is built for a row that is one token shorter, which the mode's token fills."""
    if isinstance(part.objective, config.Mixture):
        raise UserError(f"objective.parts.{name} is a mixture itself: put its parts beside the others")
    if DECLARATIONS[type(part.objective)].own_loss:
        kind = config.kind_of(type(part.objective))
        raise UserError(f"objective.parts.{name} is '{kind}', which has a loss of its own: make it the objective")
    if getattr(part.objective, "anneal", 0.0):
        raise UserError(f"objective.parts.{name}.objective.anneal is of an objective alone: leave it out in a mixture")
    if part.mode is None:
        return build(part.objective, architecture, data, v)
    read = "decoder" if architecture == "decoder" else "encoder"
    length = required_length(data, f"{read}_length")
    o = build(part.objective, architecture, replace(data, **{f"{read}_length": length - 1}), v)
    make = partial(with_mode, make=o.make, mode=modes[part.mode], aligned=o.reach is not None)
    reach, used = None if o.reach is None else o.reach + 1, special_tokens.FIM_MARKS + len(modes)
    return replace(o, make=make, lengths=replace(o.lengths, **{read: length}), marks=used, reach=reach)


def best_prompts(c: config.Mixture, *, architecture: str) -> Mapping[str, SpanPrompt]:
    """For each kind of score the prompt of the first part, by name, that has one, a normalised one if any part has."""
    found: dict[str, SpanPrompt] = {}
    for name, part in sorted(c.parts.items()):
        try:
            known = span_prompts(architecture, part.objective)
        except UserError:
            continue
        for kind, way in known.items():
            settings: dict[str, Any] = dict(mixture=c, mode=part.mode, aligned=way.aligned)
            ask = way.ask if part.mode is None else partial(ask_in_mode, ask=way.ask, **settings)
            if kind not in found or (way.normalised and not found[kind].normalised):
                found[kind] = replace(way, ask=ask, note=f"as part '{name}': {way.note}")
    if not found:
        raise UserError("no part of this mixture has a way to score spans")
    return found


def ask_in_mode(span: Span, v: Vocabulary, *, ask: Ask, mixture: config.Mixture, mode: str, aligned: bool) -> list[Example]:
    """Asks the same after the mode's token; `aligned` as in `with_mode`."""
    token, out = special_tokens.modes(mixture, v.sentinel_ids)[mode], []
    asked: list[Any] = ask(span, v)
    for e in asked:
        read = "encoder" if e.encoder is not None else "decoder"
        where = e.where if e.encoder is not None and e.decoder is not None else e.where + 1
        e = replace(e, decoder=shift_positions(e.decoder)) if aligned else e
        out.append(replace(e, **{read: prepend(getattr(e, read), token)}, where=where))
    return out


def first_part(objective: config.Objective, v: Vocabulary) -> tuple[config.Objective, list[int]]:
    """The objective that text prompts are put to, and its mode's token, if any: of a mixture its first part by name."""
    if not isinstance(objective, config.Mixture):
        return objective, []
    part = objective.parts[min(objective.parts)]
    return part.objective, [special_tokens.modes(objective, v.sentinel_ids)[part.mode]] if part.mode else []


def _suit(architecture: str, reads: bool | Callable[[config.Mixture], bool] = False) -> Suit:
    return Suit(
        partial(build_mixture, architecture=architecture),
        factors=False,
        reads_prefix=reads,
        spans=partial(best_prompts, architecture=architecture),
    )


def _some_part_reads_prefix(c: config.Mixture) -> bool:
    return any(reads_prefix("decoder", part.objective) for part in c.parts.values())


OBJECTIVE = Declaration(
    config.Mixture,
    suits={
        "decoder": _suit("decoder", _some_part_reads_prefix),
        "encoder": _suit("encoder"),
        "encoder_decoder": _suit("encoder_decoder"),
    },
)
