"""Filling in masks in several steps, as a masked-diffusion model writes (MDLM, arXiv 2406.07524; LLaDA, 2502.09992).

Axes: B batch, T length, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.objectives.masked_diffusion import time_step
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
    `block`, masks are filled in blocks of so many from left to right (LLaDA).

    `forbidden`, bool [V]: tokens that are never written. `time_steps` as in `lm.config.MaskedDiffusion`.
    """
    size = stream.tokens.shape[1]
    check_positions(model.config, *((size, None) if model.config.encoder else (None, size)), cure="shorten it")
    text = jnp.maximum((stream.segments > 0).sum(axis=1) - 1, 1)  # tokens without bos

    def logits(tokens: jax.Array, left: jax.Array) -> jax.Array:
        read = TokenStream(tokens, stream.positions, stream.segments)
        if time_steps:
            step = time_step(left.sum(axis=1), text, time_steps)
            read = replace(read, types=jnp.broadcast_to(step[:, None], tokens.shape))
        if model.config.encoder is None:  # predicts each token one place before it (`lm.objectives.masked_diffusion.decoder`)
            read = replace(read, prefix=stream.segments > 0)
            found: Any = model.apply({"params": params}, Example(None, read, None, None))
            return jnp.roll(found, 1, axis=1)
        of_encoder: Any = model.apply({"params": params}, Example(read, None, None, None))
        return of_encoder

    settings: dict[str, Any] = dict(steps=steps, order=order, temperature=temperature, forbidden=forbidden, block=block)
    return _filled(logits, jnp.asarray(stream.tokens), masked, key, **settings)


def _filled(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    tokens: jax.Array,
    masked: jax.Array,
    key: jax.Array,
    *,
    steps: int,
    order: Order,
    temperature: float | jax.Array,
    forbidden: jax.Array | None,
    block: int | None = None,
) -> jax.Array:
    """`fill`, where `predict(tokens, masks)` gives the logits [B, T, V]."""
    count = masked.sum(axis=1)  # [B]
    number = jnp.cumsum(masked, axis=1) - 1  # of each mask in its row
    place = jnp.zeros_like(number) if block is None else number // block
    heat = jnp.asarray(temperature, jnp.float32)

    def step(carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        (tokens, left), (s, key) = carry, xs
        logits = predict(tokens, left).astype(jnp.float32)
        logits = logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits)
        draws, ranks = jax.random.split(key)
        drawn = jax.random.categorical(draws, logits / jnp.maximum(heat, 1e-6))
        drawn = jnp.where(heat > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
        score = _score(order, logits, drawn, number, ranks)
        # Sorted by block, then by score; what is not masked comes last.
        sort = jnp.lexsort((-score, jnp.where(left, place, tokens.shape[1])), axis=1)
        rank = jnp.argsort(sort, axis=1)
        keep = count * (steps - 1 - s) // steps  # masks that are left after this step
        chosen = left & (rank < (left.sum(axis=1) - keep)[:, None])
        return (jnp.where(chosen, drawn, tokens), left & ~chosen), None

    (tokens, _), _ = jax.lax.scan(step, (tokens, masked), (jnp.arange(steps), jax.random.split(key, steps)))
    return tokens


def write_blocks(
    model: Transformer,
    params: Any,
    prompt: np.ndarray,
    key: jax.Array,
    *,
    new_tokens: int,
    block: int,
    mask_id: int,
    eos_id: int,
    steps: int | None = None,
    order: Order = "confidence",
    temperature: float = 0.0,
    forbidden: jax.Array | None = None,
) -> np.ndarray:
    """int32 [new_tokens]: what a model of block diffusion writes after the prompt (int32 [n]); all `eos_id` after the first.

    Each block is filled in `steps` steps (None: one a token) as by `fill`. Keys and values of the text are kept, those of masks
    are not: a finished block goes through the model once more.
    """
    total = len(prompt) + new_tokens
    check_positions(model.config, None, total, cure="shorten the prompt, or ask for fewer new tokens", what="the prompt takes")
    known = len(prompt) // block * block
    cache: Any = {}
    settings: dict[str, Any] = dict(block=block, length=-(-total // block) * block)
    if known:
        cache = _read(model, params, cache, jnp.asarray(prompt[None, :known]), jnp.asarray(0), **settings)
    text = list(prompt[:known])
    for first in range(known, total, block):
        given = prompt[first : first + block]
        size = min(block, total - first)
        tokens = jnp.asarray(np.concatenate([given, np.full(size - len(given), mask_id)])[None], jnp.int32)
        masked, key = jnp.arange(size)[None] >= len(given), jax.random.fold_in(key, first)
        how: dict[str, Any] = dict(steps=steps or block, order=order, temperature=temperature, forbidden=forbidden)
        done = _fill_block(model, params, cache, tokens, masked, jnp.asarray(first), key, **how, **settings)
        text += np.asarray(done)[0].tolist()
        if eos_id in text[len(prompt) :]:
            break
        if first + size < total:
            cache = _read(model, params, cache, done, jnp.asarray(first), **settings)
    new = np.array(text[len(prompt) :], np.int32)
    end = np.flatnonzero(new == eos_id)
    new = new[: end[0]] if len(end) else new
    return np.append(new, np.full(new_tokens - len(new), eos_id, np.int32))


def _stream(tokens: jax.Array, first: jax.Array, block: int, text: bool) -> TokenStream:
    positions = first + jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return TokenStream(tokens, positions, jnp.ones_like(tokens), blocks=2 * (positions // block) + text)


@partial(jax.jit, static_argnames=("model", "block", "length"))
def _read(model: Transformer, params: Any, cache: Any, tokens: jax.Array, first: jax.Array, *, block: int, length: int) -> Any:
    """The cache with the keys and values of these tokens of the text, the first of which has index `first`."""
    read = _stream(tokens, first, block, True)
    return model.apply({"params": params} | cache, read, cache_length=length, method="decode", mutable=["cache"])[1]


@partial(jax.jit, static_argnames=("model", "block", "length", "steps", "order"))
def _fill_block(
    model: Transformer,
    params: Any,
    cache: Any,
    tokens: jax.Array,
    masked: jax.Array,
    first: jax.Array,
    key: jax.Array,
    *,
    block: int,
    length: int,
    **how: Any,
) -> jax.Array:
    """int32 [B, T]: the block with its masks filled in, given the text whose keys and values are in the cache."""

    def predict(tokens: jax.Array, left: jax.Array) -> jax.Array:
        read, variables = _stream(tokens, first, block, False), {"params": params}
        hidden, _ = model.apply(variables | cache, read, cache_length=length, method="decode", mutable=["cache"])
        logits: Any = model.apply(variables, hidden, method="logits")
        return logits

    return _filled(predict, tokens, masked, key, **how)


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
