"""The head: hidden vectors -> logits. Axes: D width, V vocabulary (or the head's own number of outputs)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.embedding import Table
from lm.models.layers import ACTIVATIONS, Norm, Projection, parameter


class Head(nn.Module):
    """x [..., D] -> logits [..., V] in the dtype of the computation. A tied head multiplies by the token table."""

    config: config.Head
    vocab_size: int
    table_width: int
    std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, table: Table | None) -> jax.Array:
        c = self.config
        dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if c.transform:
            width = self.table_width if c.tied else x.shape[-1]
            x = Projection((width,), ("embed", "embed_out"), bias=c.transform_bias, std=self.std, name="transform", **dtypes)(x)
            x = ACTIVATIONS[c.transform](x)
            x = Norm(c.norm, "embed_out", name="transform_norm", **dtypes)(x) if c.norm else x
        if c.tied:
            bias = None
            if c.bias:
                bias = parameter(self, "bias", nn.initializers.zeros, (self.vocab_size,), ("vocab",), self.param_dtype)
                bias = bias.astype(jnp.float32)
            assert table is not None, "a tied head needs the table of tokens"
            logits = table.attend(x, bias)
        else:
            axis = "vocab" if c.outputs is None else "outputs"
            logits = Projection((c.outputs or self.vocab_size,), ("embed", axis), c.bias, self.std, name="out", **dtypes)(x)
        if c.scale is not None:
            logits = logits * c.scale
        if c.softcap is not None:
            logits = c.softcap * jnp.tanh(logits / c.softcap)
        return logits
