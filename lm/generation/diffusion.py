"""Filling in masks in several steps, as a masked-diffusion model writes (MDLM, arXiv 2406.07524, section 4; LLaDA, 2502.09992).

Axes: B batch, T length, V vocabulary.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lm.generation.decoding import check_lengths
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream

Order = Literal["confidence", "entropy", "margin", "random", "left"]


@partial(jax.jit, static_argnames=("model", "steps", "order", "block", "time_steps"))
def fill(
    model: Transformer,
    params: Any,
    stream: TokenStream,
    masked: jax.Array,
    key: jax.Array,
    *,
    steps: int,
    order: Order = "confidence",
    temperature: float | jax.Array = 0.0,
    forbidden: jax.Array | None = None,
    block: int | None = None,
    time_steps: int = 0,
) -> jax.Array:
    """Returns int32 [B, T]: the tokens of the stream, those that are `masked` (bool [B, T]) filled in.

    In each of `steps` steps every mask gets a token, drawn at `temperature` (0: the likeliest), and an equal share of the masks
    keeps it, the others stay masks. Which ones keep it is decided by `order`: those whose token has the highest probability
    (LLaDA's low-confidence remasking), whose distribution has the least entropy, or the largest margin between its first
    and second token (arXiv 2502.06768), random ones, which alone is the process that the loss bounds, or from the left. With
    `block`, masks are filled in blocks of so many from left to right (LLaDA, section 2.4).

    `forbidden`, bool [V]: tokens that are never written. `time_steps` as in `lm.config.MaskedDiffusion`.
    """
    check_lengths(model.config, stream, None, cure="shorten it")
    count = masked.sum(axis=1)  # [B]
    number = jnp.cumsum(masked, axis=1) - 1  # of each mask in its row
    text = jnp.maximum((stream.segments > 0).sum(axis=1) - 1, 1)  # tokens without bos

    def step(carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        (tokens, left), (s, key) = carry, xs
        read = TokenStream(tokens, stream.positions, stream.segments)
        if time_steps:
            share = -(-left.sum(axis=1) * time_steps // text) - 1
            read = replace(read, types=jnp.broadcast_to(jnp.maximum(share, 0)[:, None], tokens.shape))
        logits: Any = model.apply({"params": params}, Example(read, None, None, None))
        logits = logits.astype(jnp.float32)
        logits = logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits)
        draws, ranks = jax.random.split(key)
        heat = jnp.asarray(temperature, jnp.float32)
        drawn = jax.random.categorical(draws, logits / jnp.maximum(heat, 1e-6))
        drawn = jnp.where(heat > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
        score = _score(order, logits, drawn, number, ranks)
        # Sorted by block, then by score; what is not masked comes last.
        place = jnp.zeros_like(number) if block is None else number // block
        sort = jnp.lexsort((-score, jnp.where(left, place, tokens.shape[1])), axis=1)
        rank = jnp.argsort(sort, axis=1)
        keep = count * (steps - 1 - s) // steps  # masks that are left after this step
        chosen = left & (rank < (left.sum(axis=1) - keep)[:, None])
        return (jnp.where(chosen, drawn, tokens), left & ~chosen), None

    xs = (jnp.arange(steps), jax.random.split(key, steps))
    (tokens, _), _ = jax.lax.scan(step, (jnp.asarray(stream.tokens), masked), xs)
    return tokens


def _score(order: Order, logits: jax.Array, drawn: jax.Array, number: jax.Array, key: jax.Array) -> jax.Array:
    """float32 [B, T]: the higher, the sooner a mask keeps its token."""
    if order == "random":
        return jax.random.uniform(key, drawn.shape)
    if order == "left":
        return -number.astype(jnp.float32)
    logp = jax.nn.log_softmax(logits, axis=-1)
    if order == "confidence":
        return jnp.take_along_axis(logp, drawn[..., None], axis=-1)[..., 0]
    if order == "entropy":
        p = jnp.exp(logp)
        return jnp.sum(jnp.where(p > 0, p * logp, 0.0), axis=-1)
    top = jnp.exp(jax.lax.top_k(logp, 2)[0])
    return top[..., 0] - top[..., 1]
