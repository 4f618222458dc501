"""Which of a few answers a model finds likeliest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.generation.decoding import check_lengths
from lm.models.transformer import Transformer
from lm.types import TokenStream


@partial(jax.jit, static_argnames="model")
def rank(
    model: Transformer,
    params: Any,
    prompt: TokenStream,
    candidates: jax.Array,
    weights: jax.Array,
    *,
    encoder: TokenStream | None = None,
) -> jax.Array:
    """float32 [B, C]: the log-probability of each of C candidates after each of B prompts (`left_padded`).

    `candidates` are int32 [C, A] and `weights` [C, A], 0 on padding. The prompt is read once, and every candidate goes on
    from its cache. An encoder-decoder reads `encoder`, as in `generate`. Raises UserError where a stack has not learned so
    many positions.
    """
    variables, length = {"params": params}, prompt.tokens.shape[1] + candidates.shape[1] - 1
    check_lengths(model.config, encoder, length, cure="shorten the prompt, or take shorter candidates")
    across: Any = ()
    if encoder is not None:
        across = (model.apply(variables, encoder, method="encode"), encoder.segments)

    def look(stream: TokenStream, cache: Any, *across: Any) -> tuple[jax.Array, Any]:
        hidden, cache = model.apply(variables | cache, stream, *across, cache_length=length, method="decode", mutable=["cache"])
        return hidden, cache

    def log_probabilities(hidden: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, hidden, method="logits")
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    hidden, cache = look(prompt, {}, *across)
    first = log_probabilities(hidden[:, -1])  # [B, V]
    last = prompt.positions[:, -1:]

    def one(candidate: jax.Array, weight: jax.Array) -> jax.Array:
        total = weight[0] * first[:, candidate[0]]
        if candidate.shape[0] == 1:
            return total
        shape = (last.shape[0], candidate.shape[0] - 1)
        seen = jnp.broadcast_to(jnp.int32(weight[:-1] > 0), shape)
        positions = last + 1 + jnp.arange(shape[1])
        hidden, _ = look(TokenStream(jnp.broadcast_to(candidate[:-1], shape), positions, seen), cache)
        targets = jnp.broadcast_to(candidate[1:], shape)
        chosen = jnp.take_along_axis(log_probabilities(hidden), targets[..., None], axis=-1)[..., 0]
        return total + chosen @ weight[1:]

    return jax.lax.map(lambda c: one(*c), (candidates, weights)).T
