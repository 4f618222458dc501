"""Fills in the marks of a text, with a model of any architecture and objective that can.

    found = infill(model, params, tokenizer, objective, ["The capital of [MASK] is [MASK]."], samples=2)
    found[0][1].text     the second sample of the first text, "The capital of France is Paris."
    found[0][1].spans    (" France", " Paris")

The objective's declaration (`lm.objectives.prompts.TextPrompt`) says how:

    a mask is a token     an encoder, and masked diffusion: filled in over several steps (`lm.generation.diffusion.fill`). How
                          many tokens stand at a mark is given, or chosen among a few
    sentinels             span corruption: the model writes what stands at all marks, each behind its sentinel
    a middle              fill-in-the-middle: mark by mark from the left, with what was filled in before it and without the
                          marks behind it
    the text rewritten    denoising: the model writes the whole text. What stands at a mark is known if the rest is unchanged

A single space before a mark is part of what is filled in, as tokens begin with the space before their word.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from lm import config, distributed
from lm.config import Order, Sampling
from lm.errors import UserError
from lm.generation.diffusion import fill, pseudo_log_probs
from lm.generation.padding import left_padded
from lm.generation.placing import decoded, placed
from lm.generation.samples import Question, ask
from lm.generation.text_engine import engine_for, rounded
from lm.models.positions import check_positions, learned
from lm.models.transformer import Transformer
from lm.objectives import of_texts, reads_prefix, text_prompt
from lm.objectives.mixture import first_part
from lm.objectives.prompts import MASK, as_read
from lm.types import TokenStream

ROUND = 16  # rows of masks have a multiple of so many tokens, so that few programs are compiled
ITERATIONS = 10  # of Mask-Predict (arXiv 1904.09324, table 1); steps of Gibbs sampling for each mask


@dataclass(frozen=True)
class Filled:
    """A text with its marks filled in.

    spans: what stands at each mark; None where the model has rewritten the text and changed it elsewhere too
    tokens: how many were written, with sentinels and the end of the text
    log_prob: nats of these under the model's own distribution, given the text. Where a mask is a token, the
        pseudo-log-likelihood: of each token given all others, which is not the probability of them all
    """

    text: str
    spans: tuple[str, ...] | None
    tokens: int
    log_prob: float


@dataclass(frozen=True)
class _Asked:
    """What `infill` is given, as its ways of filling in read it."""

    model: Transformer
    params: Any
    tokenizer: Any
    objective: config.Objective
    converted: bool  # nothing says what it was trained as
    samples: int
    temperature: float
    seed: int
    new_tokens: int
    lengths: Sequence[int]
    order: Order
    steps: int | None
    top_k: int
    burn_in: int
    slots: int

    @property
    def architecture(self) -> str:
        return self.model.config.architecture

    @property
    def kind(self) -> config.Objective:
        """The objective, or the part of a mixture that is asked."""
        return first_part(self.objective, self.tokenizer)[0]

    def sampling(self, seed: int | None = None) -> Sampling:
        return Sampling(temperature=self.temperature, top_k=self.top_k, seed=self.seed if seed is None else seed)

    def question(self, text: str, new_tokens: int | None = None) -> Question:
        return ask(self.architecture, self.tokenizer, self.objective, [text], new_tokens or self.new_tokens, self.seed)


def infill(
    model: Transformer,
    params: Any,
    tokenizer: Any,
    objective: config.Objective | None,
    texts: Sequence[str],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    new_tokens: int = 64,
    lengths: Sequence[int] = (1,),
    order: Order = "confidence",
    steps: int | None = None,
    top_k: int = 0,
    burn_in: int = 0,
    slots: int = 8,
) -> list[list[Filled]]:
    """For each text, in which "[MASK]" marks what is missing, so many samples. A sample is a function of its text, the settings
    and its number alone.

    objective: None for a converted model, which is asked as T5, BART or BERT are
    temperature: 0 takes the likeliest tokens, so that all samples are the same
    new_tokens: written at most, for all marks of a text together, or for each where they are filled in one by one
    lengths: where a mask is a token, how many stand at each mark. Of several lengths the one is taken whose tokens have the
        highest mean pseudo-log-likelihood; all marks of a text have the same
    order, steps, top_k, burn_in: where a mask is a token, as in `fill`. steps=None: one for each mask, 10 of Mask-Predict, 10
        for each mask of Gibbs sampling
    slots: samples that are written at the same time

    Raises UserError for a text without marks, and for a model that fills in nothing.
    """
    given: tuple[Any, ...] = (samples, temperature, seed, new_tokens, lengths, order, steps, top_k, burn_in, slots)
    asked = _leading(objective or _of_converted(model.config.architecture, tokenizer), model.config.architecture)
    a = _Asked(model, params, tokenizer, asked, objective is None, *given)
    way = _way(a.architecture, a.kind)
    if way is None:
        raise UserError(
            f"a {a.architecture} that is trained as '{config.kind_of(type(a.kind))}' continues texts and fills in none: take "
            "an encoder, a decoder of fill_in_middle or masked_diffusion, or an encoder-decoder"
        )
    for text in texts:
        if MASK not in text:
            raise UserError(f"the text {text!r} has no {MASK}: put one where something is to be filled in")
    return way(a, [text.split(MASK) for text in texts])


def _way(architecture: str, objective: config.Objective) -> Any:
    """The function below that fills in for a model of this objective; None if none can."""
    way = text_prompt(objective)
    if architecture == "encoder" or way.fills:
        return _masks
    if way.from_masks:
        return _mass
    if way.sentinels:
        return _sentinels
    if way.middle:
        return _middles
    return _rewritten if way.rewrites and architecture == "encoder_decoder" else None


def _of_converted(architecture: str, tokenizer: Any) -> config.Objective:
    """What a converted model was trained as; of an encoder-decoder, its tokenizer's sentinels say that it is T5, else BART."""
    if architecture == "encoder_decoder":
        return config.SpanCorruption() if tokenizer.sentinel_ids else config.Denoise()
    return config.Masked() if architecture == "encoder" else config.Causal()


