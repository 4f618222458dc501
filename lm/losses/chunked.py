"""Functions of logits, evaluated a chunk of tokens at a time, so that no [B, P, V] array ever exists.

`chunked_sum` returns a sum over tokens and forms its gradient in the forward pass, so that each chunk's logits are computed
once. `chunked_map` returns values for each token. Their cotangents are not known in the forward pass, so the backward pass
computes the logits again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lm.sharding import REPLICATED, TOKEN_SHARDED, psum_tokens, shard_map_tokens, shards

Apply = Callable[..., Any]  # a Flax module's `apply(variables, *args, method=..., rngs=...)`
CHUNK_BYTES = 2**28  # of float32 logits that may live at once on a device, by default


def chunked_sum(
    fn: Callable[..., tuple[jax.Array, Any]], params: Any, hidden: jax.Array, rest: Any, chunks: int
) -> tuple[jax.Array, Any]:
    """Returns the summed scalars and the concatenated arrays of `fn(params, hidden_chunk, rest_chunk)`, which gives a scalar
    and arrays [B, n, ...] for each chunk.

    Splits tokens (axis 1 of `hidden` and `rest`) strided over `chunks`, so each chunk stays evenly sharded. The gradient is
    formed in the forward pass, so that no chunk is computed twice. Each device works on its own tokens with all of `params`,
    and the gradient of `params` is reduced over devices once, in the dtype of `hidden`, however many chunks there are.

    Only the sum is differentiable, and only in `params` and `hidden`. A gradient through the arrays, or with respect to `rest`,
    raises TypeError while it is traced.
    """

    @jax.custom_vjp
    def total(params: Any, hidden: jax.Array, rest: Any) -> tuple[jax.Array, Any]:
        def own(params: Any, hidden: jax.Array, rest: Any) -> tuple[jax.Array, Any]:
            parts, also = jax.lax.map(lambda xs: fn(params, *xs), _cut((hidden, rest), chunks))
            return psum_tokens(jnp.sum(parts, axis=0)), _join(also)

        return shard_map_tokens(own, (REPLICATED, TOKEN_SHARDED, TOKEN_SHARDED), (REPLICATED, TOKEN_SHARDED))(
            _cast(params, hidden.dtype), hidden, rest
        )

    def forward(*primals: Any) -> tuple[Any, Any]:
        params, hidden, rest = _values(primals)
        gradient = jax.value_and_grad(fn, argnums=(0, 1), has_aux=True)

        def own(params: Any, hidden: jax.Array, rest: Any) -> tuple[Any, Any]:
            def step(carry: Any, xs: Any) -> tuple[Any, Any]:
                (value, also), (d_params, d_hidden) = gradient(params, *xs)
                return jax.tree.map(jnp.add, carry, (value, d_params)), (also, d_hidden)

            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (jnp.zeros(()), params))
            (value, d_params), by_chunk = jax.lax.scan(step, zero, _cut((hidden, rest), chunks))
            also, d_hidden = _join(by_chunk)
            return (psum_tokens(value), also), (jax.tree.map(psum_tokens, _cast(d_params, hidden.dtype)), d_hidden)

        value, gradients = shard_map_tokens(
            own, (REPLICATED, TOKEN_SHARDED, TOKEN_SHARDED), ((REPLICATED, TOKEN_SHARDED), (REPLICATED, TOKEN_SHARDED))
        )(_cast(params, hidden.dtype), hidden, rest)
        # Keeps XLA from delaying the head-gradient reduction past the backward pass.
        d_params, d_hidden = jax.lax.optimization_barrier(gradients)
        return value, (jax.tree.map(lambda g, x: g.astype(x.dtype), d_params, params), d_hidden)

    def backward(gradients: Any, cotangents: Any) -> Any:
        scale, also = cotangents
        if not all(map(_is_zero, jax.tree.leaves(also))):
            raise TypeError(
                "chunked_sum has a gradient only through its sum, not through the arrays beside it: use chunked_map, or put "
                "jax.lax.stop_gradient around the arrays"
            )
        if isinstance(scale, SymbolicZero):
            return *jax.tree.map(jnp.zeros_like, gradients), None
        return *jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients), None

    total.defvjp(forward, backward, symbolic_zeros=True)
    return total(params, hidden, rest)


def chunked_map(fn: Callable[..., Any], params: Any, hidden: jax.Array, rest: Any, chunks: int) -> Any:
    """Returns the concatenated arrays of `fn(params, hidden_chunk, rest_chunk)`, which are [B, n, ...] for each chunk.

    Chunks and devices as in `chunked_sum`. Floating-point results are differentiable in `params` and `hidden`: the backward
    pass is `chunked_sum`, of the results times their cotangents, and calls `fn` on each chunk again. A gradient with respect to
    `rest` raises TypeError while it is traced.
    """

    @jax.custom_vjp
    def each(params: Any, hidden: jax.Array, rest: Any) -> Any:
        def own(params: Any, hidden: jax.Array, rest: Any) -> Any:
            return _join(jax.lax.map(lambda xs: fn(params, *xs), _cut((hidden, rest), chunks)))

        return shard_map_tokens(own, (REPLICATED, TOKEN_SHARDED, TOKEN_SHARDED), TOKEN_SHARDED)(
            _cast(params, hidden.dtype), hidden, rest
        )

    def forward(*primals: Any) -> tuple[Any, Any]:
        values = _values(primals)
        return each(*values), values

    def backward(values: Any, cotangents: Any) -> Any:
        given = jax.tree.leaves(cotangents)
        used = [i for i, g in enumerate(given) if not _is_zero(g)]

        def weighted(params: Any, hidden: jax.Array, xs: Any) -> tuple[jax.Array, None]:
            results = jax.tree.leaves(fn(params, hidden, xs[0]))
            return sum((jnp.sum(results[i] * g) for i, g in zip(used, xs[1], strict=True)), jnp.zeros(())), None

        params, hidden, rest = values
        total = lambda params, hidden: chunked_sum(weighted, params, hidden, (rest, [given[i] for i in used]), chunks)[0]
        return *jax.grad(total, argnums=(0, 1))(params, hidden), None

    each.defvjp(forward, backward, symbolic_zeros=True)
    return each(params, hidden, rest)


def _values(primals: Any) -> Any:
    """(params, hidden, rest) of what a forward rule is given; refuses a `rest` that depends on what is differentiated."""
    if any(leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.inexact) for leaf in jax.tree.leaves(primals[2])):
        raise TypeError(
            "a function of chunked logits has a gradient only with respect to `params` and `hidden`, not to `rest` (targets, "
            "weights): put jax.lax.stop_gradient around it"
        )
    return jax.tree.map(lambda leaf: leaf.value, primals)


def _is_zero(cotangent: Any) -> bool:
    return isinstance(cotangent, SymbolicZero) or cotangent.dtype == jax.dtypes.float0


def _cut(tree: Any, chunks: int) -> Any:
    """Arrays [B, T, ...] -> [chunks, B, T / chunks, ...]: token t goes to chunk t % chunks."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, chunks, *x.shape[2:]), 2, 0), tree)


