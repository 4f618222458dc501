"""Autoregressive decoding with a cache, and an encoder's predictions for masked tokens.

Each is one jitted call: the prompt goes through the model at once, then a scan decodes one token per step.

Axes: B batch, T prompt length, V vocabulary.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, startup
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream


def left_padded(prompts: list[np.ndarray], *, prefix: bool = False, length: int | None = None) -> TokenStream:
    """Returns prompts of different lengths as rows [B, T] that end together: padding, of segment 0, stands in front.

    T is `length`, or the longest prompt's. With `prefix` the tokens of a prompt all attend to each other.
    """
    length = max(len(p) for p in prompts) if length is None else length
    tokens, segments, positions = (np.zeros((len(prompts), length), np.int32) for _ in range(3))
    for i, p in enumerate(prompts):
        tokens[i, length - len(p) :] = p
        segments[i, length - len(p) :] = 1
        positions[i, length - len(p) :] = np.arange(len(p))
    return TokenStream(tokens, positions, segments, segments > 0 if prefix else None)


def sample_token(key: jax.Array, logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Samples one token per row: float [B, V] -> int32 [B]. Temperature 0 is the most likely token."""
    logits = logits.astype(jnp.float32)
    drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def decode_step(
    model: Transformer, params: Any, cache: Any, stream: TokenStream, *encoded: jax.Array, length: int
) -> tuple[Any, jax.Array]:
    """Appends the tokens of `stream` [B, T] to the cache; returns the cache and the logits [B, V] after the last token.

    The first call passes {} as the cache, which gets room for `length` tokens, and for an encoder-decoder `encoded`: the
    encoder's output and its segments, which later calls find in the cache.
    """
    variables = {"params": params}
    hidden, cache = model.apply(variables | cache, stream, *encoded, cache_length=length, method="decode", mutable=["cache"])
    logits: Any = model.apply(variables, hidden[:, -1], method="logits")
    return cache, logits


def generate(model: Transformer, params: Any, prompt: TokenStream, key: jax.Array, **settings: Any) -> jax.Array:
    """`decode`, jitted, with the compiler options that suit it."""
    return jitted_decode()(model, params, prompt, key, **settings)


@cache
def jitted_decode() -> Any:
    """Returns `decode` jitted."""
    options = startup.decoding_options()
    return jax.jit(decode, static_argnames=("model", "new_tokens"), compiler_options=options)


def decode(
    model: Transformer,
    params: Any,
    prompt: TokenStream,
    key: jax.Array,
    *,
    new_tokens: int,
    temperature: float | jax.Array = 1.0,
    eos_id: int = -1,
    forbidden: jax.Array | None = None,
    encoder: TokenStream | None = None,
) -> jax.Array:
    """Returns int32 [B, new_tokens], the continuation of the prompt [B, T] (see `left_padded`); all `eos_id` after the first.

    forbidden: bool [V], tokens that are never sampled.
    encoder: what the encoder of an encoder-decoder reads; its `prompt` is what the decoder begins with.

    Raises UserError if prompt and continuation need more positions than the model has learned.
    """
    length = prompt.tokens.shape[1] + new_tokens
    cure = "shorten the prompt, or ask for fewer new tokens"
    check_lengths(model.config, encoder, length - 1, cure=cure)  # the last new token is not fed back
    encoded = ()
    if encoder is not None:
        encoded = (model.apply({"params": params}, encoder, method="encode"), encoder.segments)

    def next_token(cache: Any, stream: TokenStream, key: jax.Array, *encoded: Any) -> tuple[Any, jax.Array]:
        cache, logits = decode_step(model, params, cache, stream, *encoded, length=length)
        logits = logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits)
        return cache, sample_token(key, logits, jnp.asarray(temperature, jnp.float32))

    keys = jax.random.split(key, new_tokens)
    cache, token = next_token({}, prompt, keys[0], *encoded)

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        cache, token, position = carry
        segments = jnp.ones_like(token)[:, None]
        stream = TokenStream(token[:, None], position[:, None], segments, None)
        cache, new = next_token(cache, stream, key)
        new = jnp.where(token == eos_id, eos_id, new)
        return (cache, new, position + 1), token

    (_, last, _), tokens = jax.lax.scan(step, (cache, token, prompt.positions[:, -1] + 1), keys[1:])
    return jnp.concatenate([tokens, last[None]]).T


def check_lengths(model: config.Model, encoder: TokenStream | None, decoder: int | None, *, cure: str) -> None:
    """Raises UserError if the encoder's stream, or `decoder` tokens, need more positions than the model has learned."""
    check_positions(model, None if encoder is None else encoder.tokens.shape[1], decoder, cure=cure, what="the prompt takes")


@partial(jax.jit, static_argnames="model")
def predict_tokens(model: Transformer, params: Any, stream: TokenStream, forbidden: jax.Array | None = None) -> jax.Array:
    """Returns the encoder's most likely token at every position, int32 [B, T], none of them `forbidden` (bool [V])."""
    check_lengths(model.config, stream, None, cure="shorten it")
    logits: Any = model.apply({"params": params}, Example(stream, None, None, None))
    return jnp.argmax(logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits), axis=-1)
