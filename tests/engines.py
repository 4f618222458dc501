"""Small models of random parameters, and what an engine writes with them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.models.transformer import Transformer
from lm.types import Example, TokenStream
from tests.fakes import WORDS, small_model

V = len(WORDS)


def random_model(config, seed=0):
    """(model, parameters), which are large enough that texts differ."""
    model = Transformer(config)
    one = jnp.ones((1, 4), jnp.int32)
    stream = TokenStream(one, one, one, None)
    example = Example(stream if config.encoder else None, stream, None, None)
    params = nn.unbox(model.init(jax.random.key(seed), example)["params"])
    return model, jax.tree.map(lambda x: 2 * x, params)


def made(architecture="decoder", **changes):
    return random_model(small_model(architecture, **changes))


def prompts(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, V, n).astype(np.int32) for n in sizes]


def written(engine, *requests):
    """Request -> sample -> what was written."""
    for request in requests:
        engine.submit(request)
    out = {id(r): {i: [] for i in range(r.samples)} for r in requests}
    for each in engine.run():
        out[id(each.request)][each.sample].append(each)
    return [out[id(r)] for r in requests]


def tokens(samples):
    return {i: [w.token for w in some] for i, some in samples.items()}


@partial(jax.jit, static_argnames="model")
def _apply(model, params, example):
    return model.apply({"params": params}, example)


def greedy(model, params, prompt, new_tokens, *, encoder=None, ends=(), never=()):
    """The likeliest tokens, one after another, each by a pass over the whole text and without a cache."""

    def row(tokens, size):
        size = -(-size // 16) * 16  # what follows a text is not seen
        segments = (np.arange(size) < len(tokens)).astype(np.int32)[None]
        padded = np.pad(np.asarray(tokens, np.int32), (0, size - len(tokens)))[None]
        return TokenStream(padded, np.arange(size, dtype=np.int32)[None] * segments, segments, None)

    text, most = list(prompt), len(prompt) + new_tokens
    source = None if encoder is None else row(encoder, len(encoder))
    while len(text) < most and not (len(text) > len(prompt) and text[-1] in ends):
        found = np.array(_apply(model, params, Example(source, row(text, most), None, None))[0, len(text) - 1], np.float32)
        found[list(never)] = -np.inf
        text.append(int(found.argmax()))
    return text[len(prompt) :]


def logits_of(model, params, text):
    """float32 [n, V]: the logits after each token of a text, int [n], read at once."""
    rows = np.asarray(text, np.int32)[None]
    stream = TokenStream(rows, np.arange(rows.shape[1], dtype=np.int32)[None], np.ones_like(rows), None)
    return np.asarray(jax.jit(model.apply)({"params": params}, Example(None, stream, None, None))[0], np.float32)
