"""Continuous batching: requests of any length go through a fixed number of slots, each with its own place in the cache.

    engine = Engine(model, params, slots=8, length=1024, eos=(2,))
    engine.submit(Request(prompt, new_tokens=64, sampling=Sampling(temperature=0.7)))
    for written in engine.run(): ...

A prompt is read at once (prefill, its length rounded up to a bucket), its keys and values are put into a free slot, and all
slots write together, `steps` times for each call of the host. A slot is free again when its text ends. Three programs serve
everything (`lm.generation.programs`): two are compiled for each bucket (with `reuse` three), one for each way of drawing.
`warm` compiles them all; `compilations` counts.

What a slot writes is a function of its request alone: which other requests are there, and which slot it has, changes nothing.
With `reuse` that is so up to rounding: a request whose prompt begins with what a free slot has read and written goes on from
that slot's cache, and only the rest is read.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm import distributed, sharding
from lm.config import Sampling
from lm.errors import UserError
from lm.generation import sampling
from lm.generation.cache import Kind, goes_on_only
from lm.generation.padding import bucket, buckets, padded, source_length, whole
from lm.generation.programs import Filling, Setup, Way, empty, jitted
from lm.generation.sampling import NEVER
from lm.models.positions import check_positions, learned
from lm.models.transformer import Transformer, independent_of_padding
from lm.sharding import shards
from lm.types import TokenStream

if TYPE_CHECKING:
    from lm.generation.grammar import Constraint, Walk

NOTHING = np.zeros(0, np.int32)

# Parameters stay arguments, so that slots are committed to their device from the start: else `insert` compiles twice.
_emptied = jax.jit(empty, static_argnames=("setup", "slots", "length", "source", "kind"), keep_unused=True)


@dataclass(frozen=True, eq=False)
class Request:
    """A text to be continued."""

    prompt: np.ndarray  # int32 [n], what the decoder reads, bos included; of an encoder-decoder: what it begins with
    new_tokens: int  # written at most, the end of the text included
    sampling: Sampling = Sampling()
    # What the encoder of an encoder-decoder reads: int32 [m]; or, of one with a stem, its stream of vectors [1, T], padded to
    # the stem's length; or, of a model with a bottleneck, the latents that its decoder reads instead of a text's, [k, Z].
    encoder: np.ndarray | TokenStream | None = None
    samples: int = 1  # continuations of the same prompt, which is read once
    bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of these tokens
    constraint: "Constraint | None" = None  # a grammar that what is written follows
    blank: int = 0  # of the prompt's first tokens, so many are none: they only take positions. Such a prompt is read whole


@dataclass(frozen=True)
class Written:
    """A token of a sample, and log-probabilities in nats: of the model's own distribution, and of the one it was drawn from."""

    request: Request
    sample: int
    token: int
    log_prob: float
    drawn_log_prob: float
    top: tuple[tuple[int, float], ...]  # the model's likeliest tokens with their log-probabilities, if the engine reports them
    last: bool  # nothing follows


@dataclass
class _Job:
    """A request in the queue: its samples are put into slots one after another."""

    request: Request
    begun: int = 0  # samples
    read: Any = None  # its cache, that of the draft model, and its logits, once its prompt is read


@dataclass
class _Text:
    """What a slot writes."""

    request: Request
    sample: int
    walk: "Walk | None"  # through the grammar of the request
    tokens: list[int] = field(default_factory=list)


