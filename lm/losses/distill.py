"""What a student is to match of its teacher: the distributions of tokens, hidden vectors, and relations between tokens.

The teacher's arrays are constants: no gradient flows through them. Axes: B batch, T length, P predicted positions, D width,
R relation heads, V vocabulary, K the teacher's likeliest tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.losses.chunked import Apply, chunked_map, chunked_sum, over_logits
from lm.losses.cross_entropy import token_losses
from lm.losses.log_probs import FORBIDDEN, exclude
from lm.types import Array


class Side(NamedTuple):
    """A model on a batch: hidden vectors [B, P, D], and the parameters that `apply(..., method="logits")` reads for theirs."""

    head: Any
    apply: Apply
    hidden: jax.Array


class TopK(NamedTuple):
    """A teacher's K likeliest tokens at each position, and the mass of all others as one more outcome."""

    log_probs: Array  # float32 [..., K + 1], or [..., V] if these are all tokens
    ids: Array  # int32 [..., K]


def top_k(logits: jax.Array, k: int, *, temperature: float = 1.0) -> TopK:
    """What is kept of a teacher's logits [..., V], divided by the temperature, to distil from without the teacher."""
    _, ids = jax.lax.top_k(logits, k)
    return TopK(lumped(logits.astype(jnp.float32) / temperature, ids), ids)


