"""The log-probability of each target token under a model: what scores, ranking, preferences and policies are made of.

Values come for each token, float32, and the caller weighs and sums them. They are exact, and differentiable in the
parameters; the logits of all tokens never exist at once (see `lm.losses.chunked`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.losses.chunked import Apply, chunked_map, over_logits
from lm.types import Example

FORBIDDEN = -1e30  # the logit of a forbidden token; finite, because a weight of 0 times infinity would be NaN


class TokenScores(NamedTuple):
    log_probs: jax.Array  # float32 [B, P]
    is_top: jax.Array  # bool [B, P]: no token is likelier than the target


def log_probs(
    params: Any,
    apply: Apply,
    example: Example,
    *,
    head_params: Callable[[Any], Any],
    vocab_size: int,
    forbidden: jax.Array | None = None,
    rngs: dict[str, jax.Array] | None = None,
    chunks: int | None = None,
) -> jax.Array:
    """float32 [B, P]: the log-probability of each of `example.targets`, whatever its weight.

    Padding gets finite values too, so that `sum(example.weights * log_probs, axis=1)` is that of each row. `forbidden` is
    bool [V]: tokens of probability 0; the others share all of it. `rngs` are those of dropout; None: without dropout.
    `head_params` selects the parameters that `apply(..., method="logits")` reads. What a model sows in "losses" is not
    returned: `sown_log_probs` returns both.
    """
    hidden = apply({"params": params}, example, method="hidden", rngs=rngs)
    settings: dict[str, Any] = dict(vocab_size=vocab_size, forbidden=forbidden, chunks=chunks)
    return token_log_probs(head_params(params), apply, hidden, example.targets, **settings)


def sown_log_probs(
    params: Any,
    apply: Apply,
    example: Example,
    *,
    head_params: Callable[[Any], Any],
    rngs: dict[str, jax.Array] | None = None,
    **settings: Any,
) -> tuple[jax.Array, Any]:
    """`log_probs`, and the tree of what the model sowed in "losses" (a router's, see `lm.models.moe`), empty without any."""
    hidden, sown = apply({"params": params}, example, method="hidden", rngs=rngs, mutable=["losses"])
    return token_log_probs(head_params(params), apply, hidden, example.targets, **settings), sown


def token_log_probs(
    head: Any,
    apply: Apply,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    vocab_size: int,
    forbidden: jax.Array | None = None,
    chunks: int | None = None,
) -> jax.Array:
    """float32, shaped like `targets`, which are int32 [B, P], or [B, P, K] for K tokens after each of `hidden` [B, P, D].

    `head` are the parameters that `apply(..., method="logits")` reads.
    """

    def fn(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return log_softmax_at(forbid(logits, forbidden), targets)

    return over_logits(chunked_map, fn, head, apply, hidden, (targets,), vocab_size, chunks)


def token_scores(
    params: Any,
    apply: Apply,
    example: Example,
    *,
    head_params: Callable[[Any], Any],
    vocab_size: int,
    forbidden: jax.Array | None = None,
    excluded: jax.Array | None = None,
) -> TokenScores:
    """`log_probs` without dropout, and which targets are the most likely token. `excluded`: int32 [B, P], see `exclude`."""
    hidden = apply({"params": params}, example, method="hidden")
    settings: dict[str, Any] = dict(vocab_size=vocab_size, forbidden=forbidden, excluded=excluded)
    return scores_of_hidden(head_params(params), apply, hidden, example.targets, **settings)


def scores_of_hidden(
    head: Any,
    apply: Apply,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    vocab_size: int,
    forbidden: jax.Array | None = None,
    excluded: jax.Array | None = None,
) -> TokenScores:
    """`token_scores` of hidden vectors [B, P, D]; `head` are the parameters that `apply(..., method="logits")` reads."""

    def fn(logits: jax.Array, targets: jax.Array, *excluded: jax.Array) -> TokenScores:
        logits = exclude(forbid(logits, forbidden), *excluded)
        return TokenScores(log_softmax_at(logits, targets), jnp.argmax(logits, axis=-1) == targets)

    rest = (targets,) if excluded is None else (targets, excluded)
    return over_logits(chunked_map, fn, head, apply, hidden, rest, vocab_size)


def forbid(logits: jax.Array, forbidden: jax.Array | None) -> jax.Array:
    """Logits [..., V] in float32, those of `forbidden` tokens (bool [V]) so low that their probability is 0."""
    logits = logits.astype(jnp.float32)
    return logits if forbidden is None else jnp.where(forbidden, FORBIDDEN, logits)


def exclude(logits: jax.Array, excluded: jax.Array | None = None) -> jax.Array:
    """Logits [..., V] in which one token at each position, int32 [...], has probability 0."""
    if excluded is None:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) == excluded[..., None], jnp.asarray(FORBIDDEN, logits.dtype), logits)


def log_softmax_at(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """log softmax(logits)[target], float32, over the last axis of logits [..., V]; targets are [...] or [..., K]."""
    chosen, log_z = target_logits(logits, targets)
    return chosen - log_z


def target_logits(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logits of the targets, and log(Z) of each softmax, both float32, for logits [..., V].

    Targets are [...], and so are both results; or [..., K], and log(Z) is [..., 1].
    """
    logits = logits.astype(jnp.float32)
    several = targets.ndim == logits.ndim
    log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=several)
    chosen = jnp.take_along_axis(logits, targets if several else targets[..., None], axis=-1)
    return chosen if several else chosen[..., 0], log_z