def _join(tree: Any) -> Any:
    """The inverse of `_cut`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1, *x.shape[3:]), tree)


def _cast(params: Any, dtype: Any) -> Any:
    """Matrices in `dtype`, in which they are multiplied and their gradients are reduced; vectors as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params)


def num_chunks(batch: int, length: int, vocab: int) -> int:
    """The fewest equal parts of a row of `length` tokens that keep a part's float32 logits, spread over all devices, below
    CHUNK_BYTES."""
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    least = -(-batch * length * vocab * 4 // (CHUNK_BYTES * devices))
    if length % shards("length") == 0:
        length //= shards("length")  # the part of a device
    return next(n for n in range(max(1, least), length + 1) if length % n == 0) if least < length else length


def over_logits(
    chunked: Callable[..., Any],
    fn: Callable[..., Any],
    head: Any,
    apply: Apply,
    hidden: jax.Array,
    rest: tuple[jax.Array, ...],
    outputs: int,
    chunks: int | None = None,
) -> Any:
    """`chunked_sum` or `chunked_map` (the first argument) of `fn(logits, *rest)`.

    `hidden` is [B, P, D] and `rest` are arrays [B, P, ...]. `head` are the parameters that `apply(..., method="logits")` reads;
    it gives `outputs` logits for each token. `chunks` is by default `num_chunks`.
    """

    def part(head: Any, hidden: jax.Array, rest: tuple[jax.Array, ...]) -> Any:
        return fn(apply({"params": head}, hidden, method="logits"), *rest)

    return chunked(part, head, hidden, rest, chunks or num_chunks(*hidden.shape[:2], outputs))