def _leading(objective: config.Objective, architecture: str) -> config.Objective:
    """A mixture with the first part, by name, that fills in as its first one; others as they are."""
    if not isinstance(objective, config.Mixture):
        return objective
    parts = [part for _, part in sorted(objective.parts.items())]
    first = next((part for part in parts if _way(architecture, part.objective)), parts[0])
    ordered = [first, *(part for part in parts if part is not first)]
    return config.Mixture({f"{number:04}": part for number, part in enumerate(ordered)})


# ------------------------------------------------------------------------------------------------------------ the ways


def _masks(a: _Asked, texts: list[list[str]]) -> list[list[Filled]]:
    """Fills in masks of a token each: an encoder, or masked diffusion of either architecture."""
    out = []
    for parts in texts:
        trials = [_masks_of(a, parts, length) for length in a.lengths]
        best = lambda number, trials=trials: max((t[number] for t in trials), key=lambda f: f.log_prob / f.tokens)
        out.append([best(number) for number in range(a.samples)])
    return out


def _masks_of(a: _Asked, parts: list[str], length: int) -> list[Filled]:
    """The samples with so many tokens at each mark."""
    tokenizer, cut = a.tokenizer, as_read(parts)
    q = a.question((MASK * length).join(cut))
    ends = a.converted and tokenizer.eos_id is not None  # a converted encoder always read whole texts
    ids = np.concatenate([q.mode, q.ids[0], [tokenizer.eos_id] * ends]).astype(np.int32)
    stack = "encoder" if a.architecture == "encoder" else "decoder"
    most = learned(a.model.config, stack)
    check_positions(a.model.config, *((len(ids), None) if stack == "encoder" else (None, len(ids))), cure="shorten the text")
    stream = left_padded([ids], length=rounded(len(ids), most, ROUND))
    masked = (stream.tokens == tokenizer.mask_id) & (stream.segments > 0)
    count = int(masked.sum())
    steps = a.steps or {"gibbs": ITERATIONS * count, "mask_predict": min(ITERATIONS, count)}.get(a.order, count)
    settings: dict[str, Any] = dict(steps=steps, order=a.order, temperature=a.temperature, top_k=a.top_k, burn_in=a.burn_in)
    settings |= dict(forbidden=~of_texts(tokenizer, a.model.config.vocab_size))
    told = dict(time_steps=getattr(a.kind, "time_steps", 0))
    begin = np.flatnonzero(stream.segments[0])[0]
    starts = np.flatnonzero(masked[0, begin:])[::length]
    out = []
    for number in range(a.samples):
        key = jax.random.fold_in(jax.random.key(a.seed), number)
        tokens = distributed.fetched(fill(a.model, a.params, stream, masked, key, **settings, **told))
        whole = TokenStream(tokens, stream.positions, stream.segments)
        log_probs = pseudo_log_probs(a.model, a.params, whole, masked, tokenizer.mask_id, most=count, **told)
        row = tokens[0, begin:]
        spans = [decoded(tokenizer, row[:at], row[at : at + length]) for at in starts]
        out.append(_placed(tokenizer, parts, spans, count, float(distributed.fetched(log_probs).sum())))
    return out


