"""Heads for the tokens after the next one: multi-token prediction.

Axes: B batch, T length, D width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.models.layers import Norm, Projection
from lm.models.mask import Mask
from lm.models.transformer import Context, Stack
from lm.types import TokenStream


def one_layer(model: config.Model) -> config.Stack:
    """The stack of a head: a layer like the decoder's last."""
    stack = model.decoder
    assert stack is not None
    return dataclasses.replace(stack, num_layers=1, blocks={"L": stack.blocks[stack.letters()[-1]]}, pattern="L", scan=False)


class Future(nn.Module):
    """From the decoder's hidden vectors, which predict the next token, those that predict the `heads` tokens after it.

    In parallel, each head is a layer on the decoder's output (arXiv 2404.19737, section 2). In sequence, each reads the one
    before and the embedding of the token that this one predicts (DeepSeek-V3, arXiv 2412.19437, section 2.2).
    """

    model: config.Model
    heads: int
    sequential: bool

    @nn.compact
    def __call__(self, hidden: jax.Array, stream: TokenStream, embedded: jax.Array) -> list[jax.Array]:
        """hidden and embedded [B, T, D], the latter of the tokens in `stream` -> [B, T, D] for each head."""
        m = self.model
        dtypes: dict[str, Any] = dict(dtype=m.dtype, param_dtype=m.param_dtype)
        stack = one_layer(m)
        context = Context(Mask(stream.segments, stream.segments, causal=True), stream.positions)
        found = []
        for k in range(1, self.heads + 1):
            x = hidden
            if self.sequential:
                last = found[-1] if found else hidden
                seen = jnp.roll(embedded, -k, axis=1)  # of the token k places ahead; past the end it has no loss
                parts = [
                    Norm(stack.blocks["L"].norm, name=f"{name}_norm_{k}", **dtypes)(y)
                    for name, y in (("hidden", last), ("token", seen))
                ]
                both = jnp.concatenate(parts, axis=-1)
                x = Projection((m.width,), ("embed_in", "embed"), False, m.init_std, name=f"join_{k}", **dtypes)(both)
            found.append(Stack(stack, m, causal=True, name=f"head_{k}")(x, context))
        return found
