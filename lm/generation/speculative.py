"""Writing with the heads of multi-token prediction: they guess several tokens, which the model checks at once (arXiv
2404.19737, section 3.2; as in arXiv 1811.03115).

The text is the one that the model alone would write, taking the likeliest token each time. A wrong guess costs only time.

Axes: T tokens that are read at once, D width.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.models.context import Context
from lm.models.future import Future
from lm.models.mask import Mask
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.types import TokenStream


class _State(NamedTuple):
    """The first `size` tokens of the text are read, and the next one is decided. The model's cache holds keys and values of
    those that are read, and behind them some of rejected guesses, which the next round overwrites. Those of heads in sequence
    were made when the tokens ahead were guesses, which may have been wrong: later guesses may be worse for it."""

    text: jax.Array  # int32 [length]: what is read, the next token, and the heads' guesses of those after it
    size: jax.Array  # int32 []
    cache: Any  # of the model
    future: Any  # of the heads
    rounds: jax.Array  # int32 []: passes through the model


def write(
    model: Transformer,
    params: Any,
    heads: Future,
    prompt: np.ndarray,
    *,
    new_tokens: int,
    eos_id: int = -1,
    forbidden: jax.Array | None = None,
) -> tuple[np.ndarray, int]:
    """What follows the prompt (int32 [n]): int32 [new_tokens], all `eos_id` after the first, and the passes through the model
    that it took, the prompt's among them; the model alone takes `new_tokens`.

    params: {"model", "future"}, as a run of 'multi_token' saves them. forbidden: bool [V], tokens that are never written.

    UserError for an empty prompt, and if prompt, continuation and guesses need more positions than the model has learned. A
    mixture of experts with a limited capacity drops other tokens when it reads several at once, so that its text may differ.
    """
    if model.config.decoder and model.config.decoder.recurrent():
        raise UserError("a recurrent layer cannot take a wrong guess back: write without the heads of multi-token prediction")
    if not len(prompt):
        raise UserError("the prompt is empty: begin with a token, such as the tokenizer's bos")
    length = len(prompt) + new_tokens + 2 * heads.heads
    check_positions(model.config, None, length, cure="shorten the prompt, or ask for fewer new tokens", what="the prompt takes")
    never = jnp.zeros(model.config.vocab_size, bool) if forbidden is None else jnp.asarray(forbidden)
    text, rounds = _write(
        model, params, heads, jnp.asarray(prompt, jnp.int32), never, new_tokens=new_tokens, eos_id=eos_id, length=length
    )
    return np.asarray(text), int(rounds)


@partial(jax.jit, static_argnames=("model", "heads", "new_tokens", "eos_id", "length"))
def _write(
    model: Transformer,
    params: Any,
    heads: Future,
    prompt: jax.Array,
    never: jax.Array,
    *,
    new_tokens: int,
    eos_id: int,
    length: int,
) -> tuple[jax.Array, jax.Array]:
    begin, guesses, variables = len(prompt), heads.heads, {"params": params["model"]}

    def likeliest(hidden: jax.Array) -> jax.Array:
        """[T, D] -> int32 [T]."""
        logits: Any = model.apply(variables, hidden, method="logits")
        return jnp.argmax(jnp.where(never, -jnp.inf, logits.astype(jnp.float32)), axis=-1).astype(jnp.int32)

    def stream(tokens: jax.Array, start: jax.Array | int) -> TokenStream:
        positions = start + jnp.arange(len(tokens), dtype=jnp.int32)
        return TokenStream(tokens[None], positions[None], jnp.ones((1, len(tokens)), jnp.int32))

    def read(state: _State, count: int) -> tuple[jax.Array, Any]:
        """The hidden vectors [T, D] of the next `count` tokens of the text, and the model's cache with them."""
        tokens = jax.lax.dynamic_slice_in_dim(state.text, state.size, count)
        hidden, cache = model.apply(
            variables | state.cache, stream(tokens, state.size), cache_length=length, method="decode", mutable=["cache"]
        )
        return hidden[0], cache

    def guess(state: _State, hidden: jax.Array, cache: Any, right: jax.Array, after: jax.Array) -> _State:
        """The state once the first `right` of the tokens just read are found to be right, and `after` follows them: with the
        heads' guesses of what comes then."""
        count, start = len(hidden), state.size
        size = start + right
        text = jax.lax.dynamic_update_slice_in_dim(state.text, after[None], size, 0)
        mask = Mask(jnp.ones((1, count), jnp.int32), jnp.ones((1, length), jnp.int32), None, start, causal=True)
        context = Context(mask, start + jnp.arange(count, dtype=jnp.int32)[None])
        last, future = hidden[None], state.future
        for k in range(1, guesses + 1):
            ahead = jax.lax.dynamic_slice_in_dim(text, start + k, count)  # the tokens k places after those that were read
            seen = model.apply(variables, stream(ahead, start + k), "decoder", method="embedded")
            given = last if heads.sequential else hidden[None]
            own = {"params": params["future"]} | future
            last, written = heads.apply(own, k, given, seen, context, method="head", mutable=["cache"])
            future = {"cache": future.get("cache", {}) | written["cache"]}
            best = likeliest(jax.lax.dynamic_slice_in_dim(last[0], right - 1, 1))
            text = jax.lax.dynamic_update_slice_in_dim(text, best, size + k, 0)
        cache = {"cache": cache["cache"] | {"length": size}}
        return _State(text, size, cache, future, state.rounds + 1)

    def go_on(state: _State) -> jax.Array:
        place = jnp.arange(length)
        ended = jnp.any((state.text == eos_id) & (place >= begin) & (place <= state.size))
        return (state.size < begin + new_tokens - 1) & ~ended

    def one_round(state: _State) -> _State:
        hidden, cache = read(state, guesses + 1)
        best = likeliest(hidden)
        guessed = jax.lax.dynamic_slice_in_dim(state.text, state.size + 1, guesses)
        right = 1 + jnp.sum(jnp.cumprod(guessed == best[:-1]))
        return guess(state, hidden, cache, right, best[right - 1])

    text = jnp.zeros(length, jnp.int32).at[:begin].set(prompt)
    state = _State(text, jnp.int32(0), {}, {}, jnp.int32(0))
    hidden, cache = read(state, begin)
    state = guess(state, hidden, cache, jnp.int32(begin), likeliest(hidden[-1:])[0])
    state = jax.lax.while_loop(go_on, one_round, state)
    new = state.text[begin : begin + new_tokens]
    after = jnp.cumsum(new == eos_id) > 0
    return jnp.where(after, eos_id, new), state.rounds
