"""Masked diffusion: masked tokens at a rate that is drawn for each text (MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992).

In continuous time each token is masked with probability t, and its loss has the weight 1/t. Here the number k of masks is
drawn, and the weight is n/k for a text of n tokens. Averaged over t that is the same loss, since the integral of t^(k-1)
(1-t)^(n-k) times the binomial coefficient is 1/k; it has less variance, and the weights of a text sum to n exactly. The loss is
the average of -log p(text) over all orders in which its tokens can be written (arXiv 2110.02037), and so at least -log of the
average of p.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lm import config
from lm.errors import UserError
from lm.objectives.declaration import Declaration, Lengths, Objective, Suit, required_length
from lm.objectives.masked import ask_encoder, ask_encoder_pll
from lm.objectives.prompts import EACH, REVEALED, Ask, Span, SpanPrompt, TextPrompt, mask_token, with_masks
from lm.objectives.streams import stream
from lm.objectives.vocabulary import Vocabulary, required_mask
from lm.types import Example, TokenStream


def share(at: np.ndarray | float, schedule: str) -> Any:
    """The share of masked tokens below which a part `at` of all texts lies: the inverse of `part`."""
    match schedule:
        case "cosine":
            return 1 - np.cos(np.pi / 2 * np.asarray(at))
        case "square":
            return np.sqrt(at)
    return np.asarray(at, float)


def part(share: np.ndarray | float, schedule: str) -> Any:
    """The part of all texts of which at most this share is masked."""
    match schedule:
        case "cosine":
            return np.arccos(np.clip(1 - np.asarray(share), -1, 1)) * 2 / np.pi
        case "square":
            return np.asarray(share, float) ** 2
    return np.asarray(share, float)


def encoder(
    tokens: np.ndarray,
    rng: np.random.Generator,
    at: float | None = None,
    given: int = 0,
    *,
    bos: int,
    schedule: str = "linear",
    flat: bool = False,
    **noise: int,
) -> Example:
    """Masks k of a text's n tokens, bos and the first `given` ones apart, where `at` from 0 to 1 (None: at random) and the
    schedule decide k >= 1. Predicts them with weight 1 / (k p(k)), or 1 if `flat`. Under schedule "linear", all k are as
    likely: p(k) = 1 / n. The end of a text is a token like any other. `noise` as in `noised`.

    tokens    [bos 20 21 22 23 eos], at 0.5: k is 3, of n = 5
    encoder   [bos  M 21  M 23  M ]
    targets   [bos 20 21 22 23 eos]
    weights   [ 0 5/3  0 5/3 0 5/3]
    """
    candidates = np.flatnonzero(np.asarray(tokens) != bos)
    candidates = candidates[candidates >= given]
    if not len(candidates):
        return noised(tokens, candidates, 0.0, bos=bos, **noise)
    chosen, weight = draw(candidates, rng, at, schedule)
    return noised(tokens, chosen, 1.0 if flat else weight, bos=bos, **noise)


def decoder(
    tokens: np.ndarray,
    rng: np.random.Generator,
    at: float | None = None,
    progress: float = 1.0,
    given: int = 0,
    *,
    schedule: str = "linear",
    flat: bool = False,
    anneal: float = 0.0,
    **noise: int,
) -> Example:
    """As `encoder`, but for the first token, which is only read: each token is predicted one place before it. All tokens see
    each other, or, before `progress` is `anneal`, those before them and a random share progress / anneal of those after them.

    tokens    [bos 20 21 22 23 eos], at 0.5
    decoder   [bos  M 21  M 23  M ]
    prefix    [ 1   1  1  1  1  1 ]
    targets   [20  21 22 23 eos 0 ]
    weights   [5/3  0 5/3 0 5/3 0 ]
    """
    candidates = np.arange(max(1, given), len(tokens))
    if not len(candidates):
        return shifted(noised(tokens, candidates, 0.0, **noise))
    chosen, weight = draw(candidates, rng, at, schedule)
    seen = None if progress >= anneal else rng.random(len(tokens)) < progress / anneal
    return shifted(noised(tokens, chosen, 1.0 if flat else weight, **noise), seen)


def shifted(e: Example, seen: np.ndarray | None = None) -> Example:
    """What an encoder is asked, asked of a decoder: one place before. All its tokens see those that are `seen`, bool [T] (None:
    all). With `where`, these places are moved; without, the targets are, and that of the first token is left out."""
    stream: Any = e.encoder
    prefix = np.ones(len(stream.tokens), bool) if seen is None else seen
    moved = replace(e, encoder=None, decoder=replace(stream, prefix=prefix))
    if e.where is not None:
        return replace(moved, where=e.where - 1)
    later = lambda x: np.append(x[1:], np.zeros(1, x.dtype))
    return replace(moved, targets=later(e.targets), weights=later(e.weights))


def draw(candidates: np.ndarray, rng: np.random.Generator, at: float | None, schedule: str) -> tuple[np.ndarray, float]:
    """k of the n candidates, and the weight 1 / (k p(k)) of each, as in `encoder`."""
    n = len(candidates)
    k = min(n, int(share(rng.random() if at is None else at, schedule) * n) + 1)
    probability = float(part(k / n, schedule) - part((k - 1) / n, schedule))
    return rng.permutation(candidates)[:k], 1 / (k * probability)


def noised(tokens: np.ndarray, chosen: np.ndarray, weight: float, *, mask_id: int, bos: int, time_steps: int = 0) -> Example:
    """The text with masks at the indices `chosen`, whose tokens are predicted, all of this weight. With `time_steps` the types
    say which of so many equal steps from 0 to 1 the share of masks is in.

    tokens    [bos 20 21 22 23 eos], chosen [1 3 5], weight 2, 5 time steps
    encoder   [bos  M 21  M 23  M ]
    types     [ 2   2  2  2  2  2 ]
    targets   [bos 20 21 22 23 eos]
    weights   [ 0   2  0  2  0  2 ]
    """
    tokens = np.asarray(tokens, np.int32)
    corrupted, weights = tokens.copy(), np.zeros(len(tokens), np.float32)
    corrupted[chosen], weights[chosen] = mask_id, weight
    return Example(_timed(stream(corrupted), mask_id, bos, time_steps), None, tokens, weights)


def _timed(read: TokenStream, mask_id: int, bos: int, time_steps: int) -> TokenStream:
    if not time_steps:
        return read
    masks, count = int((read.tokens == mask_id).sum()), int((read.tokens != bos).sum())
    return replace(read, types=np.full(len(read.tokens), time_step(masks, max(count, 1), time_steps), np.int32))


def time_step(masks: Any, count: Any, time_steps: int) -> Any:
    """Which of so many equal steps from 0 to 1 the share masks / count is in, for numbers or arrays; 0 without masks."""
    return (-(-masks * time_steps // count) - 1) * (masks > 0)


def build_encoder(c: config.MaskedDiffusion, data: config.Data, v: Vocabulary) -> Objective:
    """Windows as long as the row. UserError for `anneal`: an encoder's tokens always see each other."""
    length = required_length(data, "encoder_length")
    if c.anneal:
        raise UserError(f"objective.anneal={c.anneal} is of decoders, and an encoder's tokens see each other: leave it out")
    settings: dict[str, Any] = dict(schedule=c.schedule, flat=c.weight == "flat", time_steps=c.time_steps)
    make = partial(encoder, mask_id=required_mask(v, c), bos=v.bos_id, **settings)
    return Objective(make, Lengths(length, None, types=c.time_steps), length, length, shortest=1, stratified=True)


