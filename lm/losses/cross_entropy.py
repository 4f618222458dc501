"""Cross-entropy of an Example's targets, for training and for evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.losses.chunked import Apply, chunked_sum, over_logits
from lm.losses.log_probs import exclude, target_logits, token_scores
from lm.types import Example, WeightedMean


def token_losses(logits: jax.Array, targets: jax.Array, z_loss: float = 0.0) -> jax.Array:
    """-log softmax(logits)[target] + z_loss * log(Z)^2, float32 [...], for logits [..., V] and targets [...]."""
    chosen, log_z = target_logits(logits, targets)
    return log_z - chosen + z_loss * log_z**2


def cross_entropy(
    params: Any,
    apply: Apply,
    example: Example,
    *,
    head_params: Callable[[Any], Any],
    vocab_size: int,
    z_loss: float = 0.0,
    excluded: jax.Array | None = None,
    rngs: dict[str, jax.Array] | None = None,
    chunks: int | None = None,
) -> WeightedMean:
    """The weighted sum of the token losses of an Example, and the sum of its weights.

    What the model itself sows in "losses" (a router's, see `lm.models.moe`) is added to the mean over tokens: it enters the sum
    times the weight, so that each of several microbatches counts by its weight.

    `excluded`, int32 [B, P]: a token at each position that has probability 0.

    `head_params` selects the parameters that `apply(..., method="logits")` reads, so that only their gradient is carried
    through the chunks.
    """

    hidden, sown = apply({"params": params}, example, method="hidden", rngs=rngs, mutable=["losses"])
    settings: dict[str, Any] = dict(vocab_size=vocab_size, z_loss=z_loss, excluded=excluded, chunks=chunks)
    total = of_hidden(head_params(params), apply, hidden, example.targets, example.weights, **settings)
    weight = jnp.sum(example.weights)
    return WeightedMean(sum((jnp.sum(extra) * weight for extra in jax.tree.leaves(sown)), total), weight)


def of_hidden(
    head: Any,
    apply: Apply,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    vocab_size: int,
    z_loss: float = 0.0,
    excluded: jax.Array | None = None,
    chunks: int | None = None,
) -> jax.Array:
    """The weighted sum of the losses of targets [B, P] at hidden vectors [B, P, D]; `head` are the parameters that `apply(...,
    method="logits")` reads."""

    def part(logits: jax.Array, targets: jax.Array, weights: jax.Array, *excluded: jax.Array) -> tuple[jax.Array, None]:
        return jnp.sum(weights * token_losses(exclude(logits, *excluded), targets, z_loss)), None

    rest = (targets, weights) + (() if excluded is None else (excluded,))
    return over_logits(chunked_sum, part, head, apply, hidden, rest, vocab_size, chunks)[0]


def scores(
    params: Any,
    apply: Apply,
    example: Example,
    *,
    head_params: Callable[[Any], Any],
    vocab_size: int,
    excluded: jax.Array | None = None,
) -> dict[str, WeightedMean]:
    """For evaluation: `loss` in nats (no z-loss) and `accuracy` of the most likely token, over the weighted targets."""
    found = token_scores(params, apply, example, head_params=head_params, vocab_size=vocab_size, excluded=excluded)
    weight = jnp.sum(example.weights)
    return {
        "loss": WeightedMean(-jnp.sum(example.weights * found.log_probs), weight),
        "accuracy": WeightedMean(jnp.sum(example.weights * found.is_top), weight),
    }
