"""The compiled programs of `lm.generation.engine`: a prompt is read, put into a slot, and all slots write.

Axes: S slots, V vocabulary, L length of the cache, G tokens that are guessed ahead, K likeliest tokens that are reported.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from lm import startup
from lm.config import Sampling
from lm.generation import cache, sampling
from lm.generation.sampling import Settings
from lm.models.transformer import Transformer
from lm.sharding import shards, spec
from lm.types import Array, TokenStream

# How the slots draw: each takes its likeliest token; from the whole distribution; or some of them by filters, penalties or a
# grammar.
Way = Literal["greedy", "plain", "filtered"]
NGRAM = 3  # tokens at the end of a text that are looked up in it, at most


@dataclass(frozen=True)
class Setup:
    """What is fixed while an engine lives."""

    model: Transformer
    top: int = 0  # likeliest tokens that are reported
    prefix: bool = False  # the tokens of a prompt attend to each other
    guesses: int = 0  # G
    draft: Transformer | None = None  # what guesses; None: what followed when the last tokens occurred before


@struct.dataclass
class Slots:
    cache: Any
    draft: Any  # the cache of the draft model; None without one
    text: jax.Array  # int32 [S, L + G], prompt and what was written; [S, 0] where nothing is looked up in it
    logits: jax.Array  # float32 [S, V], of the token to be written
    position: jax.Array  # int32 [S], of that token
    left: jax.Array  # int32 [S], tokens that may still be written; 0 in a free slot
    settings: Settings  # [S]
    read: jax.Array  # bool [S, V], tokens of the prompt
    written: jax.Array  # int32 [S, V], how often each token was written
    bias: jax.Array  # float32 [S, V]


@struct.dataclass
class Filling:
    """What `insert` is told of a request beside its cache."""

    text: Array  # int32 [L + G], or [0]
    position: Array  # int32
    left: Array  # int32
    settings: Settings  # [1]
    read: Array  # bool [V]
    bias: Array  # float32 [V]


@struct.dataclass
class Drawn:
    """What `decode` wrote at one place; a row counts if it was `live`."""

    token: jax.Array  # int32 [S]
    log_prob: jax.Array  # float32 [S], of the model's own distribution
    drawn_log_prob: jax.Array  # float32 [S], of the one that it was drawn from
    top_tokens: jax.Array  # int32 [S, K]
    top_log_probs: jax.Array  # float32 [S, K]
    live: jax.Array  # bool [S]
    last: jax.Array  # bool [S]: nothing follows


@dataclass(frozen=True)
class Programs:
    prefill: Any
    insert: Any
    decode: Any
    free: Any


@functools.cache
def jitted() -> Programs:
    """The programs, jitted."""
    options = startup.decoding_options()
    return Programs(
        jax.jit(prefill, static_argnames=("model", "prefix")),
        jax.jit(insert, donate_argnames="slots"),
        jax.jit(decode, static_argnames=("setup", "most", "way"), donate_argnames="slots", compiler_options=options),
        jax.jit(free, donate_argnames="slots"),
    )


def prefill(
    model: Transformer,
    params: Any,
    tokens: jax.Array,
    size: jax.Array,
    encoder: TokenStream | jax.Array | None,
    *,
    prefix: bool,
    length: int | None = None,
    blank: jax.Array | int = 0,
    begun: tuple[Any, jax.Array, jax.Array] | None = None,
) -> tuple[Any, jax.Array]:
    """Reads a prompt, int32 [1, P] of which the first `size` count, without the first `blank` of these. Returns its cache, with
    room for `length` tokens (None: P), and the logits float32 [V] after it.

    begun: the cache of all slots, a slot, and how many of its first tokens the prompt follows. These are not read again: what
    is returned is a copy of this slot's cache that goes on with the prompt.

    Where rows are sharded every shard reads it, because one row cannot be cut.
    """
    rows = shards("batch")
    tokens = jnp.broadcast_to(tokens, (rows, tokens.shape[1]))
    encoder = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])), encoder)
    place = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    segments = ((place >= blank) & (place < size)).astype(jnp.int32)
    stream = TokenStream(tokens, place if begun is None else begun[2] + place, segments, segments > 0 if prefix else None)
    variables = {"params": params}
    encoded: Any = ()
    if encoder is not None:
        encoded = model.apply(variables, encoder, method="encoded")
    known = {} if begun is None else {"cache": cache.beginning(*begun, rows=rows)}
    room = length or tokens.shape[1]
    hidden, found = model.apply(variables | known, stream, *encoded, cache_length=room, method="decode", mutable=["cache"])
    last = jax.lax.dynamic_index_in_dim(hidden, size - 1, 1, keepdims=False)
    logits: Any = model.apply(variables, last, method="logits")
    return cache.first_row(found["cache"]), logits[0].astype(jnp.float32)


def empty(
    setup: Setup, params: Any, draft_params: Any, *, slots: int, length: int, source: int = 0, kind: cache.Kind = "own"
) -> Slots:
    """Slots without texts. Of the parameters only shapes are read."""
    room: dict[str, Any] = dict(slots=slots, length=length + setup.guesses, kind=kind, ahead=setup.guesses, prefix=setup.prefix)
    kept = cache.allocated(setup.model, params, source=source, **room)
    small = cache.allocated(setup.draft, draft_params, source=0, **room) if setup.draft else None
    settings = jax.tree.map(jnp.asarray, sampling.settings([Sampling()] * slots, [0] * slots))
    zeros = functools.partial(jnp.zeros, (slots,), jnp.int32)
    table = lambda dtype: jnp.zeros((slots, setup.model.config.vocab_size), dtype)
    text = jnp.zeros((slots, room["length"] if setup.guesses and not setup.draft else 0), jnp.int32)
    drawing = table(jnp.float32), zeros(), zeros(), settings, table(bool), table(jnp.int32), table(jnp.float32)
    return constrained(Slots(kept, small, text, *drawing))


def constrained(slots: Slots) -> Slots:
    """Slots with their shardings on the mesh in use, the same before and after each program, so that none compiles twice."""
    if jax.sharding.get_abstract_mesh().empty:
        return slots
    rest = replace(slots, cache=None, draft=None)
    rest = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec("batch", *[None] * (x.ndim - 1))), rest)
    of = lambda kept: None if kept is None else jax.lax.with_sharding_constraint(kept, cache.specs(kept))
    return replace(rest, cache=of(slots.cache), draft=of(slots.draft))


def insert(slots: Slots, slot: jax.Array, row: Any, draft: Any, logits: jax.Array, size: jax.Array, of: Filling) -> Slots:
    """Puts a prompt of `size` tokens that `prefill` has read into a slot. `draft`: its cache of the draft model."""
    one = lambda old, new: old.at[slot].set(new)
    filled = Slots(
        cache.put(slots.cache, slot, row, size),
        None if draft is None else cache.put(slots.draft, slot, draft, size),
        one(slots.text, of.text),
        one(slots.logits, logits),
        one(slots.position, of.position),
        one(slots.left, of.left),
        jax.tree.map(lambda old, new: one(old, new[0]), slots.settings, of.settings),
        one(slots.read, of.read),
        one(slots.written, 0),
        one(slots.bias, of.bias),
    )
    return constrained(filled)


def free(slots: Slots, slot: jax.Array) -> Slots:
    """Writes no more in a slot."""
    return constrained(replace(slots, left=slots.left.at[slot].set(0)))


def decode(
    setup: Setup,
    params: Any,
    draft_params: Any,
    slots: Slots,
    eos: jax.Array,
    steps: jax.Array,
    allowed: jax.Array | None = None,
    *,
    most: int,
    way: Way,
) -> tuple[Slots, Drawn]:
    """Passes `steps` times through the model, at most `most` times, and no more once no slot is live. Each slot writes a token
    in each, and those of the G guesses that are right.

    Returns what was written with a leading axis of most * (1 + G). `allowed`, uint32 [S, V / 32], has the bits of the tokens
    that may be drawn, for a single step, which then guesses nothing.

    Each token is drawn as it would be without guesses, by the same random numbers, and a guess is right if it is that token. So
    a text is the same with guesses as without but for rounding, and its distribution too, whatever guesses.
    """
    step = functools.partial(_step, setup, params, draft_params, eos, allowed, way)
    drawn = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), jax.eval_shape(step, slots)[1])

    def going(carry: tuple[jax.Array, Slots, Drawn]) -> jax.Array:
        return (carry[0] < jnp.minimum(steps, most)) & (carry[1].left > 0).any()

    def passed(carry: tuple[jax.Array, Slots, Drawn]) -> tuple[jax.Array, Slots, Drawn]:
        k, slots, drawn = carry
        slots, new = step(slots)
        return k + 1, slots, jax.tree.map(lambda all_, one: all_.at[k].set(one), drawn, new)

    _, slots, drawn = jax.lax.while_loop(going, passed, (jnp.int32(0), slots, drawn))
    return slots, jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), drawn)


def _step(
    setup: Setup, params: Any, draft_params: Any, eos: jax.Array, allowed: jax.Array | None, way: Way, slots: Slots
) -> tuple[Slots, Drawn]:
    guesses = 0 if allowed is not None else setup.guesses
    rows, live = jnp.arange(len(slots.left)), slots.left > 0
    last = slots.cache["segments"].shape[1] - setup.guesses - 1

    def drawn(logits: jax.Array, written: jax.Array, ahead: int, live: jax.Array) -> Drawn:
        s = slots.settings
        chosen = logits + slots.bias
        if way == "filtered":
            chosen = sampling.penalised(logits, s, slots.read, written) + slots.bias
            chosen = sampling.filtered(chosen if allowed is None else sampling.only(chosen, allowed), s)
        elif way == "plain":
            chosen = sampling.cooled(chosen, s)
        token = sampling.argmax(chosen) if way == "greedy" else sampling.draw(chosen, s, slots.position + ahead)
        best = (jnp.zeros((len(rows), 0)),) * 2
        if setup.top:
            best = jax.lax.top_k(jax.nn.log_softmax(logits, axis=-1), setup.top)
        own = jnp.zeros(len(rows))  # at temperature 0 the token was certain
        if way != "greedy":
            own = jnp.where(s.temperature > 0, sampling.log_prob(chosen, token), own)
        ends = live & ((token[:, None] == eos).any(axis=1) | (slots.left == ahead + 1))
        return Drawn(token, sampling.log_prob(logits, token), own, best[1].astype(jnp.int32), best[0], live, ends)

    def counted(written: jax.Array, of: Drawn) -> jax.Array:
        return written.at[rows, of.token].add(of.live.astype(jnp.int32)) if way == "filtered" else written

    out = [drawn(slots.logits, slots.written, 0, live)]
    written = counted(slots.written, out[0])
    text = _noted(slots.text, out[0], slots.position)
    draft, guessed = slots.draft, jnp.zeros((len(rows), guesses), jnp.int32)
    if setup.draft is not None:
        settings: dict[str, Any] = dict(guesses=guesses, last=last, greedy=way == "greedy")
        draft, guessed = _drafted(setup.draft, draft_params, slots, out[0].token, **settings)
    elif guesses:
        guessed = looked_up(text, slots.position + 1, guesses)
    tokens = jnp.concatenate([out[0].token[:, None], guessed], axis=1)
    hidden, kept = _read(setup.model, params, slots.cache, tokens, slots.position, last)
    logits = _logits(setup.model, params, hidden)  # [S, 1 + G, V]
    after = logits[:, 0]
    for i in range(guesses):
        right = out[i].live & ~out[i].last & (guessed[:, i] == (new := drawn(after, written, i + 1, live)).token)
        out.append(replace(new, live=right, last=new.last & right))
        written, text = counted(written, out[-1]), _noted(text, out[-1], slots.position + i + 1)
        after = jnp.where(right[:, None], logits[:, i + 1], after)
    count = sum(of.live.astype(jnp.int32) for of in out)
    ended = functools.reduce(jnp.logical_or, [of.last for of in out])
    position = slots.position + count
    after_all = replace(
        slots,
        cache=kept | {"length": position},
        draft=None if draft is None else draft | {"length": position},
        text=text,
        logits=after,
        position=position,
        left=jnp.where(live & ~ended, slots.left - count, 0),
        written=written,
    )
    return constrained(after_all), jax.tree.map(lambda *x: jnp.stack(x), *out)


def _read(
    model: Transformer, params: Any, kept: Any, tokens: jax.Array, position: jax.Array, last: int
) -> tuple[jax.Array, Any]:
    """Reads tokens [S, T], the first at `position` [S]: hidden vectors [S, T, D] and the cache. Guesses behind the `last`
    position of a slot are read as if there: one that was not learned would make their values NaN."""
    positions = jnp.minimum(position[:, None] + jnp.arange(tokens.shape[1]), last)
    stream = TokenStream(tokens, positions, jnp.ones_like(tokens), None)
    variables = {"params": params, "cache": kept}
    hidden, changed = model.apply(variables, stream, method="decode", mutable=["cache"])
    return hidden, changed["cache"]


def _logits(model: Transformer, params: Any, hidden: jax.Array) -> jax.Array:
    logits: Any = model.apply({"params": params}, hidden, method="logits")
    return logits.astype(jnp.float32)


def _noted(text: jax.Array, of: Drawn, position: jax.Array) -> jax.Array:
    """The text with a token at `position` where one was written."""
    if not text.shape[1]:
        return text
    rows = jnp.arange(len(text))
    return text.at[rows, position].set(jnp.where(of.live, of.token, text[rows, position]))


def _drafted(
    model: Transformer, params: Any, slots: Slots, token: jax.Array, *, guesses: int, last: int, greedy: bool
) -> tuple[Any, jax.Array]:
    """The draft model's cache with `token`, and its guesses, int32 [S, G], of what follows. It draws with the random numbers
    that the model draws with: where both have much the same distribution they mostly draw the same."""
    kept, found, s = slots.draft, [], slots.settings
    for i in range(guesses + 1):  # the last guess is read too: it may turn out to be right
        hidden, kept = _read(model, params, kept, token[:, None], slots.position + i, last)
        if i < guesses:
            logits = _logits(model, params, hidden)[:, 0] + slots.bias
            token = sampling.argmax(logits) if greedy else sampling.draw(sampling.cooled(logits, s), s, slots.position + i + 1)
            found.append(token)
    return kept, jnp.stack(found, axis=1) if found else jnp.zeros((len(token), 0), jnp.int32)


def looked_up(text: jax.Array, size: jax.Array, guesses: int) -> jax.Array:
    """int32 [S, G]: what followed the latest earlier place of a text, of which the first `size` [S] tokens count, at which most
    of its last NGRAM tokens occurred; a repetition is taken to go on. (Prompt look-up decoding.)"""

    def one(text: jax.Array, size: jax.Array) -> jax.Array:
        place = jnp.arange(len(text))
        alike = jnp.ones(len(text), bool)
        score = jnp.zeros(len(text), jnp.int32)
        for k in range(NGRAM):
            alike &= (place >= k) & (jnp.roll(text, k) == text[jnp.maximum(size - 1 - k, 0)]) & (k < size)
            score += alike
        best = jnp.argmax(jnp.where(place < size - 1, score * len(text) + place, -1))
        period = jnp.maximum(size - 1 - best, 1)
        return text[best + 1 + jnp.arange(guesses) % period]

    return jax.vmap(one)(text, size)