def _sentinels(a: _Asked, texts: list[list[str]]) -> list[list[Filled]]:
    """Writes what stands at all marks, each behind its sentinel."""
    tokenizer, out = a.tokenizer, []
    marks = {int(s): k for k, s in enumerate(tokenizer.sentinel_ids)}
    for parts, written in zip(texts, _written(a, [MASK.join(as_read(parts)) for parts in texts]), strict=True):
        out.append([])
        for tokens, log_prob in written:
            found: dict[int, list[int]] = {}
            run: list[int] = []  # what comes before the first sentinel stands nowhere
            for token in tokens:
                if token in marks:
                    run = found.setdefault(marks[token], []) if marks[token] not in found else []
                elif token != tokenizer.eos_id:
                    run.append(token)
            before, spans = np.zeros(0, np.int32), []
            for k, part in enumerate(as_read(parts)[:-1]):
                before = np.concatenate([before, tokenizer.encode(part)])
                spans.append(decoded(tokenizer, before, found.get(k, [])))
                before = np.concatenate([before, found.get(k, [])]).astype(np.int32)
            out[-1].append(_placed(tokenizer, parts, spans, len(tokens), log_prob))
    return out


def _middles(a: _Asked, texts: list[list[str]]) -> list[list[Filled]]:
    """Writes what stands at each mark in turn, from the left."""
    every = [Filled("", (), 0, 0.0)] * a.samples
    out = [list(every) for _ in texts]
    for mark in range(max(len(parts) for parts in texts) - 1):
        # Samples with the same text before them are read once: all of the first mark's.
        groups: dict[tuple[int, str], list[int]] = {}
        for i, parts in enumerate(texts):
            for number, f in enumerate(out[i]) if mark < len(parts) - 1 else ():
                groups.setdefault((i, f.text + as_read(parts)[mark]), []).append(number)
        asked = [f"{before}{MASK}{''.join(as_read(texts[i])[mark + 1 :])}" for i, before in groups]
        seeds = [a.seed if not mark else _seed(a.seed, mark, members[0]) for members in groups.values()]
        written = _written(a, asked, seeds, [len(members) for members in groups.values()])
        for ((i, before), members), samples in zip(groups.items(), written, strict=True):
            for number, (tokens, log_prob) in zip(members, samples, strict=True):
                span = decoded(a.tokenizer, a.tokenizer.encode(before), [t for t in tokens if t != a.tokenizer.eos_id])
                f = out[i][number]
                out[i][number] = Filled(before + span, (*(f.spans or ()), span), f.tokens + len(tokens), f.log_prob + log_prob)
    ended = lambda f, parts: Filled(f.text + parts[-1], f.spans, f.tokens, f.log_prob)
    return [[ended(f, parts) for f in found] for found, parts in zip(out, texts, strict=True)]


