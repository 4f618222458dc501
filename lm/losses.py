"""Losses: (params, apply, Example) -> WeightedMean. They know no model; `apply(params, *args, method=...)` is given.

Cross-entropy forms its gradient in the forward pass, chunk by chunk over the places of a row, so that the logits of a
chunk are all that ever lives of the [B, P, V] array, and no chunk is computed twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.types import Example, WeightedMean

Apply = Callable[..., Any]
CHUNK_BYTES = 2**28  # of float32 logits that may live at once on the whole mesh, by default


def token_losses(logits: jax.Array, targets: jax.Array, z_loss: float = 0.0) -> jax.Array:
    """-log softmax(logits)[target] + z_loss * log(Z)^2, float32, over the last axis of logits [..., V]."""
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - chosen + z_loss * log_z**2


def chunked_sum(fn: Callable[..., jax.Array], params: Any, hidden: jax.Array, rest: Any, chunks: int) -> jax.Array:
    """Sum over chunks of `fn(params, hidden_chunk, rest_chunk)`, a scalar; axis 1 of hidden and rest is cut in `chunks`.

    Differentiable in params and hidden, `rest` is constant. Differentiated, the forward pass already forms the gradient.
    """

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    @jax.custom_vjp
    def total(params: Any, hidden: jax.Array) -> jax.Array:
        if chunks == 1:
            return fn(params, hidden, rest)
        parts = jax.lax.map(lambda xs: fn(params, *xs), (cut(hidden), jax.tree.map(cut, rest)))
        return jnp.sum(parts, axis=0)

    def forward(params: Any, hidden: jax.Array) -> tuple[jax.Array, Any]:
        gradient = jax.value_and_grad(fn, argnums=(0, 1))
        if chunks == 1:
            value, (d_params, d_hidden) = gradient(params, hidden, rest)
            return value, (d_params, d_hidden)

        def step(carry: Any, xs: Any) -> tuple[Any, jax.Array]:
            value, (d_params, d_hidden) = gradient(params, *xs)
            return jax.tree.map(jnp.add, carry, (value, d_params)), d_hidden

        zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        (value, d_params), d_hidden = jax.lax.scan(step, zero, (cut(hidden), jax.tree.map(cut, rest)))
        return value, (d_params, jnp.moveaxis(d_hidden, 0, 1).reshape(hidden.shape))

    def backward(gradients: Any, cotangent: jax.Array) -> Any:
        return jax.tree.map(lambda g: (g * cotangent).astype(g.dtype), gradients)

    total.defvjp(forward, backward)
    return total(params, hidden)


def num_chunks(batch: int, places: int, vocab: int) -> int:
    """The fewest equal cuts of a row's places that keep the float32 logits within CHUNK_BYTES."""
    least = -(-batch * places * vocab * 4 // CHUNK_BYTES)
    return next(n for n in range(max(1, least), places + 1) if places % n == 0) if least < places else places


def cross_entropy(
    params: Any,
    apply: Apply,
    example: Example,
    *,
    head_params: Callable[[Any], Any],
    vocab_size: int,
    z_loss: float = 0.0,
    rngs: dict[str, jax.Array] | None = None,
    chunks: int | None = None,
) -> WeightedMean:
    """Weighted sum of the token losses of an Example, and the sum of its weights.

    What the model itself sows in "losses" (a router's, see `lm.models.moe`) counts once for each unit of weight: the mean
    is that of the tokens plus it.

    `head_params` selects what `apply(..., method="logits")` reads, so that only its gradient is carried through chunks.
    """

    def part(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(weights * token_losses(logits, targets, z_loss))

    hidden, sown = apply({"params": params}, example, method="hidden", rngs=rngs, mutable=["losses"])
    total = _over_logits(part, params, apply, hidden, example, head_params, vocab_size, chunks)
    weight = jnp.sum(example.weights)
    return WeightedMean(sum((jnp.sum(extra) * weight for extra in jax.tree.leaves(sown)), total), weight)


def scores(
    params: Any, apply: Apply, example: Example, *, head_params: Callable[[Any], Any], vocab_size: int
) -> dict[str, WeightedMean]:
    """For evaluation: `loss` in nats (no z-loss) and `accuracy` of the likeliest token, over the weighted places."""

    def part(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        right = jnp.argmax(logits, axis=-1) == targets
        return jnp.stack([jnp.sum(weights * token_losses(logits, targets)), jnp.sum(weights * right)])

    hidden = apply({"params": params}, example, method="hidden")
    loss, right = _over_logits(part, params, apply, hidden, example, head_params, vocab_size, None)
    weight = jnp.sum(example.weights)
    return {"loss": WeightedMean(loss, weight), "accuracy": WeightedMean(right, weight)}


def _over_logits(
    part: Callable[..., jax.Array],
    params: Any,
    apply: Apply,
    hidden: jax.Array,
    example: Example,
    head_params: Callable[[Any], Any],
    vocab_size: int,
    chunks: int | None,
) -> jax.Array:
    """Sum of `part(logits, targets, weights)` over chunks of the predicted places, whose hidden vectors are given."""

    def one(head: Any, h: jax.Array, rest: tuple[jax.Array, jax.Array]) -> jax.Array:
        return part(apply({"params": head}, h, method="logits"), *rest)

    if chunks is None:
        chunks = num_chunks(*example.targets.shape, vocab_size)
    return chunked_sum(one, head_params(params), hidden, (example.targets, example.weights), chunks)
