"""What a student is to match of its teacher: the distributions of tokens, hidden vectors, and relations between tokens.

The teacher's arrays are constants: no gradient flows through them. Axes: B batch, T length, P predicted positions, D width,
R relation heads, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.losses.chunked import Apply, chunked_sum, over_logits
from lm.losses.cross_entropy import token_losses
from lm.losses.log_probs import exclude


class Side(NamedTuple):
    """A model on a batch: hidden vectors [B, P, D], and the parameters that `apply(..., method="logits")` reads for theirs."""

    head: Any
    apply: Apply
    hidden: jax.Array


def divergence(logits: jax.Array, teacher: jax.Array, *, beta: float = 0.0, temperature: float = 1.0) -> jax.Array:
    """How far the student's distribution Q is from the teacher's P, in nats, float32 [...], for logits [..., V] of both.

    beta 0: KL(P || Q), forward. beta 1: KL(Q || P), reverse. Between them the generalized Jensen-Shannon divergence of GKD
    (arXiv 2306.13649, equation 1): beta KL(P || M) + (1 - beta) KL(Q || M), where M = beta P + (1 - beta) Q.

    Both logits are divided by `temperature`, and the result is multiplied by its square, so that its gradient stays as large as
    that of hard targets (arXiv 1503.02531, section 2).
    """
    q, p = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (logits, jax.lax.stop_gradient(teacher)))
    kl = lambda a, b: jnp.sum(jnp.exp(a) * (a - b), axis=-1)
    if beta == 0.0:
        found = kl(p, q)
    elif beta == 1.0:
        found = kl(q, p)
    else:
        m = jnp.logaddexp(p + jnp.log(beta), q + jnp.log1p(-beta))
        found = beta * kl(p, m) + (1 - beta) * kl(q, m)
    return temperature**2 * found


def mixed(
    student: Side,
    teacher: Side,
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
    chunks: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The weighted sum over positions of `logits` * divergence + `labels` * cross-entropy of the targets [B, P]; and both,
    float32 [B, P], which have no gradient.

    Logits of both models exist for a chunk of positions at a time (`lm.losses.chunked`). `excluded`: int32 [B, P], a token at
    each position that both models give probability 0.
    """
    theirs = jax.lax.stop_gradient(teacher.head)
    cast = lambda x: x.astype(teacher.hidden.dtype) if x.ndim > 1 else x  # as `chunked_sum` does with the student's
    head = jax.tree.map(cast, theirs)

    def part(ours: jax.Array, hidden: jax.Array, targets: jax.Array, weights: jax.Array, *excluded: jax.Array) -> Any:
        ours = exclude(ours, *excluded)
        wanted = exclude(teacher.apply({"params": head}, hidden, method="logits"), *excluded)
        apart = divergence(ours, wanted, beta=beta, temperature=temperature)
        nats = token_losses(ours, targets, z_loss)
        total = jnp.sum(weights * (logits * apart + labels * nats))
        return total, jax.lax.stop_gradient((apart, nats))

    rest = (jax.lax.stop_gradient(teacher.hidden), targets, weights) + (() if excluded is None else (excluded,))
    outputs = 2 * vocab_size  # of both models
    total, also = over_logits(chunked_sum, part, student.head, student.apply, student.hidden, rest, outputs, chunks)
    return total, *also


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
