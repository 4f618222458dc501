"""Which of a few answers a model finds likeliest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.losses.log_probs import token_log_probs
from lm.models.positions import check_positions
from lm.models.transformer import Transformer, head_params
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
    from its cache. An encoder-decoder reads `encoder`, and its decoder begins with `prompt`. Raises UserError where a stack has
    not learned so many positions.
    """
    variables, length = {"params": params}, prompt.tokens.shape[1] + candidates.shape[1] - 1
    source = None if encoder is None else encoder.tokens.shape[1]
    cure = "shorten the prompt, or take shorter candidates"
    check_positions(model.config, source, length, cure=cure, what="the prompt takes")
    across: Any = ()
    if encoder is not None:
        across = model.apply(variables, encoder, method="encoded")

    def look(stream: TokenStream, cache: Any, *across: Any) -> tuple[jax.Array, Any]:
        hidden, cache = model.apply(variables | cache, stream, *across, cache_length=length, method="decode", mutable=["cache"])
        return hidden, cache

    def log_probs(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        return token_log_probs(head_params(params), model.apply, hidden, targets, vocab_size=model.config.vocab_size)

    hidden, cache = look(prompt, {}, *across)
    last = prompt.positions[:, -1:]
    first = log_probs(hidden[:, -1:], jnp.broadcast_to(candidates[:, 0], (len(last), 1, len(candidates))))[:, 0]  # [B, C]

    def rest(candidate: jax.Array, weight: jax.Array) -> jax.Array:
        """float32 [B]: the log-probability of all of a candidate but its first token."""
        shape = (len(last), candidate.shape[0] - 1)
        seen = jnp.broadcast_to(jnp.int32(weight[:-1] > 0), shape)
        positions = last + 1 + jnp.arange(shape[1])
        hidden, _ = look(TokenStream(jnp.broadcast_to(candidate[:-1], shape), positions, seen), cache)
        return log_probs(hidden, jnp.broadcast_to(candidate[1:], shape)) @ weight[1:]

    total = first * weights[:, 0]
    return total if candidates.shape[1] == 1 else total + jax.lax.map(lambda c: rest(*c), (candidates, weights)).T
