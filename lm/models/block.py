"""A block: self-attention or a mixer, cross-attention and feed-forward, each with norms and a residual sum.

Axes: B batch, T query length, D width.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from lm import config
from lm.models.attention import Attention
from lm.models.context import Context
from lm.models.layers import Dropout, Mlp, Norm
from lm.models.mixers.common import Recurrent
from lm.models.mixers.convolution import Convolution
from lm.models.mixers.gated_linear import GatedLinear
from lm.models.mixers.lstm import Gru, Lstm
from lm.models.mixers.mamba2 import Mamba2
from lm.models.mixers.tree_lstm import TreeLstm
from lm.models.moe import Moe

# The kinds of feed-forward. Each maps x [B, T, D] and a token mask (bool [B, T], False at padding) to [B, T, D].
FFN: dict[type, Any] = {config.Mlp: Mlp, config.Moe: Moe}

# The kinds of layers in the place of self-attention. Each maps x [B, T, D] and the stack's Context to [B, T, D].
MIXERS: dict[type, Any] = {
    config.Lstm: partial(Recurrent, Lstm),
    config.Gru: partial(Recurrent, Gru),
    config.GatedLinear: partial(Recurrent, GatedLinear),
    config.Mamba2: partial(Recurrent, Mamba2),
    config.Convolution: Convolution,
    config.TreeLstm: TreeLstm,
}


class Block(nn.Module):
    """Self-attention or a mixer, cross-attention if `cross`, feed-forward: each is `y = out_norm(x + res_norm(f(in_norm(x))))`.

    `norm_at` says which of the three norms exist. With `parallel`, the first and the last are one sum.
    """

    config: config.Block
    stack: config.Stack
    model: config.Model

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        c, m = self.config, self.model
        dtypes: dict[str, Any] = dict(dtype=m.dtype, param_dtype=m.param_dtype)
        rope = self.stack.position if isinstance(self.stack.position, config.Rope) else None
        attention = partial(Attention, c.attention, kernel=m.kernel, std=m.init_std, **dtypes)

        def mix(y: jax.Array) -> jax.Array:
            if c.mixer is not None:
                return MIXERS[type(c.mixer)](c.mixer, m.init_std, self.out_std(c.mixer), name="mixer", **dtypes)(y, context)
            attend = attention(rope=rope, out_std=self.out_std(c.attention), name="attention")
            return attend(y, mask=context.mask, positions=context.positions, bias=context.bias)

        def feed(y: jax.Array) -> jax.Array:
            ffn = FFN[type(c.ffn)](c.ffn, m.init_std, self.out_std(c.ffn), name="ffn", **dtypes)
            return ffn(y, token_mask=context.mask.q_segments > 0)

        def norm(at: str, name: str, y: jax.Array) -> jax.Array:
            absent = name in c.bare or at not in c.norm_at
            return y if absent else Norm(c.norm, name=f"{name}_{at}_norm", **dtypes)(y)

        def add(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
            y = Dropout(c.dropout)(norm("res", name, y))
            x = norm("out", name, x + (y if c.scale == 1.0 else c.scale * y))
            return nn.with_logical_constraint(x, ("batch", "length", "embed_act"))

        def residual(name: str, f, x: jax.Array) -> jax.Array:
            return add(name, x, f(norm("in", name, x)))

        mixing = "attention" if c.mixer is None else "mixer"
        if c.parallel == "shared":
            return residual("block", lambda y: mix(y) + feed(y), x)
        if c.parallel == "separate":
            return add("block", x, mix(norm("in", mixing, x)) + feed(norm("in", "ffn", x)))
        if c.attention is not None or c.mixer is not None:
            x = residual(mixing, mix, x)
        if c.cross and context.cross_mask is not None:  # shared layers also serve as the encoder, which has no source
            cross = attention(out_std=self.out_std(c.attention), name="cross")
            x = residual("cross", lambda y: cross(y, mask=context.cross_mask, source=context.encoded, cross=True), x)
        return x if c.ffn is None else residual("ffn", feed, x)

    def out_std(self, child: Any) -> float | None:
        """Returns the initial std of the projection into the residual stream, which is divided by sqrt(2 * layers) if no norm
        follows the sum (GPT-2, section 2.3)."""
        if "in" not in self.config.norm_at:
            return self.model.init_std
        child = child.expert if isinstance(child, config.Moe) else child
        size = child.hidden if isinstance(child, config.Mlp) else child.size(self.model.width)
        fan_in = child.num_heads * size if isinstance(child, config.Attention) else size
        std = self.model.init_std if self.model.init_std is not None else fan_in**-0.5
        return std * (2 * self.stack.num_layers) ** -0.5
