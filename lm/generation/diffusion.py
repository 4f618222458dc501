"""Filling in masks in several steps, as a masked-diffusion model writes (MDLM, arXiv 2406.07524; LLaDA, 2502.09992), or as any
model that predicts masked tokens can (Mask-Predict, 1904.09324; Gibbs sampling, 1902.04094).

Axes: B batch, T length, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Order
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.objectives.masked_diffusion import time_step
from lm.types import Example, TokenStream


@partial(jax.jit, static_argnames=("model", "steps", "order", "block", "time_steps", "top_k", "burn_in"))
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
    top_k: int = 0,
    burn_in: int = 0,
) -> jax.Array:
    """Returns int32 [B, T]: the tokens of the stream, those that are `masked` (bool [B, T]) filled in.

    In each of `steps` steps every mask gets a token, drawn at `temperature` (0: the likeliest), and an equal share of the masks
    keeps it, the others stay masks. Which ones keep it is decided by `order`: those whose token has the highest probability
    (LLaDA's low-confidence remasking), whose distribution has the least entropy, or the largest margin between its first
    and second token (arXiv 2502.06768), random ones, which alone is the process that the loss bounds, or from the left. With
    `block`, masks are filled in blocks of so many from left to right (LLaDA).

    Two orders also take back what they have written. "mask_predict" (arXiv 1904.09324): an equal share of all places, those
    whose tokens had the lowest probabilities when they were written, are masks again in the next step. "gibbs" (1902.04094):
    the first step writes all, each of the others takes one place at random and draws its token anew given all others; at
    temperature 1 that is a chain whose distribution the model's conditional distributions alone decide, however it began.

    `forbidden`, bool [V]: tokens that are never written. `top_k`: after the first `burn_in` steps, tokens are drawn from so
    many likeliest ones (0: all). `time_steps` as in `lm.config.MaskedDiffusion`.
    """
    predict = _predictor(model, params, stream, time_steps)
    settings: dict[str, Any] = dict(steps=steps, order=order, temperature=temperature, forbidden=forbidden, block=block)
    return _filled(predict, jnp.asarray(stream.tokens), masked, key, **settings, top_k=top_k, burn_in=burn_in)


@partial(jax.jit, static_argnames=("model", "most", "time_steps"))
def pseudo_log_probs(
    model: Transformer,
    params: Any,
    stream: TokenStream,
    masked: jax.Array,
    mask_id: int | jax.Array,
    *,
    most: int,
    time_steps: int = 0,
) -> jax.Array:
    """float32 [B, T]: the log-probability in nats of each token that is `masked` (bool [B, T]), given all others and with
    `mask_id` in its own place (PLL, arXiv 1910.14659); 0 elsewhere. `most`: how many of them a row has at most."""
    predict, tokens = _predictor(model, params, stream, time_steps), jnp.asarray(stream.tokens)
    number = jnp.cumsum(masked, axis=1) - 1

    def one(k: jax.Array) -> jax.Array:
        hidden = masked & (number == k)
        logp = jax.nn.log_softmax(predict(jnp.where(hidden, mask_id, tokens), hidden).astype(jnp.float32), axis=-1)
        return jnp.where(hidden, jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0], 0.0)

    total, _ = jax.lax.scan(lambda total, k: (total + one(k), None), jnp.zeros(tokens.shape), jnp.arange(most))
    return total


def _predictor(
    model: Transformer, params: Any, stream: TokenStream, time_steps: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`predict(tokens, masks)`: the logits [B, T, V] for each token of the stream, with other `tokens` in it."""
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

    return logits


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
    top_k: int = 0,
    burn_in: int = 0,
) -> jax.Array:
    """`fill`, where `predict(tokens, masks)` gives the logits [B, T, V]."""
    masks, count = tokens, masked.sum(axis=1)  # [B, T], [B]
    number = jnp.cumsum(masked, axis=1) - 1  # of each mask in its row
    place = jnp.zeros_like(number) if block is None else number // block
    heat = jnp.asarray(temperature, jnp.float32)
    takes_back = order in ("mask_predict", "gibbs")

    def step(carry: tuple[jax.Array, ...], xs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        (tokens, left, score), (s, key) = carry, xs
        logits = predict(tokens, left).astype(jnp.float32)
        logits = logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits)
        drawn_from = logits
        if top_k:
            least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
            drawn_from = jnp.where((logits < least) & (s >= burn_in), -jnp.inf, logits)
        draws, ranks = jax.random.split(key)
        drawn = jax.random.categorical(draws, drawn_from / jnp.maximum(heat, 1e-6))
        drawn = jnp.where(heat > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
        new = _score(order, logits, drawn, number, ranks)
        score = new if order == "gibbs" else jnp.where(left, new, score)
        among = masked if takes_back else left
        # Sorted by block, then by score; what is not among them comes last.
        sort = jnp.lexsort((-score, jnp.where(among, place, tokens.shape[1])), axis=1)
        rank = jnp.argsort(sort, axis=1)
        keep = count * (steps - 1 - s) // steps  # masks that are left after this step
        keep = jnp.where(s < steps - 1, 1, 0) if order == "gibbs" else keep
        chosen = among & (rank < (among.sum(axis=1) - keep)[:, None])
        tokens, left = jnp.where(left, drawn, tokens), among & ~chosen
        return (jnp.where(left, masks, tokens), left, score), None

    carry = tokens, masked, jnp.zeros(tokens.shape)
    (tokens, _, _), _ = jax.lax.scan(step, carry, (jnp.arange(steps), jax.random.split(key, steps)))
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
    if order in ("random", "gibbs"):
        return jax.random.uniform(key, drawn.shape)
    if order == "left":
        return -number.astype(jnp.float32)
    logp = jax.nn.log_softmax(logits, axis=-1)
    if order in ("confidence", "mask_predict"):
        return jnp.take_along_axis(logp, drawn[..., None], axis=-1)[..., 0]
    if order == "entropy":
        p = jnp.exp(logp)
        return jnp.sum(jnp.where(p > 0, p * logp, 0.0), axis=-1)
    top = jnp.exp(jax.lax.top_k(logp, 2)[0])
    return top[..., 0] - top[..., 1]
