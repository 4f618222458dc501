"""Beam search: the texts of the highest log-probability that a search of so many texts at a time finds.

A text's score is its log-probability in nats divided by length ** penalty, where the length counts its new tokens, the end of
the text included. The search goes on until no text that is still open could beat the worst of the best ended ones, however it
went on; with `early` it stops once as many have ended as there are beams.

Axes: N beams, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.generation.cache import spread, taken
from lm.generation.padding import padded
from lm.generation.programs import prefill
from lm.models.transformer import Transformer
from lm.types import TokenStream


@dataclass(frozen=True)
class Found:
    tokens: list[int]  # the new ones, with the end of the text if it has come
    score: float
    log_prob: float  # nats


def search(
    model: Transformer,
    params: Any,
    prompt: np.ndarray,
    *,
    beams: int,
    new_tokens: int,
    penalty: float = 1.0,
    early: bool = False,
    eos: Sequence[int] = (),
    forbidden: np.ndarray | None = None,
    encoder: TokenStream | None = None,
    prefix: bool = False,
) -> list[Found]:
    """The best continuations of a prompt, int32 [n], the best first: as many as there are beams, or fewer if there are no more.

    forbidden: bool [V], tokens that are never written. encoder: what the encoder of an encoder-decoder reads, [1, T].
    """
    if beams < 1 or new_tokens < 1 or not len(prompt):
        raise UserError("a search needs a token of prompt, a beam and a new token, or more")
    bias = jnp.zeros(model.config.vocab_size) if forbidden is None else jnp.where(jnp.asarray(forbidden), -jnp.inf, 0.0)
    keep = min(max(2, 1 + len(eos)) * beams, model.config.vocab_size)
    length = len(prompt) + new_tokens
    size = np.int32(len(prompt))
    row, logits = _begin(model, params, padded(prompt, length), size, encoder, prefix=prefix, length=length)
    cache = _spread(row, beams, size)
    scores = [0.0] + [-np.inf] * (beams - 1)  # all beams are the same prompt, and the first one goes on
    logits = jnp.broadcast_to(logits, (beams, *logits.shape))
    texts: list[list[int]] = [[] for _ in range(beams)]
    ended: list[Found] = []
    for count in range(1, new_tokens + 1):
        totals, best = (np.asarray(x) for x in _candidates(logits, bias, jnp.asarray(scores, jnp.float32), keep=keep))
        candidates = [
            (float(total), int(i) // len(bias), int(i) % len(bias))
            for total, i in zip(totals, best, strict=True)
            if total > -np.inf
        ]
        open_ = []
        for place, (total, beam, token) in enumerate(candidates):
            text = [*texts[beam], token]
            if token in eos or count == new_tokens:
                if place < beams:
                    ended.append(Found(text, total / count**penalty, total))
            elif len(open_) < beams:
                open_.append((total, beam, text))
        ended = sorted(ended, key=lambda found: -found.score)[:beams]
        longest = new_tokens if penalty > 0 else count
        full = len(ended) == beams
        if not open_ or (full and (early or open_[0][0] / longest**penalty <= ended[-1].score)):
            break
        open_ += [(-np.inf, 0, [0])] * (beams - len(open_))  # of no continuation
        scores, parents, texts = map(list, zip(*open_, strict=True))
        last = np.array([text[-1] for text in texts], np.int32)
        cache, logits = _forward(model, params, cache, np.array(parents, np.int32), last, size + count - 1)
    return ended


_begin = jax.jit(prefill, static_argnames=("model", "prefix", "length"))
_spread = jax.jit(spread, static_argnames="count")


@partial(jax.jit, static_argnames="keep")
def _candidates(logits: jax.Array, bias: jax.Array, scores: jax.Array, *, keep: int) -> tuple[jax.Array, jax.Array]:
    """The `keep` likeliest continuations of all beams: float32 totals and int32 indices beam * V + token."""
    totals = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1) + bias + scores[:, None]
    return jax.lax.top_k(totals.reshape(-1), keep)


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _forward(
    model: Transformer, params: Any, cache: Any, parents: jax.Array, tokens: jax.Array, position: jax.Array
) -> tuple[Any, jax.Array]:
    """Appends a token, int32 [N], to the texts that were beams `parents`, int32 [N]; returns their cache and logits [N, V]."""
    cache = taken(cache, parents)
    one = jnp.ones_like(tokens)[:, None]
    stream = TokenStream(tokens[:, None], one * position, one, None)
    hidden, changed = model.apply({"params": params, "cache": cache}, stream, method="decode", mutable=["cache"])
    logits: Any = model.apply({"params": params}, hidden[:, -1], method="logits")
    return changed["cache"], logits
