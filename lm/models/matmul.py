"""All matrix products of the models, each in the form that the backend's fast routines accept.

Axes: I inputs, O outputs, M and J rows and columns of a matrix, E groups of rows (experts).
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def _gradient_barrier(x: jax.Array) -> jax.Array:
    """The identity; its gradient is computed before any operation that reads it."""
    return x


def _forward(x: jax.Array) -> tuple[jax.Array, None]:
    return x, None


def _backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    # On a CPU, XLA fuses the preceding operations into the two matmuls of the backward pass and into the bias's sum, and
    # fused matmuls miss the CPU library path. A TPU profits from that fusion. By platform, also when compiling ahead of time.
    return (jax.lax.platform_dependent(gradient, cpu=jax.lax.optimization_barrier, default=lambda g: g),)


_gradient_barrier.defvjp(_forward, _backward)


def affine(x: jax.Array, w: jax.Array, bias: jax.Array | None = None, *, contracted: int = 1) -> jax.Array:
    """Returns x w + bias: x [..., *I], w [*I, *O], bias [*O] -> [..., *O]. I has `contracted` axes.

    x and w have one dtype, which is the result's; bias is float32.

    On one device it is a single product of two matrices, the shape that the CPU library accepts. On a mesh every axis stays
    separate: a sharded batch and a sharded length cannot be merged into one axis, and XLA gathers a kernel that is reshaped.
    The bias is added, and its gradient summed, in float32: bfloat16 sums are inexact, and slow on a CPU.
    """
    lead, outputs = x.shape[: x.ndim - contracted], w.shape[contracted:]
    if jax.sharding.get_abstract_mesh().size > 1:
        contracting = tuple(range(len(lead), x.ndim)), tuple(range(contracted))
        y = jax.lax.dot_general(x, w, (contracting, ((), ())))
    else:
        y = x.reshape(math.prod(lead), -1) @ w.reshape(-1, math.prod(outputs))
        bias = None if bias is None else bias.reshape(-1)
    y = _gradient_barrier(y if bias is None else (y + bias).astype(y.dtype))
    return y.reshape(*lead, *outputs)


FEW_ROWS = 64  # rows of a step that decodes


def affine_transposed(x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Returns x w^T + bias: x [..., I], w [O, I], bias float32 [O] -> [..., O]. `affine` with the matrix as its rows lie.

    For a few rows a CPU multiplies w by x^T. As x w^T, XLA fuses the product with a copy of w^T and with what makes x, which
    is computed again for each output: 15 times as slow for one row (jaxlib 0.12), 1.3 times for sixteen.
    """
    lead = x.shape[:-1]
    if math.prod(lead) > FEW_ROWS or jax.sharding.get_abstract_mesh().size > 1:
        return affine(x, w.T, bias)

    def of_rows(x: jax.Array, w: jax.Array) -> jax.Array:
        return (w @ jax.lax.optimization_barrier(x).T).T

    y = jax.lax.platform_dependent(x.reshape(-1, x.shape[-1]), w, cpu=of_rows, default=lambda x, w: x @ w.T)
    return (y if bias is None else (y + bias).astype(y.dtype)).reshape(*lead, -1)


def batched_matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [..., M, I] @ y [..., I, J] -> [..., M, J], both of one dtype.

    If a matrix is a vector, as when decoding token by token, a CPU multiplies in float32, and a row in bfloat16 with a second
    row of zeros. XLA (jaxlib 0.12) has no bfloat16 product of a vector: it would make a float32 copy of y at each step, and
    with the flags of `lm.startup` it assigns a large one to oneDNN, which does not accept it, so that compilation fails.
    """
    if 1 not in (*x.shape[-2:], y.shape[-1]):
        return x @ y

    def of_vector(x: jax.Array, y: jax.Array) -> jax.Array:
        if x.dtype == jnp.bfloat16 and 1 not in (x.shape[-1], y.shape[-1]):
            return (jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, 1), (0, 0)]) @ y)[..., :1, :]
        return (x.astype(jnp.float32) @ y.astype(jnp.float32)).astype(x.dtype)

    return jax.lax.platform_dependent(x, y, cpu=of_vector, default=jnp.matmul)


BLOCK_ROWS = 64  # rows of a group that a CPU multiplies at once
_BY_GROUP = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=())


@jax.custom_vjp
def grouped_matmul(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiplies consecutive groups of rows by their own matrices: x [M, I], w [E, I, O], sizes int32 [E] -> [M, O].

    On a CPU `jax.lax.ragged_dot` multiplies every row by every matrix; hence the loops of `_grouped_on_cpu`.
    """
    return jax.lax.platform_dependent(x, w, sizes, cpu=_grouped_on_cpu, default=jax.lax.ragged_dot)


def _grouped_forward(x: jax.Array, w: jax.Array, sizes: jax.Array) -> tuple[jax.Array, Any]:
    return grouped_matmul(x, w, sizes), (x, w, sizes)


def _grouped_backward(residuals: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, w, sizes = residuals
    by_group = partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=_BY_GROUP, preferred_element_type=jnp.float32)
    d_w = jax.lax.platform_dependent(x, gradient, sizes, cpu=_transposed_on_cpu, default=by_group)
    return grouped_matmul(gradient, w.swapaxes(1, 2), sizes), d_w.astype(w.dtype), None


grouped_matmul.defvjp(_grouped_forward, _grouped_backward)


def _grouped_on_cpu(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """`grouped_matmul`, one block of rows at a time. Rows that a block writes past the end of its group are overwritten by
    the next groups."""
    rows, ends = min(BLOCK_ROWS, len(x)), jnp.cumsum(sizes)
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


def _transposed_on_cpu(x: jax.Array, y: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns x^T y of each group of rows: x [M, I], y [M, O] -> float32 [E, I, O]."""
    rows, ends = min(BLOCK_ROWS, len(x)), jnp.cumsum(sizes)
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
