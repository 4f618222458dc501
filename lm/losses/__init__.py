"""Losses: (params, apply, Example) -> WeightedMean. They know no model; `apply(params, *args, method=...)` is given.

Cross-entropy forms its gradient in the forward pass, chunk by chunk over the places of a row, so that the logits of a
chunk are all that ever lives of the [B, P, V] array, and no chunk is computed twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.sharding import REPLICATED, TOKEN_SHARDED, psum_tokens, shard_map_tokens, shards
from lm.types import Example, WeightedMean

Apply = Callable[..., Any]
CHUNK_BYTES = 2**28  # of float32 logits that may live at once on a device, by default


def token_losses(logits: jax.Array, targets: jax.Array, z_loss: float = 0.0) -> jax.Array:
    """-log softmax(logits)[target] + z_loss * log(Z)^2, float32, over the last axis of logits [..., V]."""
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - chosen + z_loss * log_z**2


def chunked_sum(
    fn: Callable[..., tuple[jax.Array, Any]], params: Any, hidden: jax.Array, rest: Any, chunks: int
) -> tuple[jax.Array, Any]:
    """Returns the summed scalars and the concatenated arrays of `fn(params, hidden_chunk, rest_chunk)`, which gives a scalar
    and arrays [B, n, ...] for each chunk.

    Splits tokens (axis 1 of `hidden` and `rest`) strided over `chunks`, so each chunk stays evenly sharded. The sum is
    differentiable in `params` and `hidden`; everything else is constant. The gradient is formed in the forward pass, so that
    no chunk is computed twice. Each device works on its own tokens with all of `params`, and the gradient of `params` is
    reduced over devices once, in the dtype of `hidden`, however many chunks there are.
    """
    like = lambda x, dtype: x.astype(dtype) if x.ndim > 1 else x

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunks, *x.shape[2:]), 2, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1, *x.shape[3:])

    @jax.custom_vjp
    def total(params: Any, hidden: jax.Array, rest: Any) -> tuple[jax.Array, Any]:
        def own(params: Any, hidden: jax.Array, rest: Any) -> tuple[jax.Array, Any]:
            parts, also = jax.lax.map(lambda xs: fn(params, *xs), (cut(hidden), jax.tree.map(cut, rest)))
            return psum_tokens(jnp.sum(parts, axis=0)), jax.tree.map(join, also)

        params = jax.tree.map(lambda x: like(x, hidden.dtype), params)
        return shard_map_tokens(own, (REPLICATED, TOKEN_SHARDED, TOKEN_SHARDED), (REPLICATED, TOKEN_SHARDED))(
            params, hidden, rest
        )

    def forward(params: Any, hidden: jax.Array, rest: Any) -> tuple[Any, Any]:
        gradient = jax.value_and_grad(fn, argnums=(0, 1), has_aux=True)

        def own(params: Any, hidden: jax.Array, rest: Any) -> tuple[Any, Any]:
            def step(carry: Any, xs: Any) -> tuple[Any, Any]:
                (value, also), (d_params, d_hidden) = gradient(params, *xs)
                return jax.tree.map(jnp.add, carry, (value, d_params)), (also, d_hidden)

            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (jnp.zeros(()), params))
            (value, d_params), whole = jax.lax.scan(step, zero, (cut(hidden), jax.tree.map(cut, rest)))
            also, d_hidden = jax.tree.map(join, whole)
            return (psum_tokens(value), also), (jax.tree.map(lambda g: psum_tokens(like(g, hidden.dtype)), d_params), d_hidden)

        whole = jax.tree.map(lambda x: like(x, hidden.dtype), params)
        value, gradients = shard_map_tokens(
            own, (REPLICATED, TOKEN_SHARDED, TOKEN_SHARDED), ((REPLICATED, TOKEN_SHARDED), (REPLICATED, TOKEN_SHARDED))
        )(whole, hidden, rest)
        # Keeps XLA from delaying the head-gradient reduction past the backward pass.
        d_params, d_hidden = jax.lax.optimization_barrier(gradients)
        return value, (jax.tree.map(lambda g, x: g.astype(x.dtype), d_params, params), d_hidden)

    def backward(gradients: Any, cotangents: Any) -> Any:
        return *jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradients), None

    total.defvjp(forward, backward)
    return total(params, hidden, rest)


def num_chunks(batch: int, places: int, vocab: int) -> int:
    """The fewest equal cuts of a row's places that keep the float32 logits, spread over all devices, small enough."""
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    least = -(-batch * places * vocab * 4 // (CHUNK_BYTES * devices))
    if places % shards("length") == 0:
        places //= shards("length")  # of a device
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

    What the model itself sows in "losses" (a router's, see `lm.models.moe`) is added to the mean over tokens, so it enters the
    sum times the weight. Of several microbatches each counts by its weight.

    `head_params` selects what `apply(..., method="logits")` reads, so that only its gradient is carried through chunks.
    """

    def part(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, None]:
        return jnp.sum(weights * token_losses(logits, targets, z_loss)), None

    hidden, sown = apply({"params": params}, example, method="hidden", rngs=rngs, mutable=["losses"])
    over = (example.targets, example.weights)
    total, _ = over_logits(part, head_params(params), apply, hidden, over, vocab_size, chunks)
    weight = jnp.sum(example.weights)
    return WeightedMean(sum((jnp.sum(extra) * weight for extra in jax.tree.leaves(sown)), total), weight)


def scores(
    params: Any, apply: Apply, example: Example, *, head_params: Callable[[Any], Any], vocab_size: int
) -> dict[str, WeightedMean]:
    """For evaluation: `loss` in nats (no z-loss) and `accuracy` of the likeliest token, over the weighted places."""

    def part(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, None]:
        right = jnp.argmax(logits, axis=-1) == targets
        return jnp.stack([jnp.sum(weights * token_losses(logits, targets)), jnp.sum(weights * right)]), None

    hidden = apply({"params": params}, example, method="hidden")
    over = (example.targets, example.weights)
    (loss, right), _ = over_logits(part, head_params(params), apply, hidden, over, vocab_size)
    weight = jnp.sum(example.weights)
    return {"loss": WeightedMean(loss, weight), "accuracy": WeightedMean(right, weight)}


def over_logits(
    part: Callable[..., tuple[jax.Array, Any]],
    head: Any,
    apply: Apply,
    hidden: jax.Array,
    over: tuple[jax.Array, ...],
    outputs: int,
    chunks: int | None = None,
) -> tuple[jax.Array, Any]:
    """`chunked_sum` of `part(logits, *over)`: `over` are [B, P], as many places as `hidden` has, of `outputs` logits each."""

    def one(head: Any, h: jax.Array, over: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        return part(apply({"params": head}, h, method="logits"), *over)

    if chunks is None:
        chunks = num_chunks(*hidden.shape[:2], outputs)
    return chunked_sum(one, head, hidden, over, chunks)