def build_decoder(c: config.MaskedDiffusion, data: config.Data, v: Vocabulary) -> Objective:
    """Windows as long as the row, whose first token the window before has predicted."""
    length = required_length(data, "decoder_length")
    settings: dict[str, Any] = dict(schedule=c.schedule, flat=c.weight == "flat", time_steps=c.time_steps, anneal=c.anneal)
    make = partial(decoder, mask_id=required_mask(v, c), bos=v.bos_id, **settings)
    lengths = Lengths(None, length, prefix=True, types=c.time_steps)
    return Objective(make, lengths, length, length - 1, shortest=2, stratified=True, paced=c.anneal > 0)


def _told(ask: Ask, time_steps: int) -> Ask:
    """Asks the same, and tells the model the share of masks."""

    def each(span: Span, v: Vocabulary) -> list[Example]:
        asked: list[Any] = ask(span, v)
        return [replace(e, encoder=_timed(e.encoder, mask_token(v), v.bos_id, time_steps)) for e in asked]

    return each


def _shifted(ask: Ask) -> Ask:
    """Asks a decoder the same."""

    def each(span: Span, v: Vocabulary) -> list[Example]:
        asked: list[Any] = ask(span, v)
        return [shifted(e) for e in asked]

    return each


def spans(c: config.MaskedDiffusion, *, of: str = "encoder") -> dict[str, SpanPrompt]:
    asks = {"each": ask_encoder, "pll": ask_encoder_pll}
    if c.time_steps:
        asks = {name: _told(ask, c.time_steps) for name, ask in asks.items()}
    if of == "decoder":
        asks = {name: _shifted(ask) for name, ask in asks.items()}
    return {
        "suffix": SpanPrompt(asks["each"], True, REVEALED, sees_end=True),
        "infill": SpanPrompt(asks["each"], True, REVEALED),
        "pll": SpanPrompt(asks["pll"], False, EACH),
    }


OBJECTIVE = Declaration(
    config.MaskedDiffusion,
    suits={
        "encoder": Suit(
            build_encoder,
            factors=lambda c: "bound" if c.weight == "bound" else False,
            reads_prefix=False,
            gives=True,
            spans=spans,
        ),
        "decoder": Suit(
            build_decoder,
            factors=lambda c: "bound" if c.weight == "bound" else False,
            reads_prefix=True,
            gives=True,
            spans=partial(spans, of="decoder"),
        ),
    },
    refused={
        "encoder_decoder": "one stack reads the masks and predicts them; take 'masked', or an encoder or a decoder alone",
    },
    prompt=TextPrompt(with_masks, noised=True, fills=True),
)
