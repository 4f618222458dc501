"""Building blocks: projection, norm, dropout, MLP.

Axes: B batch, T length, D width, F hidden, I a projection's inputs, O its outputs.

Every parameter names its axes where it is made; `lm.sharding` maps the names to mesh axes. Dropout is on exactly if the
caller passes a "dropout" rng, so there is no train flag.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm import config
from lm.models.matmul import affine

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "gelu_quick": lambda x: x * nn.sigmoid(1.702 * x),
    "tanh": jnp.tanh,
}


def parameter(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...], axes: tuple[str, ...], dtype: str
) -> jax.Array:
    """Declares a parameter of `module` with logical axis names, and returns its value."""
    value: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.dtype(dtype))
    return value


class Projection(nn.Module):
    """x [..., *I] -> [..., *O]: contracts the last axes of x with a kernel [*I, *O]."""

    outputs: tuple[int, ...]
    axes: tuple[str, ...]  # logical names of the kernel's axes, inputs first
    bias: bool = False
    std: float | None = None  # of the kernel's initial values; None: fan-in ** -0.5
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[x.ndim - (len(self.axes) - len(self.outputs)) :]
        init = nn.initializers.normal(self.std if self.std is not None else math.prod(inputs) ** -0.5)
        shape = (*inputs, *self.outputs)
        box: Any = self.get_variable("params", "kernel")
        beside = getattr(box, "beside", None)  # of a frozen kernel with an adapter (`lm.models.adapters.Adapted`)
        kernel = parameter(self, "kernel", init, shape, self.axes, self.param_dtype) if beside is None else box.frozen
        bias = None
        if self.bias:
            axes = self.axes[len(inputs) :]
            bias = parameter(self, "bias", nn.initializers.zeros, self.outputs, axes, self.param_dtype)
            bias = bias.astype(jnp.float32)
        y = affine(x.astype(self.dtype), kernel.astype(self.dtype), bias, contracted=len(inputs))
        if beside is None:
            return y
        a, b = (side.astype(self.dtype) for side in beside)
        low = affine(Dropout(box.dropout, name="dropout")(x.astype(self.dtype)), a, contracted=len(inputs))
        return y + (box.factor * affine(low, b)).astype(y.dtype)


class Norm(nn.Module):
    """Layer norm (arXiv 1607.06450) or RMS norm (arXiv 1910.07467) over the last axis, computed in float32."""

    config: config.Norm
    axis: str = "embed"
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, axes = (x.shape[-1],), (self.axis,)
        init = nn.initializers.zeros if self.config.unit_offset else nn.initializers.ones
        scale = parameter(self, "scale", init, shape, axes, self.param_dtype).astype(jnp.float32)
        if self.config.unit_offset:
            scale = 1.0 + scale
        y = x.astype(jnp.float32)
        if self.config.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.eps) * scale
        if self.config.kind == "layer" and self.config.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, shape, axes, self.param_dtype)
            y = y + bias.astype(jnp.float32)
        return y.astype(self.dtype)


class Dropout(nn.Module):
    """Zeroes elements with probability `rate` and scales up the others, if a "dropout" rng was passed."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.rate, deterministic=not self.has_rng("dropout"))(x) if self.rate else x


class Mlp(nn.Module):
    """x [B, T, D] -> act(x W) V, or gated (act(x W) * x U) V (GLU variants, arXiv 2002.05202): [B, T, D].

    `token_mask` is unused: it is here because every kind of feed-forward is called with it.
    """

    config: config.Mlp
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, token_mask: jax.Array | None = None) -> jax.Array:
        c, width = self.config, x.shape[-1]
        options: dict[str, Any] = dict(bias=c.bias, dtype=self.dtype, param_dtype=self.param_dtype)

        def made(name: str) -> jax.Array:
            return checkpoint_name(Projection((c.hidden,), ("embed", "hidden"), std=self.std, name=name, **options)(x), "ffn")

        hidden_BTF = ACTIVATIONS[c.activation](made("up").astype(jnp.float32)).astype(self.dtype)
        if c.gated:
            hidden_BTF = hidden_BTF * made("gate")
        hidden_BTF = nn.with_logical_constraint(hidden_BTF, ("batch", "length", "hidden"))
        hidden_BTF = Dropout(c.dropout)(hidden_BTF)
        return Projection((width,), ("hidden", "embed"), std=self.out_std, name="down", **options)(hidden_BTF)
