"""Text from a model: a decoding loop over a cache, and filling in what is masked.

Everything is one jitted call: the prompt goes through the model at once, then a scan gives a token a turn.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, startup
from lm.models.positions import check_reach
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream


def left_padded(prompts: list[np.ndarray], *, prefix: bool = False, length: int | None = None) -> TokenStream:
    """Prompts of several lengths, ending together: int32 [B, T], padding of segment 0 in front. T: `length`, or the longest."""
    length = max(len(p) for p in prompts) if length is None else length
    tokens, segments, positions = (np.zeros((len(prompts), length), np.int32) for _ in range(3))
    for i, p in enumerate(prompts):
        tokens[i, length - len(p) :] = p
        segments[i, length - len(p) :] = 1
        positions[i, length - len(p) :] = np.arange(len(p))
    return TokenStream(tokens, positions, segments, segments > 0 if prefix else None)


def sample_token(key: jax.Array, logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """float [B, V] -> int32 [B]; a temperature of 0 is the most likely token."""
    logits = logits.astype(jnp.float32)
    drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def decode_step(
    model: Transformer, params: Any, cache: Any, stream: TokenStream, *across: jax.Array, length: int
) -> tuple[Any, jax.Array]:
    """(cache, logits [B, V]) behind the tokens of `stream` ([B, T]), which follow those of the cache; the first is {}.

    The first call makes room for `length` tokens, and takes what an encoder made (`across`: vectors, their segments).
    """
    variables = {"params": params}
    hidden, cache = model.apply(variables | cache, stream, *across, cache_length=length, method="decode", mutable=["cache"])
    logits: Any = model.apply(variables, hidden[:, -1], method="logits")
    return cache, logits


def generate(model: Transformer, params: Any, prompt: TokenStream, key: jax.Array, **settings: Any) -> jax.Array:
    """`decoded`, compiled for as many texts as the prompt has."""
    return compiled(single=len(prompt.tokens) == 1)(model, params, prompt, key, **settings)


@cache
def compiled(*, single: bool) -> Any:
    """The jitted `decoded`, for a single text or for several."""
    options = startup.decoding_options(single=single)
    return jax.jit(decoded, static_argnames=("model", "new_tokens"), compiler_options=options)


def decoded(
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
    """int32 [B, new_tokens] that follow the prompt ([B, T], `left_padded`); after `eos_id` only that.

    `forbidden` is bool [V]: tokens never drawn. An encoder-decoder reads `encoder`, its prompt is what the decoder
    begins with.

    Raises UserError where a stack has not learned so many positions.
    """
    length = prompt.tokens.shape[1] + new_tokens
    cure = "shorten the prompt, or ask for fewer new tokens"
    check_room(model.config, encoder, length - 1, cure=cure)  # the last new token is not read again
    encoded = model.apply({"params": params}, encoder, method="encode") if encoder is not None else None

    def decode(cache: Any, stream: TokenStream, key: jax.Array, *across: Any) -> tuple[Any, jax.Array]:
        cache, logits = decode_step(model, params, cache, stream, *across, length=length)
        logits = logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits)
        return cache, sample_token(key, logits, jnp.asarray(temperature, jnp.float32))

    keys = jax.random.split(key, new_tokens)
    across = (encoded, encoder.segments) if encoder is not None else ()
    cache, token = decode({}, prompt, keys[0], *across)

    def turn(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        cache, token, position = carry
        segments = jnp.ones_like(token)[:, None]
        stream = TokenStream(token[:, None], position[:, None], segments, None)
        cache, new = decode(cache, stream, key)
        new = jnp.where(token == eos_id, eos_id, new)
        return (cache, new, position + 1), token

    (_, last, _), tokens = jax.lax.scan(turn, (cache, token, prompt.positions[:, -1] + 1), keys[1:])
    return jnp.concatenate([tokens, last[None]]).T


def check_room(model: config.Model, encoder: TokenStream | None, decoder: int | None, *, cure: str) -> None:
    """UserError where what an encoder reads, or so many places of a decoder, have more positions than are learned."""
    check_reach(model, None if encoder is None else encoder.tokens.shape[1], decoder, cure=cure, what="the prompt takes")


@partial(jax.jit, static_argnames="model")
def fill(model: Transformer, params: Any, stream: TokenStream, forbidden: jax.Array | None = None) -> jax.Array:
    """int32 [B, T]: an encoder's most likely token at every place, of those that are not `forbidden` (bool [V])."""
    check_room(model.config, stream, None, cure="shorten it")
    logits: Any = model.apply({"params": params}, Example(stream, None, None, None))
    return jnp.argmax(logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits), axis=-1)
