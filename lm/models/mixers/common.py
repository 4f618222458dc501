"""What all recurrent layers share: where a document begins, the state that a cache carries, both directions, a convolution.

Axes: B batch, T length, D width, C channels, W taps of a convolution.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lm.errors import UserError
from lm.models.context import Context
from lm.models.layers import parameter


@struct.dataclass
class Rows:
    """Where documents begin and end in rows that a layer reads in one direction."""

    segments: jax.Array  # int32 [B, T]; 0 is padding
    begins: jax.Array  # bool [B, T]: the first token of a document, whose state begins anew
    token: jax.Array  # bool [B, T]: not padding, which leaves the state as it is
    before: jax.Array  # int32 [B]: the document that the carried state is of; 0: of none
    last: jax.Array  # int32 [B]: index of the last token that is not padding; -1: none

    @classmethod
    def of(cls, segments: jax.Array, before: jax.Array) -> "Rows":
        token = segments > 0
        index = jnp.where(token, jnp.arange(segments.shape[1]), -1)
        latest = jax.lax.cummax(index, axis=1)
        earlier = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        of_earlier = jnp.take_along_axis(segments, jnp.maximum(earlier, 0), axis=1)
        begins = token & (segments != jnp.where(earlier < 0, before[:, None], of_earlier))
        return cls(segments, begins, token, before, latest[:, -1])

    def after(self) -> jax.Array:
        """int32 [B]: the document of the last token."""
        at = jnp.take_along_axis(self.segments, jnp.maximum(self.last, 0)[:, None], axis=1)[:, 0]
        return jnp.where(self.last < 0, self.before, at)


def carries(module: nn.Module) -> bool:
    """Whether the state goes from call to call, in the collection "cache"."""
    return module.is_mutable_collection("cache") and not module.is_initializing()


def carried(module: nn.Module, name: str, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The state [B, ...] of this name after earlier calls; zeros before the first call, and without a cache."""
    zeros = jnp.zeros(shape, dtype)
    return module.get_variable("cache", name, zeros) if carries(module) else zeros


def carry(module: nn.Module, **states: jax.Array) -> None:
    """Keeps states for the next call, if there is a cache."""
    for name, x in states.items() if carries(module) else ():
        module.put_variable("cache", name, x)


class Recurrent(nn.Module):
    """x [B, T, D] through a recurrent layer in each direction of its config, summed: [B, T, D].

    A state begins anew at each document's first token, and padding leaves it as it is. If the collection "cache" is mutable,
    a call goes on from the state after the last token of the call before.
    """

    layer: type[nn.Module]  # layer(config, std, out_std, ...)(x, rows) reads rows from left to right: [B, T, D]
    config: Any
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        mask, direction = context.mask, self.config.direction
        if mask.k_prefix is not None or mask.q_blocks is not None:
            raise UserError(
                "a recurrent layer of a decoder reads from left to right, and here tokens see some that come after them: take "
                "a causal objective, or attention in place of the mixer"
            )
        # Each device computes whole rows: a state goes through all of a row's tokens.
        x = nn.with_logical_constraint(x, ("batch", "keys", "embed_act"))
        before = carried(self, "segment", x.shape[:1], jnp.int32)
        options: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        total: Any = None
        for name in ("forward", "backward") if direction == "both" else (direction,):
            turn = (lambda y: jnp.flip(y, axis=1)) if name == "backward" else (lambda y: y)
            rows = Rows.of(turn(mask.q_segments), before)
            y = turn(self.layer(self.config, self.std, self.out_std, name=name, **options)(turn(x), rows))
            total = y if total is None else total + y
            carry(self, segment=rows.after())
        return nn.with_logical_constraint(total, ("batch", "length", "embed_act"))


class Kernel(nn.Module):
    """A matrix that is read as it is, with the initial values of a `lm.models.layers.Projection`."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    fan_in: int
    std: float | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.normal(self.std if self.std is not None else self.fan_in**-0.5)
        return parameter(self, "kernel", init, self.shape, self.axes, self.param_dtype)


class Convolution(nn.Module):
    """x [B, T, *C] -> [B, T, *C]: each channel's weighted sum over the last `width` tokens of its document, in float32."""

    width: int
    axes: tuple[str, ...]  # logical names of the channels' axes
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, rows: Rows) -> jax.Array:
        channels, past, length = x.shape[2:], self.width - 1, x.shape[1]
        init = nn.initializers.normal(self.width**-0.5)
        taps = parameter(self, "taps", init, (self.width, *channels), ("taps", *self.axes), self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, channels, self.axes, self.param_dtype)
        ones = (1,) * len(channels)
        window = carried(self, "window", (len(x), past, *channels), x.dtype)
        x = jnp.concatenate([window, x], axis=1)
        segments = jnp.concatenate([jnp.repeat(rows.before[:, None], past, axis=1), rows.segments], axis=1)
        y = jnp.broadcast_to(bias.astype(jnp.float32), (len(x), length, *channels))
        for k in range(self.width):
            same = (segments[:, k : k + length] == rows.segments).reshape(len(x), length, *ones)
            y = y + jnp.where(same, x[:, k : k + length], 0) * taps[k].astype(jnp.float32)
        if carries(self):
            at = rows.last[:, None] + 1 + jnp.arange(past)  # the last tokens that are not padding
            same = jnp.take_along_axis(segments, at, axis=1) == rows.after()[:, None]
            kept = jnp.take_along_axis(x, at.reshape(*at.shape, *ones), axis=1)
            carry(self, window=jnp.where(same.reshape(*same.shape, *ones), kept, 0))
        return y
