"""Positions: sinusoidal vectors, rotations of queries and keys, biases on the attention logits.

Axes: B batch, T query length, S key length, D width, N heads, H head dim.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.errors import UserError
from lm.models.layers import parameter


def learned(model: config.Model, stack: str) -> int | None:
    """How many positions a stack, "encoder" or "decoder", has learned; None if any is as good as another."""
    position = getattr(getattr(model, stack), "position", None)
    return position.max_length if isinstance(position, config.Learned) else None


def check_positions(
    model: config.Model, encoder: int | None, decoder: int | None, *, cure: str, what: str = "a row takes"
) -> None:
    """Raises UserError if `encoder` or `decoder` tokens (None: that stack is not used) exceed the stack's learned positions.

    Beyond its table the model returns NaN. `what` says in the error who needs the positions; `cure` says what to do, with
    "{stack}" for the stack's name.
    """
    for name, needed in (("encoder", encoder), ("decoder", decoder)):
        most = learned(model, name)
        if most is not None and needed is not None and needed > most:
            raise UserError(f"{what} {needed} positions of the {name}, which has learned {most}: " + cure.format(stack=name))


def sinusoidal(positions: jax.Array, width: int) -> jax.Array:
    """int32 [B, T] -> float32 [B, T, D]: sines at even indices, cosines at odd (arXiv 1706.03762, section 3.5)."""
    rates = 10_000.0 ** (-jnp.arange(0, width, 2) / width)
    angles = positions[..., None].astype(jnp.float32) * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, -1)[..., :width]


def rope_frequencies(rope: config.Rope, dim: int) -> np.ndarray:
    """Returns radians per position, float64 [dim / 2]: divided by `factor`, or if `original_length` is set (LLaMA 3.1) only
    the low frequencies."""
    frequencies = rope.theta ** (-np.arange(0, dim, 2) / dim)
    if rope.original_length is None:
        return frequencies / rope.factor
    turns = rope.original_length * frequencies / (2 * math.pi)  # full turns within the original context
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / rope.factor


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, rope: config.Rope) -> jax.Array:
    """Rotates the first `fraction` of the head dim by the position (arXiv 2104.09864, equation 34), in float32; [B, T, N, H]
    in the dtype of x."""
    head_dim = x_BTNH.shape[-1]
    dim = int(head_dim * rope.fraction)
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * rope_frequencies(rope, dim).astype(np.float32)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    # Split before the cast to float32 and join after it: otherwise a TPU holds the complete array in float32.
    x, rest = x_BTNH[..., :dim], x_BTNH[..., dim:]
    halves = (x[..., 0::2], x[..., 1::2]) if rope.interleaved else jnp.split(x, 2, axis=-1)
    a, b = (half.astype(jnp.float32) for half in halves)
    rotated = [y.astype(x.dtype) for y in (a * cos - b * sin, b * cos + a * sin)]
    if rope.interleaved:
        return jnp.concatenate([jnp.stack(rotated, axis=-1).reshape(x.shape), rest], axis=-1)
    return jnp.concatenate([*rotated, rest], axis=-1)


def relative_bucket(distance: jax.Array, buckets: config.Buckets, *, causal: bool) -> jax.Array:
    """Maps distances query - key (int32) to bucket numbers, as T5 does (arXiv 1910.10683, section 2.1).

    Half of the buckets hold one distance each, the rest grow logarithmically up to `max_distance`. Unless `causal`, the
    second half of all buckets is for keys after the query.
    """
    count, offset = buckets.num_buckets, 0
    if causal:
        distance = jnp.maximum(distance, 0)
    else:
        count //= 2
        offset = jnp.where(distance < 0, count, 0)
        distance = jnp.abs(distance)
    exact = count // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(buckets.max_distance / exact)
    far = exact + (ratio * (count - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.clip(far, exact, count - 1))


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns float32 [N]: 2^(-8/N), 2^(-16/N), ... (arXiv 2108.12409). If N is no power of two, those of the power below,
    then every other one of the power above."""

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** int(math.log2(num_heads))
    return np.array((geometric(below) + geometric(2 * below)[0::2])[:num_heads], np.float32)


class PositionBias(nn.Module):
    """Distances query - key (int32 [..., T, S]) -> float32 [..., N, T, S] to add to the attention logits, or None."""

    position: config.Position | None
    num_heads: int
    causal: bool
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, distance: jax.Array) -> jax.Array | None:
        match self.position:
            case config.Buckets() as buckets:
                shape, axes = (buckets.num_buckets, self.num_heads), ("buckets", "heads")
                table = parameter(self, "embedding", nn.initializers.normal(0.02), shape, axes, self.param_dtype)
                bias = jnp.take(table, relative_bucket(distance, buckets, causal=self.causal), axis=0)
                return jnp.moveaxis(bias, -1, -3).astype(jnp.float32)
            case config.Alibi():
                negative = -jnp.abs(distance).astype(jnp.float32)
                return jnp.asarray(alibi_slopes(self.num_heads))[:, None, None] * negative[..., None, :, :]
        return None