class Engine:
    """`slots` texts at once, each of at most `length` tokens with its prompt.

    source: tokens that an encoder reads, at most
    steps: passes through the model for each call of the host
    top: likeliest tokens that are reported beside each one
    eos: tokens that end a text
    forbidden: bool [V], tokens that are never written
    prefix: the tokens of a prompt attend to each other
    guesses: tokens that are guessed ahead, and read in the same pass to see which are right: by `draft`, a smaller model of the
        same vocabulary and its parameters, or else by what followed when the text's last tokens occurred before
    kind: of the keys and values that are kept
    mesh: over which the parameters are sharded; slots are cut over its data axes, heads over its tensor axis
    reuse: go on from what a free slot has read and written, where a prompt begins so. Prompts are read anew with `prefix`,
        whose tokens see those behind them; with rings, which have lost their first tokens; with recurrent layers; with keys
        and values of another `kind` than those that a prompt's own tokens see; with a draft model; and by an encoder
    """

    def __init__(
        self,
        model: Transformer,
        params: Any,
        *,
        slots: int = 8,
        length: int = 1024,
        source: int = 0,
        steps: int = 8,
        top: int = 0,
        eos: Sequence[int] = (),
        forbidden: np.ndarray | None = None,
        prefix: bool = False,
        guesses: int = 0,
        draft: tuple[Transformer, Any] | None = None,
        kind: Kind = "own",
        mesh: Mesh | None = None,
        reuse: bool = False,
    ) -> None:
        self._mesh = contextlib.nullcontext if mesh is None else partial(sharding.use, mesh)
        model = Transformer(independent_of_padding(model.config))  # a prompt is padded to its bucket
        with self._mesh():
            if slots % shards("batch"):
                raise UserError(f"{slots} slots do not divide over {shards('batch')} data shards: take a multiple of these")
        small, small_params = draft or (None, None)
        if guesses and any(m.config.decoder and m.config.decoder.recurrent() for m in (model, small) if m):
            raise UserError(
                "a wrong guess is unread, and a recurrent layer cannot go back to an earlier state: leave out guesses and draft"
            )
        small = small and Transformer(independent_of_padding(small.config))
        if small is not None and (small.config.vocab_size != model.config.vocab_size or source or not guesses):
            raise UserError(
                "a draft model guesses for a decoder with its own vocabulary: give one with the same tokenizer, and guesses=4"
            )
        places = length
        for each in (model, *([small] if small else [])):
            check_positions(each.config, source or None, length - 1, cure="ask for fewer tokens", what="the texts take")
            # A last token in a place that was not learned would leave NaN there, for whatever is written in the slot next.
            places = min(places, learned(each.config, "decoder") or places)
        self.model, self.length, self.source, self.steps = model, length, source, steps
        self.vocab_size = model.config.vocab_size
        self.params, self._small_params = params, small_params
        self._setup = Setup(model, top, prefix, guesses, small)
        self._forbidden = np.where(forbidden, NEVER, 0.0).astype(np.float32) if forbidden is not None else None
        self._eos = np.array(eos, np.int32)
        self._queue: deque[_Job] = deque()
        self._texts: list[_Text | None] = [None] * slots
        self._programs = jitted()
        self.compilations = self.prefilled = 0  # programs; tokens of prompts that were read
        room: dict[str, Any] = dict(slots=slots, length=places, source=source, kind=kind)
        with self._mesh():
            self._slots = _emptied(self._setup, params, small_params, **room)
        self._reuse = reuse and not (source or prefix or small or kind != "own" or goes_on_only(self._slots.cache))
        self._held = [NOTHING] * slots  # int32 [n]: the first tokens that each free slot has read and written
        self._holds = places - 1  # of them at most: a free slot passes through the model too, and writes in its last place

    # ------------------------------------------------------------------------------------------------------ requests

    def submit(self, request: Request) -> None:
        """Puts a request into the queue. UserError if it can never be served."""
        n, m = len(request.prompt), 0 if request.encoder is None else source_length(request.encoder)
        if not n or request.new_tokens < 1 or request.samples < 1:
            raise UserError("a request needs a prompt of a token or more, a new token or more and a sample or more")
        if n + request.new_tokens > self.length:
            raise UserError(
                f"{n:,} tokens of prompt and {request.new_tokens:,} new ones are more than the {self.length:,} of a slot: "
                "shorten the prompt, or ask for fewer"
            )
        if m > self.source and not _is_latent(request.encoder):
            raise UserError(f"the encoder would read {m:,} tokens, and a slot has room for {self.source:,}: shorten the text")
        if (m > 0) != (self.model.config.encoder is not None):
            raise UserError("an encoder-decoder, and no other model, is given what its encoder reads")
        if wrong := [token for token in request.bias if not 0 <= token < self.vocab_size]:
            raise UserError(f"a bias is given for token {wrong[0]}, and the vocabulary ends at {self.vocab_size - 1}")
        self._queue.append(_Job(request))

    def cancel(self, request: Request, sample: int | None = None) -> None:
        """Writes no more of a request, or of one of its samples. Its slots are free at once."""
        if sample is None:
            self._queue = deque(job for job in self._queue if job.request is not request)
        for slot, text in enumerate(self._texts):
            if text is not None and text.request is request and sample in (None, text.sample):
                self._end(slot, text)
                self._slots = self._call("free", self._slots, np.int32(slot))

    @property
    def busy(self) -> int:
        """Texts that are being written."""
        return sum(text is not None for text in self._texts)

    @property
    def waiting(self) -> int:
        """Requests in the queue, of which some samples may have begun."""
        return len(self._queue)

    def warm(self, constraint: "Constraint | None" = None) -> None:
        """Compiles all that requests of any length and any settings need, before the first one comes; if a constraint is given,
        any one, those with constraints too. It must be idle."""
        if self.busy or self.waiting:
            raise ValueError("warm before the first request")
        start = np.zeros(1, np.int32)
        sources = [np.zeros(size, np.int32) for size in buckets(self.source)] if self.source else [None]
        prompts = [start] if self.source else [np.zeros(size, np.int32) for size in buckets(self.length - 1)]
        asked = [Request(prompt, 1, encoder=source) for prompt in prompts for source in sources]
        ways = (Sampling(), Sampling(temperature=0.0), Sampling(top_k=1))
        asked += [Request(start, 1, way, sources[0]) for way in ways]
        asked += [Request(start, 1, encoder=sources[0], constraint=constraint)] if constraint else []
        for request in asked:
            self._held = [NOTHING] * len(self._held)
            self.write([request])
        for size in buckets(self.length - 1)[:-1] if self._reuse else ():
            self._held = [np.zeros(self.length - 1 - size, np.int32)] * len(self._held)
            self.write([Request(np.zeros(self.length - 1, np.int32), 1)])
        self._held = [NOTHING] * len(self._held)
        self._slots = self._call("free", self._slots, np.int32(0))

    def write(self, requests: Sequence[Request]) -> list[list[list[Written]]]:
        """What is written for each request: for each of its samples, the tokens."""
        for request in requests:
            self.submit(request)
        found: dict[int, list[list[Written]]] = {id(r): [[] for _ in range(r.samples)] for r in requests}
        for written in self.run():
            found[id(written.request)][written.sample].append(written)
        return [found[id(request)] for request in requests]

    def run(self) -> Iterator[Written]:
        """Everything that is written until nothing is left to do."""
        while self.busy or self._queue:
            yield from self.step()

    def step(self, meanwhile: Callable[[], None] = lambda: None) -> list[Written]:
        """Fills free slots from the queue, and passes through the model `steps` times; once, if a slot follows a grammar, or
        was filled, so that its first token is there soon. Returns what was written, in the order of writing.

        Calls `meanwhile` while the device computes. In it nothing may be submitted or cancelled."""
        filled = self._fill()
        if not self.busy:
            return []
        allowed = self._allowed()
        steps, most = np.int32(1 if filled else self.steps), self.steps if allowed is None else 1
        arguments = (self._setup, self.params, self._small_params, self._slots, self._eos, steps, allowed)
        self._slots, drawn = self._call("decode", *arguments, most=most, way=self._way())
        meanwhile()
        drawn = jax.tree.map(distributed.fetched, drawn)
        out = []
        for k, slot in np.argwhere(drawn.live):
            text = self._texts[slot]
            assert text is not None
            token, last = int(drawn.token[k, slot]), bool(drawn.last[k, slot])
            top = tuple(zip(drawn.top_tokens[k, slot].tolist(), drawn.top_log_probs[k, slot].tolist(), strict=True))
            values = float(drawn.log_prob[k, slot]), float(drawn.drawn_log_prob[k, slot])
            out.append(Written(text.request, text.sample, token, *values, top, last))
            text.tokens.append(token)
            if text.walk is not None:
                text.walk.add(token)
            if last:
                self._end(slot, text)
        return out

    # --------------------------------------------------------------------------------------------------------- slots

    def _way(self) -> Way:
        asked = [text.request for text in self._texts if text is not None]
        if not all(request.sampling.plain and request.constraint is None for request in asked):
            return "filtered"
        return "greedy" if all(request.sampling.temperature == 0 for request in asked) else "plain"

    def _allowed(self) -> np.ndarray | None:
        """uint32 [S, V / 32]: the tokens that may be drawn in each slot; None if any may in all of them."""
        walks = [None if text is None else text.walk for text in self._texts]
        if not any(walks):
            return None
        every = np.full(-(-self.vocab_size // 32), 0xFFFFFFFF, np.uint32)
        return np.stack([walk.allowed() if walk else every for walk in walks])

    def _call(self, name: str, *arguments: Any, **settings: Any) -> Any:
        program = getattr(self._programs, name)
        before = program._cache_size()
        with self._mesh():
            out = program(*arguments, **settings)
        self.compilations += program._cache_size() - before
        return out

    def _fill(self) -> bool:
        """Puts what waits into free slots; returns whether there was any."""
        filled = False
        while self._queue and (free := [slot for slot, text in enumerate(self._texts) if text is None]):
            job = self._queue[0]
            slot, start = self._begun(job.request, free)
            if job.read is None:
                job.read = self._read(job.request, slot, start)
            request, size = job.request, np.int32(len(job.request.prompt))
            filling = self._filling(request, job.begun)
            self._slots = self._call("insert", self._slots, np.int32(slot), *job.read, size, filling)
            filled = True
            walk = request.constraint.begin() if request.constraint else None
            self._texts[slot], self._held[slot] = _Text(request, job.begun, walk), NOTHING
            job.begun += 1
            if job.begun == request.samples:
                self._queue.popleft()
        return filled

    def _begun(self, request: Request, free: list[int]) -> tuple[int, int]:
        """The free slot that holds most of the prompt's beginning, and how many tokens of it need not be read again."""
        shared = [0 if request.blank else _shared(self._held[slot], request.prompt) for slot in free]
        best = int(np.argmax(shared))
        start, size, most = min(shared[best], len(request.prompt) - 1), len(request.prompt), self.length - 1
        rest = bucket(size - start, most)
        start = min(start, most - rest)  # the rest is padded to its bucket, which has to end within the slot
        return free[best], start if rest < bucket(size, most) else 0

    def _end(self, slot: int, text: _Text) -> None:
        """Frees a slot, which holds its text."""
        self._texts[slot] = None
        if self._reuse:
            self._held[slot] = np.concatenate([text.request.prompt, text.tokens]).astype(np.int32)[: self._holds]

    def _read(self, request: Request, slot: int, start: int) -> tuple[Any, Any, jax.Array]:
        """The cache of a prompt, of which `slot` holds the first `start` tokens, that of the draft model, and the logits."""
        rest = request.prompt[start:]
        self.prefilled += len(rest)
        encoder = None if request.encoder is None else self._source(request.encoder)
        given = padded(rest, self.length - 1), np.int32(len(rest)), encoder
        settings: dict[str, Any] = dict(prefix=self._setup.prefix, blank=np.int32(request.blank))
        if start:
            settings["begun"] = self._slots.cache, np.int32(slot), np.int32(start)
        of = lambda model, params: self._call("prefill", model, params, *given, **settings)
        row, logits = of(self.model, self.params)
        return row, of(self._setup.draft, self._small_params)[0] if self._setup.draft else None, logits

    def _source(self, given: np.ndarray | TokenStream) -> TokenStream | np.ndarray:
        """What `Transformer.encoded` takes of `Request.encoder`, for one row."""
        if not isinstance(given, TokenStream) and _is_latent(given):
            return given[None].astype(np.float32)
        c = self.model.config
        # Without a bottleneck a prefix has a vector for each place of the source: as many as a slot has room for.
        return whole(given, self.source, full=c.join == "prefix" and c.bottleneck is None)

    def _filling(self, request: Request, sample: int) -> Filling:
        read = np.zeros(self.vocab_size, bool)
        read[request.prompt[request.blank :]] = True  # of an encoder-decoder what its decoder began with, as in transformers
        bias = np.zeros(self.vocab_size, np.float32) if self._forbidden is None else self._forbidden.copy()
        for token, value in request.bias.items():
            bias[token] += value
        settings = sampling.settings([request.sampling], [sample])
        text = np.zeros(self._slots.text.shape[1], np.int32)
        text[: len(request.prompt)] = request.prompt[: len(text)]
        return Filling(text, np.int32(len(request.prompt)), np.int32(request.new_tokens), settings, read, bias)


def _is_latent(given: np.ndarray | TokenStream | None) -> bool:
    return isinstance(given, np.ndarray) and np.issubdtype(given.dtype, np.floating)


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    size = min(len(a), len(b))
    return int(np.argmin(np.append(a[:size] == b[:size], False)))
