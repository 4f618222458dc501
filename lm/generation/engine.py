"""Continuous batching: requests of any length go through a fixed number of slots, each with its own place in the cache.

    engine = Engine(model, params, slots=8, length=1024, eos=(2,))
    engine.submit(Request(prompt, new_tokens=64, sampling=Sampling(temperature=0.7)))
    for written in engine.run(): ...

A prompt is read at once (prefill, its length rounded up to a bucket), its keys and values are put into a free slot, and all
slots write together, `steps` tokens for each call of the host. A slot is free again when its text ends. Three programs serve
everything: two are compiled for each bucket, one for each of two ways of drawing. `warm` compiles them all; `compilations`
counts.

What a slot writes is a function of its request alone: which other requests are there, and which slot it has, changes nothing.

Axes: S slots, V vocabulary, L length of the cache, K likeliest tokens that are reported.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from lm import distributed, sharding, startup
from lm.config import Sampling
from lm.errors import UserError
from lm.generation import sampling
from lm.generation.sampling import NEVER, Settings
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.sharding import shards
from lm.types import Array, TokenStream

SMALLEST = 16  # tokens of the smallest bucket


@dataclass(frozen=True, eq=False)
class Request:
    """A text to be continued."""

    prompt: np.ndarray  # int32 [n], what the decoder reads, bos included; of an encoder-decoder: what it begins with
    new_tokens: int  # written at most, the end of the text included
    sampling: Sampling = Sampling()
    encoder: np.ndarray | None = None  # int32 [m], what the encoder of an encoder-decoder reads
    samples: int = 1  # continuations of the same prompt, which is read once
    bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of these tokens


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


@struct.dataclass
class Slots:
    cache: Any
    logits: jax.Array  # float32 [S, V], of the token to be written
    position: jax.Array  # int32 [S], of that token
    left: jax.Array  # int32 [S], tokens that may still be written; 0 in a free slot
    settings: Settings  # [S]
    read: jax.Array  # bool [S, V], tokens of the prompt
    written: jax.Array  # int32 [S, V], how often each token was written
    bias: jax.Array  # float32 [S, V]


@struct.dataclass
class Drawn:
    """What `decode` wrote in one step; a row counts if it was `live`."""

    token: jax.Array  # int32 [S]
    log_prob: jax.Array  # float32 [S]
    drawn_log_prob: jax.Array  # float32 [S]
    top_tokens: jax.Array  # int32 [S, K]
    top_log_probs: jax.Array  # float32 [S, K]
    live: jax.Array  # bool [S]


# ----------------------------------------------------------------------------------------------------------- programs


def prefill(
    model: Transformer,
    params: Any,
    tokens: jax.Array,
    size: jax.Array,
    encoder: TokenStream | None,
    *,
    prefix: bool,
    length: int | None = None,
) -> tuple[Any, jax.Array]:
    """Reads a prompt, int32 [1, P] of which the first `size` count. Returns its cache, with room for `length` tokens (None: P),
    and the logits float32 [V] after it.

    Where rows are sharded every shard reads it, because one row cannot be cut.
    """
    rows = shards("batch")
    tokens = jnp.broadcast_to(tokens, (rows, tokens.shape[1]))
    encoder = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])), encoder)
    place = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    segments = (place < size).astype(jnp.int32)
    stream = TokenStream(tokens, place, segments, segments > 0 if prefix else None)
    encoded = ()
    if encoder is not None:
        encoded = (model.apply({"params": params}, encoder, method="encode"), encoder.segments)
    room = length or tokens.shape[1]
    hidden, cache = model.apply({"params": params}, stream, *encoded, cache_length=room, method="decode", mutable=["cache"])
    last = jax.lax.dynamic_index_in_dim(hidden, size - 1, 1, keepdims=False)
    logits: Any = model.apply({"params": params}, last, method="logits")
    first = lambda x, axis: jax.lax.slice_in_dim(x, 0, 1, axis=axis) if x.ndim else x
    row = jax.tree.map(first, cache["cache"], batch_axes(cache["cache"]))
    return row, logits[0].astype(jnp.float32)


def insert(slots: Slots, slot: jax.Array, row: Any, logits: jax.Array, size: jax.Array, of: "Filling") -> Slots:
    """Puts a prompt that `prefill` has read into a slot."""
    axes = batch_axes(slots.cache)

    def put(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        if new.ndim < old.ndim:  # the length, which in a slot is its own
            return old.at[slot].set(size.astype(old.dtype))
        if not jnp.issubdtype(old.dtype, jnp.floating):  # segments: 0 behind the prompt, so that nothing older is seen
            room = [
                (0, have - want) if i > axis else (0, 0)
                for i, (have, want) in enumerate(zip(old.shape, new.shape, strict=True))
            ]
            new = jnp.pad(new, room)
        start = [slot if i == axis else 0 for i in range(old.ndim)]
        return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)

    one = lambda old, new: old.at[slot].set(new)
    return Slots(
        jax.tree.map(put, slots.cache, row, axes),
        one(slots.logits, logits),
        one(slots.position, of.position),
        one(slots.left, of.left),
        jax.tree.map(lambda old, new: one(old, new[0]), slots.settings, of.settings),
        one(slots.read, of.read),
        one(slots.written, 0),
        one(slots.bias, of.bias),
    )


@struct.dataclass
class Filling:
    """What `insert` is told of a request beside its cache."""

    position: Array  # int32
    left: Array  # int32
    settings: Settings  # [1]
    read: Array  # bool [V]
    bias: Array  # float32 [V]


def decode(
    model: Transformer, params: Any, slots: Slots, eos: jax.Array, *, steps: int, plain: bool, top: int
) -> tuple[Slots, Drawn]:
    """Writes `steps` tokens in each slot; returns what was drawn with a leading axis of steps. `plain`: no slot has a filter or
    a penalty."""
    rows = jnp.arange(len(slots.left))

    def step(slots: Slots, _: None) -> tuple[Slots, Drawn]:
        s, live = slots.settings, slots.left > 0
        if plain:
            logits = (slots.logits + slots.bias) / jnp.where(s.temperature > 0, s.temperature, 1.0)[:, None]
        else:
            logits = sampling.penalised(slots.logits, s, slots.read, slots.written) + slots.bias
            logits = sampling.filtered(logits, s)
        token = sampling.draw(logits, s, slots.position)
        of = lambda x: jnp.take_along_axis(jax.nn.log_softmax(x, axis=-1), token[:, None], axis=-1)[:, 0]
        best = jax.lax.top_k(jax.nn.log_softmax(slots.logits, axis=-1), top) if top else (jnp.zeros((len(rows), 0)),) * 2
        drawn = Drawn(
            token, of(slots.logits), jnp.where(s.temperature > 0, of(logits), 0.0), best[1].astype(jnp.int32), best[0], live
        )
        stream = TokenStream(token[:, None], slots.position[:, None], jnp.ones_like(token)[:, None], None)
        variables = {"params": params, "cache": slots.cache}
        hidden, changed = model.apply(variables, stream, method="decode", mutable=["cache"])
        after: Any = model.apply({"params": params}, hidden[:, -1], method="logits")
        ended = (token[:, None] == eos).any(axis=1)
        written = slots.written if plain else slots.written.at[rows, token].add(live.astype(jnp.int32))
        return replace(
            slots,
            cache=changed["cache"],
            logits=after.astype(jnp.float32),
            position=slots.position + live,
            left=jnp.where(live & ~ended, slots.left - 1, 0),
            written=written,
        ), drawn

    return jax.lax.scan(step, slots, None, length=steps)


def batch_axes(cache: Any) -> Any:
    """The axis of the rows in each array of a cache: scanned layers are stacked before it."""
    of = lambda path, x: int(any(getattr(key, "key", None) == "groups" for key in path))
    return jax.tree_util.tree_map_with_path(of, cache)


@cache
def _jitted(*, single: bool) -> tuple[Any, Any, Any]:
    options = startup.decoding_options(single=single)
    return (
        jax.jit(prefill, static_argnames=("model", "prefix")),
        jax.jit(insert, donate_argnames="slots"),
        jax.jit(decode, static_argnames=("model", "steps", "plain", "top"), donate_argnames="slots", compiler_options=options),
    )


# --------------------------------------------------------------------------------------------------------------- host


@dataclass
class _Job:
    """A request in the queue: its samples are put into slots one after another."""

    request: Request
    begun: int = 0  # samples
    row: Any = None  # its cache and logits, once its prompt is read


class Engine:
    """`slots` texts at once, each of at most `length` tokens with its prompt.

    source: tokens that an encoder reads, at most
    steps: tokens that all slots write for each call of the host
    top: likeliest tokens that are reported beside each one
    eos: tokens that end a text
    forbidden: bool [V], tokens that are never written
    prefix: the tokens of a prompt attend to each other
    mesh: over which the parameters are sharded; slots are cut over its data axes, heads over its tensor axis
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
        mesh: Mesh | None = None,
    ) -> None:
        self._mesh = contextlib.nullcontext if mesh is None else partial(sharding.use, mesh)
        with self._mesh():
            if slots % shards("batch"):
                raise UserError(f"{slots} slots do not divide over {shards('batch')} data shards: take a multiple of these")
        check_positions(model.config, source or None, length - 1, cure="ask for fewer tokens", what="the texts take")
        self.model, self.params, self.length, self.source, self.steps, self.top = model, params, length, source, steps, top
        self.prefix, self.vocab_size = prefix, model.config.vocab_size
        self._forbidden = np.where(forbidden, NEVER, 0.0).astype(np.float32) if forbidden is not None else None
        self._eos = np.array(eos, np.int32)
        self._queue: deque[_Job] = deque()
        self._texts: list[tuple[Request, int] | None] = [None] * slots
        self._programs = _jitted(single=slots == 1)
        self.compilations = 0
        self._slots = self._empty(slots)

    # ------------------------------------------------------------------------------------------------------ requests

    def submit(self, request: Request) -> None:
        """Puts a request into the queue. UserError if it can never be served."""
        n, m = len(request.prompt), 0 if request.encoder is None else len(request.encoder)
        if not n or request.new_tokens < 1 or request.samples < 1:
            raise UserError("a request needs a prompt of a token or more, a new token or more and a sample or more")
        if n + request.new_tokens > self.length:
            raise UserError(
                f"{n:,} tokens of prompt and {request.new_tokens:,} new ones are more than the {self.length:,} of a slot: "
                "shorten the prompt, or ask for fewer"
            )
        if m > self.source:
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
            if text is not None and text[0] is request and sample in (None, text[1]):
                self._texts[slot] = None
                self._slots = replace(self._slots, left=self._slots.left.at[slot].set(0))

    @property
    def busy(self) -> int:
        """Texts that are being written."""
        return sum(text is not None for text in self._texts)

    @property
    def waiting(self) -> int:
        """Requests in the queue, of which some samples may have begun."""
        return len(self._queue)

    def warm(self) -> None:
        """Compiles all that requests of any length and any settings need, before the first one comes. It must be idle."""
        if self.busy or self.waiting:
            raise ValueError("warm before the first request")
        start = np.zeros(1, np.int32)
        encoders = [np.zeros(size, np.int32) for size in buckets(self.source)] if self.source else [None]
        for size, encoder in itertools.product((1,) if self.source else buckets(self.length - 1), encoders):
            for way in (Sampling(), Sampling(top_k=1)):
                self.submit(Request(start if encoder is not None else np.zeros(size, np.int32), 1, way, encoder))
                for _ in self.run():
                    pass

    def run(self) -> Iterator[Written]:
        """Everything that is written until nothing is left to do."""
        while self.busy or self._queue:
            yield from self.step()

    def step(self) -> list[Written]:
        """Fills free slots from the queue, and writes up to `steps` tokens in each slot, in the order of writing."""
        self._fill()
        if not self.busy:
            return []
        plain = all(text is None or text[0].sampling.plain for text in self._texts)
        settings: dict[str, Any] = dict(steps=self.steps, plain=plain, top=self.top)
        self._slots, drawn = self._call(2, self.model, self.params, self._slots, self._eos, **settings)
        drawn, left = jax.tree.map(distributed.fetched, (drawn, self._slots.left))
        out = []
        ends = drawn.live.sum(axis=0)  # a live slot is live in all steps before its last
        for k in range(self.steps):
            for slot in np.flatnonzero(drawn.live[k]):
                text = self._texts[slot]
                assert text is not None
                top = tuple(zip(drawn.top_tokens[k, slot].tolist(), drawn.top_log_probs[k, slot].tolist(), strict=True))
                last = not left[slot] and k == ends[slot] - 1
                values = (float(x[k, slot]) for x in (drawn.log_prob, drawn.drawn_log_prob))
                out.append(Written(*text, int(drawn.token[k, slot]), *values, top, bool(last)))
                if last:
                    self._texts[slot] = None
        return out

    # --------------------------------------------------------------------------------------------------------- slots

    def _call(self, number: int, *arguments: Any, **settings: Any) -> Any:
        program = self._programs[number]
        before = program._cache_size()
        with self._mesh():
            out = program(*arguments, **settings)
        self.compilations += program._cache_size() - before
        return out

    def _fill(self) -> None:
        for slot, text in enumerate(self._texts):
            if text is None and self._queue:
                job = self._queue[0]
                if job.row is None:
                    job.row = self._read(job.request)
                filling = self._filling(job.request, job.begun)
                size = np.int32(len(job.request.prompt))
                self._slots = self._call(1, self._slots, np.int32(slot), *job.row, size, filling)
                self._texts[slot] = (job.request, job.begun)
                job.begun += 1
                if job.begun == job.request.samples:
                    self._queue.popleft()

    def _read(self, request: Request) -> tuple[Any, jax.Array]:
        encoder = None if request.encoder is None else whole(request.encoder, self.source)
        tokens, size = padded(request.prompt, self.length - 1), np.int32(len(request.prompt))
        return self._call(0, self.model, self.params, tokens, size, encoder, prefix=self.prefix)

    def _filling(self, request: Request, sample: int) -> Filling:
        read = np.zeros(self.vocab_size, bool)
        read[request.prompt] = True  # of an encoder-decoder what its decoder began with, as in transformers
        bias = np.zeros(self.vocab_size, np.float32) if self._forbidden is None else self._forbidden.copy()
        for token, value in request.bias.items():
            bias[token] += value
        settings = sampling.settings([request.sampling], [sample])
        return Filling(np.int32(len(request.prompt)), np.int32(request.new_tokens), settings, read, bias)

    def _empty(self, slots: int) -> Slots:
        """Slots without texts. Their cache is as `prefill` makes it, with a length for each."""
        v, one = self.vocab_size, jnp.zeros((slots, 1), jnp.int32)
        encoder = None
        if self.source:
            long = jnp.zeros((slots, self.source), jnp.int32)
            encoder = TokenStream(long, long, long, None)

        def first() -> Any:
            encoded = (
                ()
                if encoder is None
                else (self.model.apply({"params": self.params}, encoder, method="encode"), encoder.segments)
            )
            return self.model.apply(
                {"params": self.params},
                TokenStream(one, one, one, None),
                *encoded,
                cache_length=self.length,
                method="decode",
                mutable=["cache"],
            )[1]["cache"]

        with self._mesh():
            cache = jax.tree.map(lambda x: jnp.zeros(x.shape or (slots,), x.dtype), jax.eval_shape(first))
        settings = jax.tree.map(jnp.asarray, sampling.settings([Sampling()] * slots, [0] * slots))
        zeros = partial(jnp.zeros, (slots,), jnp.int32)
        table = lambda dtype: jnp.zeros((slots, v), dtype)
        return Slots(cache, table(jnp.float32), zeros(), zeros(), settings, table(bool), table(jnp.int32), table(jnp.float32))


def buckets(most: int) -> list[int]:
    """The lengths that prompts of up to `most` tokens are padded to: SMALLEST, doubled until `most` is reached, and that."""
    sizes = [SMALLEST]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return [*(size for size in sizes if size < most), most]


def whole(tokens: np.ndarray, most: int | None = None) -> TokenStream:
    """What an encoder reads, [1, P], padded to a bucket of at most `most` tokens; None: not padded."""
    row = padded(tokens, most) if most else tokens[None].astype(np.int32)
    place = np.arange(row.shape[1], dtype=np.int32)[None]
    return TokenStream(row, place, (place < len(tokens)).astype(np.int32), None)


def padded(tokens: np.ndarray, most: int) -> np.ndarray:
    """int32 [1, P]: P is the smallest bucket that has room."""
    size = next(size for size in buckets(most) if size >= len(tokens))
    return np.pad(tokens.astype(np.int32), (0, size - len(tokens)))[None]
