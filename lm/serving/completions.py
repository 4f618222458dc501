"""/v1/completions: what is asked of the engine for a request, and the answer in OpenAI's shape."""

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm.generation.engine import Request, Written
from lm.serving.errors import ApiError
from lm.serving.schemas import Completion, Drawn
from lm.serving.scoring import Found
from lm.serving.served import Reading, Served
from lm.serving.worker import Ask, Piece, Ticket, Worker

USUAL_TOKENS = 16  # max_tokens, if a request has none
LOWEST = -9999.0  # of a token that has no probability, since JSON has no infinity


@dataclass
class Usage:
    """Tokens that were read and written."""

    prompt: int = 0
    written: int = 0

    def body(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
        }


@dataclass
class Place:
    """Where a token stands in an answer: itself, its log-probability in nats, and the likeliest there."""

    token: int
    log_prob: float | None  # None: nothing stands before it
    top: Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        """A token among the likeliest has the very same number there."""
        if self.log_prob is not None:
            self.log_prob = max(dict(self.top).get(self.token, self.log_prob), LOWEST)


def written(tokens: Sequence[Written]) -> list[Place]:
    return [Place(w.token, w.log_prob, w.top) for w in tokens]


def read(tokens: np.ndarray, found: Found, shown: int) -> list[Place]:
    """The last `shown` of the tokens of a prompt, int32 [n]."""
    first, *rest = tokens.tolist()
    values = zip(rest, found.log_probs.tolist(), found.top.tolist(), found.top_log_probs.tolist(), strict=True)
    places = [Place(first, None), *(Place(t, p, list(zip(i, of, strict=True))) for t, p, i, of in values)]
    return places[len(places) - shown :]


