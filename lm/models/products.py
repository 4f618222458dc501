"""The one matrix product of the library, in the form that the backend's fast routines take."""

import jax


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


def affine(x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x [M, I], w [I, O] of one dtype, bias [O] in float32 -> [M, O] in the dtype of x.

    The bias is added, and its gradient summed, in float32: bfloat16 sums are inexact, and slow on a CPU.
    """
    y = x @ w
    return _settled(y if bias is None else (y + bias).astype(y.dtype))
