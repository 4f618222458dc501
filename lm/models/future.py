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

    def setup(self) -> None:
        m = self.model
        dtypes: dict[str, Any] = dict(dtype=m.dtype, param_dtype=m.param_dtype)
        stack, numbers = one_layer(m), range(1, self.heads + 1)
        self.layers = [Stack(stack, m, causal=True, name=f"head_{k}") for k in numbers]
        if self.sequential:
            norm = lambda name: [Norm(stack.blocks["L"].norm, name=f"{name}_norm_{k}", **dtypes) for k in numbers]
            axes = ("embed_in", "embed")
            self.hidden_norms, self.token_norms = norm("hidden"), norm("token")
            self.joins = [Projection((m.width,), axes, False, m.init_std, name=f"join_{k}", **dtypes) for k in numbers]

    def __call__(self, hidden: jax.Array, stream: TokenStream, embedded: jax.Array) -> list[jax.Array]:
        """hidden and embedded [B, T, D], the latter of the tokens in `stream` -> [B, T, D] for each head."""
        context = Context(Mask(stream.segments, stream.segments, causal=True), stream.positions)
        found: list[jax.Array] = []
        for k in range(1, self.heads + 1):
            seen = jnp.roll(embedded, -k, axis=1)  # of the token k places ahead; past the end it has no loss
            found.append(self.head(k, found[-1] if found and self.sequential else hidden, seen, context))
        return found

    def head(self, k: int, hidden: jax.Array, seen: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] of head k >= 1. In parallel `hidden` is the decoder's; in sequence it is that of the head before (the
        decoder's for the first), and `seen` has the embeddings of the tokens k places ahead."""
        x = hidden
        if self.sequential:
            both = jnp.concatenate([self.hidden_norms[k - 1](hidden), self.token_norms[k - 1](seen)], axis=-1)
            x = self.joins[k - 1](both)
        return self.layers[k - 1](x, context)
