"""From hidden vectors to logits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import ACTIVATIONS, Norm, Projection, Table, parameter


class Head(nn.Module):
    """x [..., D] -> logits [..., V] in the computation's dtype; tied heads take the embedding table."""

    config: config.Head
    vocab_size: int
    table_width: int
    std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, table: Table) -> jax.Array:
        c = self.config
        kinds: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if c.transform:
            width = self.table_width if c.tied else x.shape[-1]
            x = Projection((width,), ("embed", "embed_out"), bias=c.transform_bias, std=self.std, name="transform", **kinds)(x)
            x = ACTIVATIONS[c.transform](x)
            x = Norm(c.norm, "embed_out", name="transform_norm", **kinds)(x) if c.norm else x
        if c.tied:
            bias = None
            if c.bias:
                bias = parameter(self, "bias", nn.initializers.zeros, (self.vocab_size,), ("vocab",), self.param_dtype)
                bias = bias.astype(jnp.float32)
            logits = table.attend(x, bias)
        else:
            axis = "vocab" if c.outputs is None else "outputs"
            logits = Projection((c.outputs or self.vocab_size,), ("embed", axis), c.bias, self.std, name="out", **kinds)(x)
        if c.scale is not None:
            logits = logits * c.scale
        if c.softcap is not None:
            logits = c.softcap * jnp.tanh(logits / c.softcap)
        return logits
