"""Decoding with a cache gives what a full forward pass gives."""

import jax
import numpy as np
import pytest

from lm.config import Learned, Model, Sampling, Stack
from lm.generation.engine import Engine, Request
from lm.generation.samples import predict_tokens
from lm.models.transformer import Transformer
from lm.types import Example
from tests.engines import greedy
from tests.unit.models.small import BLOCK, DECODERS, D, T, V, close, example_for, logits, random_stream, start


def decoded(model: Model, params, example: Example, first: int) -> np.ndarray:
    """Returns the logits of `first` tokens in one call, then of the others one by one, with a cache."""
    module, variables, s = Transformer(model), {"params": params}, example.decoder
    length, across = s.tokens.shape[1], ()
    if example.encoder is not None:
        across = (
            jax.jit(lambda e: module.apply(variables, e, method="encode"))(example.encoder),
            example.encoder.segments,
        )

    @jax.jit
    def step(cache, part, *across):
        settings = dict(cache_length=length, method="decode", mutable=["cache"])
        hidden, cache = module.apply(variables | cache, part, *across, **settings)
        return cache, module.apply(variables, hidden, method="logits")

    cut = lambda a, b: jax.tree.map(lambda x: x[:, a:b], s)
    cache, out = step({}, cut(0, first), *across)
    parts = [out]
    for t in range(first, length):
        cache, out = step(cache, cut(t, t + 1))
        parts.append(out)
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "rope"])
def test_decoding_with_a_cache_is_the_whole_forward_pass(name):
    model = DECODERS[name]
    example = example_for(model)
    if model.encoder:  # a padded source
        segments = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32)
        example = example.replace(encoder=example.encoder.replace(segments=segments))
    _, params = start(model)
    close(decoded(model, params, example, first=3), logits(model, params, example))


def test_decoding_behind_a_prefix():
    """Tokens of the prompt see each other also through the cache."""
    model = DECODERS["rope"]
    example = Example(None, random_stream(prefix=np.arange(T)[None].repeat(2, 0) < 4), None, None)
    _, params = start(model)
    whole = logits(model, params, example)
    close(decoded(model, params, example, first=4), whole)
    assert np.abs(whole - logits(model, params, example_for(model)))[:, :3].max() > 0.01


@pytest.mark.parametrize(
    "name", ["mqa, learned", "alibi", "buckets", "gqa, window", "recurrent RRL", "mamba2, scanned", "lstm"]
)
def test_prompts_of_different_lengths_continue_as_each_alone(name):
    model = start(DECODERS[name])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, V, n).astype(np.int32) for n in (2, 6, 4)]
    engine = Engine(*model, slots=3, length=12, steps=5)
    found = engine.write([Request(prompt, 5, Sampling(temperature=0.0)) for prompt in prompts])
    texts = [[w.token for w in samples[0]] for samples in found]
    assert texts == [greedy(*model, prompt, 5) for prompt in prompts]
    assert len({token for text in texts for token in text}) > 3


def test_fill_is_the_likeliest_token():
    model = Model(V, D, encoder=Stack(1, {"L": BLOCK}, position=Learned(16)))
    module, params = start(model)
    example = example_for(model)
    best = predict_tokens(module, params, example.encoder)
    np.testing.assert_array_equal(best, logits(model, params, example).argmax(-1))
