"""How the next token is drawn from logits: settings as arrays, a value for each row, so that one program serves all requests.

The order is that of `transformers`: penalties, bias, temperature, then the filters top-k, top-p, min-p and typical, each over
the distribution that the one before it leaves. A draw is a function of the request's seed, the number of the sample and the
position of the token, and of nothing else.

Axes: B rows, V vocabulary.
"""

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.config import Sampling
from lm.types import Array

NEVER = -jnp.inf
BLOCK = 128  # tokens that `draw` chooses together, before one of them


@struct.dataclass
class Settings:
    """`Sampling` of B rows, [B] each, and which sample of its request a row is."""

    temperature: Array
    top_k: Array  # int32
    top_p: Array
    min_p: Array
    typical_p: Array
    repetition: Array
    frequency: Array
    presence: Array
    seed: Array  # uint32
    sample: Array  # int32


def settings(of: list[Sampling], samples: list[int]) -> Settings:
    """NumPy arrays, a row for each."""
    kinds = {"top_k": np.int32, "seed": np.uint32}
    arrays = {f.name: np.array([getattr(s, f.name) for s in of], kinds.get(f.name, np.float32)) for f in fields(Sampling)}
    return Settings(**arrays, sample=np.array(samples, np.int32))


def penalised(logits: jax.Array, s: Settings, read: jax.Array, written: jax.Array) -> jax.Array:
    """float32 [B, V]. `read`: bool [B, V], tokens of the prompt; `written`: int32 [B, V], how often each was written since."""
    seen = read | (written > 0)
    repetition = s.repetition[:, None]
    logits = jnp.where(seen, jnp.where(logits > 0, logits / repetition, logits * repetition), logits)
    return logits - s.frequency[:, None] * written - s.presence[:, None] * (written > 0)


def cooled(logits: jax.Array, s: Settings) -> jax.Array:
    """float32 [B, V]: logits divided by the temperature, of which 0 counts as 1 here."""
    return logits / jnp.where(s.temperature > 0, s.temperature, 1.0)[:, None]


def filtered(logits: jax.Array, s: Settings) -> jax.Array:
    """float32 [B, V]: logits divided by the temperature, -inf where a filter excludes a token. A temperature of 0 counts as 1
    here. The likeliest token is always left, and of tokens that are equally likely those of lower number go first.

    One sort serves top-k, top-p and min-p, because they keep a beginning of it; another serves typical.
    """
    logits = cooled(logits, s)
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    place = jnp.arange(logits.shape[-1])
    ranked = jnp.where((s.top_k[:, None] > 0) & (place >= s.top_k[:, None]), NEVER, ranked)
    p = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(p, axis=-1) - p
    ranked = jnp.where((before >= s.top_p[:, None]) & (s.top_p[:, None] < 1) & (place > 0), NEVER, ranked)
    p = jax.nn.softmax(ranked, axis=-1)
    ranked = jnp.where(p < s.min_p[:, None] * p[:, :1], NEVER, ranked)
    ranked = _typical(ranked, s.typical_p)
    back = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(ranked, back, axis=-1)


def _typical(logits: jax.Array, share: jax.Array) -> jax.Array:
    """Keeps the fewest tokens, by how near their surprise is to the entropy, that have this share of the probability."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1, keepdims=True)
    away = jnp.where(p > 0, jnp.abs(-log_p - entropy), jnp.inf)
    order = jnp.argsort(away, axis=-1, stable=True)
    ordered = jnp.take_along_axis(p, order, axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    out = (before >= share[:, None]) & (jnp.arange(p.shape[-1]) > 0)
    excluded = jnp.take_along_axis(out, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(excluded & (share[:, None] < 1), NEVER, logits)


def only(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """float32 [B, V]: -inf except for the tokens whose bit is set in `allowed`, uint32 [B, ceil(V / 32)], lowest bit first."""
    bits = (allowed[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return jnp.where(bits.reshape(len(logits), -1)[:, : logits.shape[-1]] > 0, logits, NEVER)


def draw(logits: jax.Array, s: Settings, position: jax.Array) -> jax.Array:
    """int32 [B]: a token of each row by its logits [B, V], the likeliest at temperature 0. `position`: int32 [B].

    One uniform number chooses among blocks of tokens, a second one within the block, each by inverting the distribution
    function. Gumbel noise for all tokens would take V random numbers, a quarter of a small model's step on a CPU.
    """

    def uniform(seed: jax.Array, sample: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), position)
        return jax.random.uniform(key, (2,))

    u = jax.vmap(uniform)(s.seed, s.sample, position)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -logits.shape[-1] % BLOCK))).reshape(len(u), -1, BLOCK)
    block = inverted(blocks.sum(axis=-1), u[:, 0])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    drawn = block * BLOCK + inverted(inside, u[:, 1])
    return jnp.where(s.temperature > 0, drawn, argmax(logits)).astype(jnp.int32)


def inverted(weights: jax.Array, u: jax.Array) -> jax.Array:
    """int32 [B]: the first index at which the sum of a row's weights [B, N] passes a share `u` [B], below 1, of all of them.
    Its weight is not 0."""
    total = jnp.cumsum(weights, axis=-1)
    passed = jnp.sum(total <= u[:, None] * total[:, -1:], axis=-1)
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[-1]), 0), axis=-1)  # where u * sum rounds to the sum
    return jnp.minimum(passed, last)


def argmax(logits: jax.Array) -> jax.Array:
    """int32 [B]: the first of the largest logits [B, V]. XLA's own argmax is a reduction over pairs, which takes a CPU ten
    times as long as two of floats. Places below 2^24 are exact in float32."""
    size = logits.shape[-1]
    back = size - jax.lax.broadcasted_iota(jnp.float32, logits.shape, logits.ndim - 1)
    largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    return size - jnp.max(jnp.where(largest, back, 1.0), axis=-1).astype(jnp.int32)


def log_prob(logits: jax.Array, token: jax.Array) -> jax.Array:
    """float32 [B]: the log-probability of each row's token under its logits [B, V]."""
    return jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
