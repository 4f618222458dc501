"""What a slot keeps of its text: rings for windows, keys and values in fewer bits."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from lm.config import Sampling
from lm.generation.engine import Engine, Request
from lm.models.attention import quantised
from lm.models.mask import ring_index
from tests.engines import V, logits_of, made, prompts, random_model, tokens, written
from tests.fakes import small_model

GREEDY = Sampling(temperature=0.0)
OFTEN = {token: 4.0 for token in (5, 6, 7)}


def kept(engine, *names):
    return {path: x for path, x in flatten_dict(engine._slots.cache).items() if path[-1].startswith(names)}


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scanned"])
def windowed(request):
    """Every other layer sees six tokens."""
    config = small_model("decoder")
    block = config.decoder.blocks["L"]
    near = replace(block, attention=replace(block.attention, window=6))
    stack = replace(config.decoder, num_layers=4, blocks={"L": block, "W": near}, pattern="WL", scan=request.param)
    return random_model(replace(config, decoder=stack), seed=1)


@pytest.mark.parametrize("guesses", [0, 3])
def test_a_ring_keeps_what_a_window_sees(windowed, guesses):
    engine = Engine(*windowed, slots=2, length=48, steps=4, guesses=guesses)
    assert {x.shape[-2] for x in kept(engine, "key").values()} == {6 + guesses, 48 + guesses}
    texts = prompts(3, 9, 20)  # shorter and longer than the ring
    found = written(engine, *(Request(p, 28, GREEDY, bias=OFTEN) for p in texts))
    bias = np.array([OFTEN.get(t, 0.0) for t in range(V)])
    for prompt, samples in zip(texts, found, strict=True):
        text = tokens(samples)[0]
        logits = logits_of(*windowed, [*prompt, *text])[len(prompt) - 1 : -1]
        assert np.argmax(logits + bias, axis=-1).tolist() == text
        own = np.asarray(jax.nn.log_softmax(logits))[np.arange(28), text]
        np.testing.assert_allclose([w.log_prob for w in samples[0]], own, atol=1e-4)


def test_a_ring_has_the_last_tokens():
    assert ring_index(np.array([0, 2, 4, 7]), 4).tolist() == [[-4, -3, -2, -1], [0, 1, -2, -1], [0, 1, 2, 3], [4, 5, 6, 3]]


@pytest.mark.parametrize(("kind", "share"), [("bfloat16", 1 / 2), ("int8", 1 / 4 + 1 / 16)])  # 16 numbers share a scale
@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_keys_and_values_in_fewer_bits_change_log_probabilities_little(architecture, kind, share):
    model, both = made(architecture), architecture == "encoder_decoder"
    settings = dict(slots=2, length=32, source=16 if both else 0, steps=4)
    asked = [Request(p[:1], 20, GREEDY, p) if both else Request(p, 20, GREEDY) for p in prompts(9, 4)]
    whole, small = Engine(*model, **settings), Engine(*model, kind=kind, **settings)
    size = lambda engine: sum(x.nbytes for x in kept(engine, "key", "value").values())
    assert size(small) == share * size(whole)
    exact, rounded = written(whole, *asked), written(small, *map(replace, asked))
    for one, other in zip(exact, rounded, strict=True):
        differ = next((i for i, (a, b) in enumerate(zip(one[0], other[0], strict=True)) if a.token != b.token), 20)
        of = lambda some, n=differ: np.array([w.log_prob for w in some[0][:n]])
        assert differ >= 3
        assert 0 < np.abs(of(one) - of(other)).max() < 0.1


def test_int8_is_off_by_half_a_step_at_most():
    x = np.random.default_rng(0).normal(size=(3, 5, 16)).astype(np.float32)
    x[0, 0] = 0
    q, scale = quantised(x)
    assert q.dtype == np.int8 and np.abs(q).max() == 127
    assert (np.abs(q * np.asarray(scale)[..., None] - x) <= np.asarray(scale)[..., None] / 2 + 1e-7).all()