def _rewritten(a: _Asked, texts: list[list[str]]) -> list[list[Filled]]:
    """Writes the whole text; what stands at a mark is found between its neighbours, where these are unchanged."""
    out = []
    for parts, written in zip(texts, _written(a, [MASK.join(as_read(parts)) for parts in texts]), strict=True):
        pattern = re.compile("(.*?)".join(map(re.escape, as_read(parts))), re.DOTALL)
        out.append([])
        for tokens, log_prob in written:
            text = a.tokenizer.decode([t for t in tokens if t != a.tokenizer.eos_id])
            found = pattern.fullmatch(text)
            out[-1].append(Filled(text, found.groups() if found else None, len(tokens), log_prob))
    return out


def _mass(a: _Asked, texts: list[list[str]]) -> list[list[Filled]]:
    """MASS writes a span of as many tokens as there are masks, at their positions."""
    for parts in texts:
        if len(parts) > 2:
            raise UserError(f"this model fills in one {MASK} of a text, and {MASK.join(as_read(parts))!r} has {len(parts) - 1}")
    tokenizer, out = a.tokenizer, []
    asked = [a.question(MASK.join(as_read(parts)), max(a.lengths)) for parts in texts]
    requests = [q.request(0, q.lengths[0], a.sampling(), samples=a.samples) for q in asked]
    engine = engine_for(requests, a.model, a.params, tokenizer, slots=a.slots, ends=())
    for parts, samples in zip(texts, engine.write(requests), strict=True):
        of = lambda ids, parts=parts: decoded(tokenizer, tokenizer.encode(as_read(parts)[0]), ids)
        found = [([w.token for w in some], sum(w.log_prob for w in some)) for some in samples]
        out.append([_placed(tokenizer, parts, [of(ids)], len(ids), log_prob) for ids, log_prob in found])
    return out


def _written(
    a: _Asked, asked: list[str], seeds: list[int] | None = None, counts: list[int] | None = None
) -> list[list[tuple[list[int], float]]]:
    """What the model writes when it is asked so: for each text the tokens of each sample, with their log-probability."""
    tokenizer = a.tokenizer
    requests, may_write = [], set[int]()
    for i, text in enumerate(asked):
        q = a.question(text)
        may_write |= set(q.may_write)
        count = a.samples if counts is None else counts[i]
        request = q.request(0, a.new_tokens, a.sampling(None if seeds is None else seeds[i]), samples=count)
        if a.converted and not tokenizer.sentinel_ids:  # BART
            prompt = np.array([tokenizer.eos_id, tokenizer.bos_id], np.int32)
            encoder = np.concatenate([[tokenizer.bos_id], request.encoder]).astype(np.int32)
            request = replace(request, prompt=prompt, encoder=encoder)
        requests.append(request)
    prefix = a.architecture == "decoder" and reads_prefix(a.architecture, a.kind)
    how: dict[str, Any] = dict(ends=[tokenizer.eos_id], may_write=sorted(may_write), prefix=prefix)
    written = engine_for(requests, a.model, a.params, tokenizer, slots=a.slots, **how).write(requests)
    return [[([w.token for w in some], sum(w.log_prob for w in some)) for some in samples] for samples in written]


# ------------------------------------------------------------------------------------------------------------- details


def _seed(*of: int) -> int:
    return int(np.random.SeedSequence(of).generate_state(1)[0]) >> 1


def _placed(tokenizer: Any, parts: list[str], spans: list[str], tokens: int, log_prob: float) -> Filled:
    """The text with the spans at its marks."""
    return Filled(placed(tokenizer, parts, spans), tuple(spans), tokens, log_prob)
