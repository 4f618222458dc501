"""Decoding with a cache gives what a full forward pass gives; generation stops, samples and avoids tokens as it is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Learned, Model, Stack
from lm.generation.decoding import generate, left_padded, predict_tokens
from lm.models.transformer import Transformer
from lm.types import Example
from tests.unit.models.small import BLOCK, DECODERS, D, T, V, close, example_for, logits, random_stream, start, stream


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


@pytest.mark.parametrize("name", ["mqa, learned", "alibi", "buckets", "gqa, window"])
def test_left_padded_prompts_continue_as_each_alone(name):
    model = DECODERS[name]
    module, params = start(model)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, V, n).astype(np.int32) for n in (2, 6, 4)]
    settings = dict(new_tokens=5, temperature=0.0)
    together = np.asarray(generate(module, params, left_padded(prompts), jax.random.key(0), **settings))
    for prompt, row in zip(prompts, together, strict=True):
        tokens = prompt.tolist()
        for _ in range(5):  # without a cache, greedily; padding at the end is invisible to a causal model
            padded = np.array([tokens + [0] * (11 - len(tokens))])
            whole = logits(model, params, Example(None, stream(padded), None, None))
            tokens.append(int(whole[0, len(tokens) - 1].argmax()))
        assert row.tolist() == tokens[len(prompt) :]
    assert len(set(together.ravel().tolist())) > 3


def test_generate_stops_and_avoids_what_is_forbidden():
    module, params = start(DECODERS["rope"])
    prompt = left_padded([np.array([3, 4, 5], np.int32)] * 4)
    draw = lambda **settings: np.asarray(
        generate(module, params, prompt, jax.random.key(1), new_tokens=8, temperature=20.0, **settings)
    )
    free = draw(eos_id=-1, forbidden=jnp.zeros(V, bool))
    assert len({tuple(r) for r in free.tolist()}) == 4  # rows are drawn independently
    eos = int(free[0, 2])
    end = free[0].tolist().index(eos)
    stopped = draw(eos_id=eos, forbidden=jnp.zeros(V, bool))
    assert stopped[0].tolist() == free[0, :end].tolist() + [eos] * (8 - end)
    allowed = draw(eos_id=-1, forbidden=jnp.arange(V) < 20)
    assert allowed.min() >= 20


def test_generate_from_an_encoder():
    model = DECODERS["encoder-decoder"]
    module, params = start(model)
    sources = [np.arange(a, b, dtype=np.int32) for a, b in ((5, 9), (9, 11), (1, 4), (11, 15), (15, 19), (19, 22))]
    begin = lambda n: left_padded([np.array([1], np.int32)] * n)
    make = lambda s: generate(
        module, params, begin(len(s)), jax.random.key(0), new_tokens=4, temperature=0.0, encoder=left_padded(s)
    )
    padded, alone = np.asarray(make(sources)), np.asarray(make(sources[1:2] * 6))
    np.testing.assert_array_equal(padded[1], alone[0])
    assert len({tuple(row) for row in padded.tolist()}) > 1


def test_fill_is_the_likeliest_token():
    model = Model(V, D, encoder=Stack(1, {"L": BLOCK}, position=Learned(16)))
    module, params = start(model)
    example = example_for(model)
    best = predict_tokens(module, params, example.encoder)
    np.testing.assert_array_equal(best, logits(model, params, example).argmax(-1))