@dataclass
class Plan:
    """What a request for completions comes to: each of its prompts is read and continued `n` times."""

    served: Served
    body: Completion
    readings: list[Reading]
    asks: list[Ask]  # none if nothing is to be written
    echo: list[str]  # the text of each prompt, "" if it is not wanted
    name: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    made: int = field(default_factory=lambda: int(time.time()))

    @property
    def n(self) -> int:
        return self.body.n or 1

    @property
    def usage(self) -> Usage:
        """Before anything is written."""
        return Usage(sum(len(r.tokens if r.encoder is None else r.encoder) for r in self.readings))

    async def prompts(self, worker: Worker) -> list[list[Place]]:
        """The places of each prompt's tokens, if they are wanted."""
        if not self.body.echo or self.body.logprobs is None:
            return [[] for _ in self.readings]
        scorer = self.served.in_order()
        tokens = [r.tokens for r in self.readings]
        found = await worker.call(lambda: scorer.prompts(tokens))
        return [read(r.tokens, f, r.shown) for r, f in zip(self.readings, found, strict=True)]

    def choice(self, number: int, text: str, places: list[Place], finish: str | None, offset: int = 0) -> dict[str, Any]:
        top = self.body.logprobs
        logprobs = None if top is None else self._logprobs(places, top, offset)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, places: list[Place], top: int, offset: int) -> dict[str, Any]:
        name, special = self.served.token_text, self.served.tokenizer.special
        tokens = [name(place.token) for place in places]
        likeliest: list[dict[str, float] | None] = []
        for token, place in zip(tokens, places, strict=True):
            if place.log_prob is None:
                likeliest.append(None)
                continue
            some: dict[str, float] = {}
            for other, log_prob in place.top[:top]:  # of tokens with one text, the likeliest counts
                some.setdefault(name(other), max(log_prob, LOWEST))
            some.setdefault(token, place.log_prob)
            likeliest.append(some)
        # A special token adds nothing to the text; of the parts of a character each counts as none.
        shown = lambda t, token: token < len(special) and not special[token] and not t.startswith("bytes:")
        sizes = [len(t) if shown(t, place.token) else 0 for t, place in zip(tokens, places, strict=True)]
        offsets = list(itertools.accumulate(sizes, initial=offset))[:-1]
        return {
            "tokens": tokens,
            "token_logprobs": [place.log_prob for place in places],
            "top_logprobs": likeliest,
            "text_offset": offsets,
        }

    def body_of(self, choices: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        out = {"id": self.name, "object": "text_completion", "created": self.made, "model": self.served.name}
        return out | {"choices": choices} | ({} if usage is None else {"usage": usage.body()})


def plan(served: Served, body: Completion, *, most: int) -> Plan:
    """ApiError for what cannot be asked. `most`: new tokens of a text."""
    if body.best_of not in (None, body.n or 1):
        raise ApiError(400, f"best_of={body.best_of} other than n is not done here: leave it out", param="best_of")
    if body.logprobs is not None and body.logprobs > served.top:
        raise ApiError(400, f"logprobs={body.logprobs} is too many: at most {served.top}", param="logprobs")
    if body.stream and body.max_tokens == 0:
        raise ApiError(400, "there is nothing to stream with max_tokens=0: leave out one of them", param="stream")
    prompts = _prompts(body.prompt, served.known)
    if body.suffix is not None and not all(isinstance(prompt, str) for prompt in prompts):
        raise ApiError(400, "a suffix goes with a prompt that is a text: give one, or leave out suffix", param="suffix")
    tokens = USUAL_TOKENS if body.max_tokens is None else body.max_tokens
    seed = secrets.randbits(32)
    readings = [served.read(p, body.suffix, max(tokens, 1), seed if body.seed is None else body.seed % 2**32) for p in prompts]
    if body.echo and body.logprobs is not None:
        served.in_order()
    decode = served.tokenizer.decode
    texts = [prompt if isinstance(prompt, str) else decode(prompt) for prompt in prompts]
    echo = texts if body.echo else [""] * len(prompts)
    asks = [] if tokens == 0 else [ask(served, body, reading, tokens, seed, most=most) for reading in readings]
    for reading in () if asks else readings:
        _fits(served, reading, 0)
    return Plan(served, body, readings, asks, echo)


def ask(served: Served, body: Drawn, reading: Reading, tokens: int, seed: int, *, most: int, constraint: Any = None) -> Ask:
    """What the engine is asked for; `seed` if the request has none."""
    if tokens > most:
        raise ApiError(400, f"{tokens:,} new tokens are more than the {most:,} of a request: ask for fewer", param="max_tokens")
    _fits(served, reading, tokens)
    more: dict[str, Any] = {} if constraint is None else {"constraint": constraint}
    bias = body.bias(served.known)
    request = Request(reading.tokens, tokens, body.sampling(seed), reading.encoder, body.n or 1, bias, **more)
    return Ask(request, body.stops())


def _fits(served: Served, reading: Reading, tokens: int) -> None:
    n, m = len(reading.tokens), 0 if reading.encoder is None else len(reading.encoder)
    if n + tokens > served.length:
        raise ApiError(
            400,
            f"{n:,} tokens of prompt and {tokens:,} new ones are more than the {served.length:,} of a text: shorten the "
            "prompt, or ask for fewer",
            code="context_length_exceeded",
        )
    if m > served.source:
        raise ApiError(
            400, f"the prompt has {m:,} tokens, and {served.source:,} are read: shorten it", code="context_length_exceeded"
        )


def _prompts(given: Any, vocab_size: int) -> list[Any]:
    """The prompts of a request: a text, token ids, or a list of either."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise ApiError(400, "prompt must be a text, a list of token ids, or a list of such", param="prompt")
    is_token = lambda x: isinstance(x, int) and not isinstance(x, bool)
    if all(map(is_token, given)):
        given = [given]
    for number, one in enumerate(given):
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                raise ApiError(400, f"prompt {number} has characters that are not UTF-8", param="prompt") from None
            continue
        if not isinstance(one, list) or not one or not all(map(is_token, one)):
            raise ApiError(400, f"prompt {number} is neither a text nor a list of token ids", param="prompt")
        if wrong := [token for token in one if not 0 <= token < vocab_size]:
            raise ApiError(400, f"prompt {number} has token {wrong[0]}, and ids end at {vocab_size - 1}", param="prompt")
    return given


async def whole(plan: Plan, worker: Worker, ticket: Ticket | None) -> tuple[dict[str, Any], Usage]:
    """The answer at once."""
    usage, prompts = plan.usage, await plan.prompts(worker)
    texts = [[plan.echo[i] for _ in range(plan.n)] for i in range(len(plan.readings))]
    places = [[list(prompts[i]) for _ in range(plan.n)] for i in range(len(plan.readings))]
    ends = [["length"] * plan.n for _ in plan.readings]
    async for piece in ticket or _nothing():
        texts[piece.ask][piece.sample] += piece.text
        places[piece.ask][piece.sample] += written(piece.tokens)
        usage.written += len(piece.tokens)
        if piece.finish:
            ends[piece.ask][piece.sample] = piece.finish
    flat = zip(*(itertools.chain.from_iterable(x) for x in (texts, places, ends)), strict=True)
    return plan.body_of([plan.choice(i, *each) for i, each in enumerate(flat)], usage), usage


async def parts(plan: Plan, worker: Worker, ticket: Ticket, usage: Usage) -> AsyncIterator[dict[str, Any]]:
    """The answer in chunks, as it is written; `usage` counts."""
    prompts, offsets = await plan.prompts(worker), {}
    with_usage = bool(plan.body.stream_options and plan.body.stream_options.include_usage)
    for choice in _echoed(plan, prompts, offsets):
        yield plan.body_of([choice], None)
    async for piece in ticket:
        number = piece.ask * plan.n + piece.sample
        usage.written += len(piece.tokens)
        places = [] if plan.body.logprobs is None else written(piece.tokens)
        if not piece.text and not piece.finish and not places:
            continue
        offset = offsets.get(number, 0)
        offsets[number] = offset + len(piece.text)
        yield plan.body_of([plan.choice(number, piece.text, places, piece.finish, offset)], None)
    if with_usage:
        yield plan.body_of([], usage)


def _echoed(plan: Plan, prompts: list[list[Place]], offsets: dict[int, int]) -> Iterator[dict[str, Any]]:
    """A choice for each text with its prompt alone."""
    if not plan.body.echo:
        return
    for i, sample in itertools.product(range(len(plan.readings)), range(plan.n)):
        number = i * plan.n + sample
        offsets[number] = len(plan.echo[i])
        yield plan.choice(number, plan.echo[i], prompts[i], None)


async def _nothing() -> AsyncIterator[Piece]:
    for piece in ():
        yield piece