def lumped(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """log softmax(logits [..., V]) at the tokens `ids` [..., K], and then of all others together: float32 [..., K + 1]; without
    the latter if K = V.

    The rest's mass is kept as an outcome of its own, not shared out: renormalised, the student would learn to be surer than its
    teacher (arXiv 2503.16870, section 3). A divergence of lumped distributions is at most that of the whole ones, and 0 of
    equals.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    kept = jnp.take_along_axis(logits, ids, axis=-1) - log_z
    if ids.shape[-1] == logits.shape[-1]:
        return kept
    others = jnp.put_along_axis(logits, ids, FORBIDDEN, axis=-1, inplace=False)
    return jnp.concatenate([kept, jax.nn.logsumexp(others, axis=-1, keepdims=True) - log_z], axis=-1)


def divergence(logits: jax.Array, teacher: jax.Array, *, beta: float = 0.0, temperature: float = 1.0) -> jax.Array:
    """How far the student's distribution Q is from the teacher's P, in nats, float32 [...], for logits [..., V] of both.

    beta 0: KL(P || Q), forward. beta 1: KL(Q || P), reverse. Between them the generalized Jensen-Shannon divergence of GKD
    (arXiv 2306.13649, equation 1): beta KL(P || M) + (1 - beta) KL(Q || M), where M = beta P + (1 - beta) Q.

    Both logits are divided by `temperature`, and the result is multiplied by its square, so that its gradient stays as large as
    that of hard targets (arXiv 1503.02531, section 2).
    """
    q, p = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (logits, jax.lax.stop_gradient(teacher)))
    return temperature**2 * _apart(q, p, beta)


def top_k_divergence(logits: jax.Array, teacher: TopK, *, beta: float = 0.0, temperature: float = 1.0) -> jax.Array:
    """`divergence` of the lumped distributions, float32 [...], for the student's logits [..., V]. The teacher's were divided by
    the same temperature (`top_k`)."""
    p = jax.lax.stop_gradient(teacher.log_probs)
    return temperature**2 * _apart(lumped(logits.astype(jnp.float32) / temperature, teacher.ids), p, beta)


def _apart(q: jax.Array, p: jax.Array, beta: float) -> jax.Array:
    """The divergence of log-probabilities q from p over the last axis."""
    kl = lambda a, b: jnp.sum(jnp.exp(a) * (a - b), axis=-1)
    if beta == 0.0:
        return kl(p, q)
    if beta == 1.0:
        return kl(q, p)
    m = jnp.logaddexp(p + jnp.log(beta), q + jnp.log1p(-beta))
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def mixed(
    student: Side,
    teacher: Side | TopK,
    targets: jax.Array,
    weights: jax.Array,
    *,
    vocab_size: int,
    logits: float,
    labels: float,
    beta: float,
    temperature: float,
    z_loss: float = 0.0,
    excluded: jax.Array | None = None,
    compared: jax.Array | None = None,
    chunks: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The weighted sum over positions of `logits` * divergence + `labels` * cross-entropy of the targets [B, P]; and both,
    float32 [B, P], which have no gradient.

    Logits of both models exist for a chunk of positions at a time (`lm.losses.chunked`). `excluded`: int32 [B, P], a token at
    each position that both models give probability 0. `compared`: float32 [B, P], weights of the divergence, if not `weights`.
    """
    theirs, outputs = _wanted(teacher, vocab_size)
    settings: dict[str, Any] = dict(beta=beta, temperature=temperature)

    def part(ours: jax.Array, known: Any, targets: jax.Array, weights: jax.Array, excluded: Any, compared: Any) -> Any:
        ours, wanted = exclude(ours, excluded), theirs(known)
        if isinstance(wanted, TopK):
            apart = top_k_divergence(ours, wanted, **settings)
        else:
            apart = divergence(ours, exclude(wanted, excluded), **settings)
        nats = token_losses(ours, targets, z_loss)
        if compared is None:
            total = jnp.sum(weights * (logits * apart + labels * nats))
        else:
            total = jnp.sum(compared * logits * apart + weights * labels * nats)
        return total, jax.lax.stop_gradient((apart, nats))

    known = jax.lax.stop_gradient(teacher if isinstance(teacher, TopK) else teacher.hidden)
    rest: Any = (known, targets, weights, excluded, compared)
    total, also = over_logits(chunked_sum, part, student.head, student.apply, student.hidden, rest, outputs, chunks)
    return total, *also


def kept_of(teacher: Side, k: int, *, vocab_size: int, temperature: float, excluded: jax.Array | None = None) -> TopK:
    """`top_k` of a teacher on a batch: arrays [B, P, ...]."""

    def part(logits: jax.Array, excluded: Any) -> TopK:
        return top_k(exclude(logits, excluded), k, temperature=temperature)

    rest: Any = (excluded,)
    return over_logits(chunked_map, part, teacher.head, teacher.apply, teacher.hidden, rest, vocab_size)


def _wanted(teacher: Side | TopK, vocab_size: int) -> tuple[Callable[[Any], Any], int]:
    """From a chunk of what is known of the teacher to its logits or `TopK`; and how many logits a position then has at once."""
    if isinstance(teacher, TopK):
        return lambda known: known, vocab_size
    cast = lambda x: x.astype(teacher.hidden.dtype) if x.ndim > 1 else x  # as `chunked_sum` does with the student's
    head = jax.tree.map(cast, jax.lax.stop_gradient(teacher.head))
    return lambda hidden: teacher.apply({"params": head}, hidden, method="logits"), 2 * vocab_size


def cosine_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """1 - cosine of vectors [..., D], float32 [...] (DistilBERT, arXiv 1910.01108, section 3)."""
    a, b = (x.astype(jnp.float32) for x in (student, jax.lax.stop_gradient(teacher)))
    norms = jnp.sqrt(jnp.sum(a**2, axis=-1) + 1e-12) * jnp.sqrt(jnp.sum(b**2, axis=-1) + 1e-12)
    return 1 - jnp.sum(a * b, axis=-1) / norms


def relation_divergence(student: jax.Array, teacher: jax.Array, visible: jax.Array, *, heads: int) -> jax.Array:
    """KL of relations between tokens, a mean over `heads`, float32 [B, T] (MiniLMv2, arXiv 2012.15828, section 3.1).

    A relation is the softmax over tokens of the scaled products of their queries with each other (or keys, or values), all
    heads' vectors cut anew into `heads` equal parts. So neither the widths nor the numbers of attention heads need agree.
    Vectors are [B, T, N, H]; `visible` is bool [B, T, T], the keys that each query sees.
    """

    def relations(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32).reshape(*x.shape[:2], heads, -1)
        products = jnp.einsum("btrh,bsrh->brts", x, x) * x.shape[-1] ** -0.5
        return jax.nn.log_softmax(jnp.where(visible[:, None], products, -1e30))

    q, p = relations(student), relations(jax.lax.stop_gradient(teacher))
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1), axis=1)
