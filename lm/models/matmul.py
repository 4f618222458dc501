"""The matrix products of the library, plain and by groups of rows, in the form that the backend's fast routines take."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def _settled(x: jax.Array) -> jax.Array:
    """The identity, whose gradient is finished before anything reads it."""
    return x


def _forward(x: jax.Array) -> tuple[jax.Array, None]:
    return x, None


def _backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    # On a CPU, XLA otherwise fuses what precedes into the two products of the backward pass and into the bias's sum, and
    # fused they are none that a library takes. A TPU wants that very fusion: by platform, also when compiling ahead of time.
    return (jax.lax.platform_dependent(gradient, cpu=jax.lax.optimization_barrier, default=lambda g: g),)


_settled.defvjp(_forward, _backward)


def affine(x: jax.Array, w: jax.Array, bias: jax.Array | None = None, *, contracted: int = 1) -> jax.Array:
    """x [..., *I], w [*I, *O] of one dtype, bias [*O] in float32 -> [..., *O] in the dtype of x; I has `contracted` axes.

    On one device a single product of two matrices, the shape that a CPU's library takes. On several every axis stays by
    itself: rows and places that are both spread cannot become one axis, and of a kernel in another shape than it has, XLA
    gathers both. The bias is added, and its gradient summed, in float32: bfloat16 sums are inexact, and slow on a CPU.
    """
    lead, outputs = x.shape[: x.ndim - contracted], w.shape[contracted:]
    if jax.sharding.get_abstract_mesh().size > 1:
        over = tuple(range(len(lead), x.ndim)), tuple(range(contracted))
        y = jax.lax.dot_general(x, w, (over, ((), ())))
    else:
        y = x.reshape(math.prod(lead), -1) @ w.reshape(-1, math.prod(outputs))
        bias = None if bias is None else bias.reshape(-1)
    y = _settled(y if bias is None else (y + bias).astype(y.dtype))
    return y.reshape(*lead, *outputs)


def batched(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [..., M, I] and y [..., I, J] of one dtype -> [..., M, J]: a product of two matrices for each of the leading axes.

    A CPU multiplies in float32 where one of the matrices is a vector, as when decoding token by token. With the flags of
    `lm.startup`, XLA (jaxlib 0.12) keeps a large product in bfloat16 for oneDNN, then drops the axis of size 1; what is left
    is no product that oneDNN takes, XLA itself has none for bfloat16, and compilation fails.
    """
    if 1 not in (*x.shape[-2:], y.shape[-1]):
        return x @ y
    wide = lambda x, y: (x.astype(jnp.float32) @ y.astype(jnp.float32)).astype(x.dtype)
    return jax.lax.platform_dependent(x, y, cpu=wide, default=jnp.matmul)


BLOCK = 64  # rows of a group that a CPU multiplies at once
_BY_GROUP = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=())


@jax.custom_vjp
def grouped(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """x [M, I] is E groups of `sizes` [E] rows, one behind the other; each times its own matrix of w [E, I, O]: [M, O].

    On a CPU `jax.lax.ragged_dot` multiplies every row by every matrix, therefore the loops.
    """
    return jax.lax.platform_dependent(x, w, sizes, cpu=_grouped, default=jax.lax.ragged_dot)


def _grouped_forward(x: jax.Array, w: jax.Array, sizes: jax.Array) -> tuple[jax.Array, Any]:
    return grouped(x, w, sizes), (x, w, sizes)


def _grouped_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, w, sizes = kept
    by_group = partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=_BY_GROUP, preferred_element_type=jnp.float32)
    d_w = jax.lax.platform_dependent(x, gradient, sizes, cpu=_products_by_group, default=by_group)
    return grouped(gradient, w.swapaxes(1, 2), sizes), d_w.astype(w.dtype), None


grouped.defvjp(_grouped_forward, _grouped_backward)


def _grouped(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """`grouped`, a block of rows at a time. What a block writes behind the end of its group, the next groups overwrite."""
    rows, ends = min(BLOCK, len(x)), jnp.cumsum(sizes)
    padded = jnp.pad(x, ((0, rows), (0, 0)))

    def group(y: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
        matrix, start, end = inputs

        def block(carry: Any) -> Any:
            at, y = carry
            part = jax.lax.dynamic_slice_in_dim(padded, at, rows) @ matrix
            return at + rows, jax.lax.dynamic_update_slice_in_dim(y, part, at, 0)

        return jax.lax.while_loop(lambda carry: carry[0] < end, block, (start, y))[1], None

    y = jnp.zeros((len(padded), w.shape[2]), x.dtype)
    return jax.lax.scan(group, y, (w, ends - sizes, ends))[0][: len(x)]


def _products_by_group(x: jax.Array, y: jax.Array, sizes: jax.Array) -> jax.Array:
    """x [M, I], y [M, O] -> x^T y of each group of rows: [E, I, O], float32."""
    rows, ends = min(BLOCK, len(x)), jnp.cumsum(sizes)
    x, y = (jnp.pad(v, ((0, rows), (0, 0))) for v in (x, y))

    def group(span: Any) -> jax.Array:
        start, end = span

        def block(carry: Any) -> Any:
            at, total = carry
            part_x, part_y = (jax.lax.dynamic_slice_in_dim(v, at, rows) for v in (x, y))
            part_y = jnp.where((at + jnp.arange(rows) < end)[:, None], part_y, 0)
            return at + rows, total + jnp.matmul(part_x.T, part_y, preferred_element_type=jnp.float32)

        zero = jnp.zeros((x.shape[1], y.shape[1]), jnp.float32)
        return jax.lax.while_loop(lambda carry: carry[0] < end, block, (start, zero))[1]

    return jax.lax.map(group, (ends - sizes, ends))
