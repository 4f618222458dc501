"""The bound of masked diffusion is the average over all orders in which the tokens can be written, and samples agree."""

import itertools
from math import factorial, log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config
from lm.evaluation.bound import any_number, bound, each_number
from lm.types import Example, TokenStream
from tests.unit.evaluation.test_spans import model
from tests.unit.objectives.asking import BOS, MASK, TEXT, WORDS, V

LETTERS = range(TEXT, min(V, TEXT + 3))  # a vocabulary of 3
TOKENS = np.array([TEXT, TEXT + 2, TEXT + 1, TEXT], np.int32)


@pytest.fixture(scope="module")
def scorer():
    """(tokens [N, 4]) -> log-probabilities [N, 4, V] under a random encoder; the mask has none."""
    module, params = model("encoder")

    @jax.jit
    def logp(tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        logits = module.apply(
            {"params": params}, Example(TokenStream(tokens, positions, jnp.ones_like(tokens)), None, None, None)
        )
        return jax.nn.log_softmax(logits.astype(jnp.float32).at[..., MASK].set(-1e30), axis=-1)

    return lambda tokens: np.asarray(logp(jnp.asarray(tokens)), float)


def by_orders(scorer, text):
    """-log p(text), averaged over all orders in which its tokens are written one after another."""
    total = 0.0
    for order in itertools.permutations(range(len(text))):
        seen = np.full(len(text), MASK)
        for place in order:
            total -= scorer(seen[None])[0, place, text[place]]
            seen[place] = text[place]
    return total / factorial(len(text))


def test_all_numbers_of_masks_are_all_orders(scorer):
    """arXiv 2110.02037, equation 4, by enumeration: 24 orders of 4 tokens against 15 sets of masks."""
    module, params = model("encoder")
    texts = [TOKENS, TOKENS[::-1].copy(), TOKENS[:2]]
    found = bound(module, params, config.MaskedDiffusion(), WORDS, texts, each_number, draws=6)
    assert found.nats == pytest.approx([by_orders(scorer, text) for text in texts], rel=1e-5)
    assert found.error == 0 and found.tokens.tolist() == [4, 4, 2]
    assert found.nats_per_token == pytest.approx(found.nats.sum() / 10)


def test_a_decoder_has_the_bound_of_all_orders_after_its_first_token():
    """It predicts each token where it reads the one before, and all its tokens see each other."""
    module, params = model("decoder")

    def logp(tokens):
        stream = TokenStream(tokens, np.arange(len(tokens[0]))[None], np.ones_like(tokens), np.ones(tokens.shape, bool))
        logits = module.apply({"params": params}, Example(None, stream, None, None)).astype(jnp.float32)
        return np.asarray(jax.nn.log_softmax(jnp.roll(logits, 1, axis=1).at[..., MASK].set(-1e30), axis=-1), float)

    text = np.array([BOS, *TOKENS[:3]], np.int32)
    total = 0.0
    for order in itertools.permutations(range(1, len(text))):
        seen = np.append(BOS, np.full(len(text) - 1, MASK)).astype(np.int32)
        for place in order:
            total -= logp(seen[None])[0, place, text[place]]
            seen[place] = text[place]
    found = bound(module, params, config.MaskedDiffusion(), WORDS, [text], each_number, draws=6)
    assert found.nats == pytest.approx([total / factorial(3)], rel=1e-5)
    assert found.error == 0 and found.tokens.tolist() == [3]


def test_it_bounds_the_likelihood_of_a_random_order(scorer):
    """Jensen: the mean of -log p over orders is above -log of the mean of p over orders, which is a distribution of texts."""
    module, params = model("encoder")
    every = [np.array(t, np.int32) for t in itertools.product(LETTERS, repeat=2)]
    found = bound(module, params, config.MaskedDiffusion(), WORDS, every, each_number, draws=2)
    first = scorer(np.full((1, 2), MASK))[0]
    for text, nats in zip(every, found.nats, strict=True):
        ways = []
        for a, b in ((0, 1), (1, 0)):
            seen = np.full(2, MASK)
            seen[a] = text[a]
            ways.append(first[a, text[a]] + scorer(seen[None])[0, b, text[b]])
        assert nats >= -log(np.mean(np.exp(ways))) - 1e-6


@pytest.mark.parametrize("draw", [each_number, any_number])
def test_samples_agree_with_the_enumeration_within_their_error(draw):
    module, params = model("encoder")
    text = np.concatenate([[BOS], np.tile(TOKENS, 2)]).astype(np.int32)
    exact = bound(module, params, config.MaskedDiffusion(), WORDS, [text], each_number, draws=100)
    assert exact.error == 0 and exact.tokens.tolist() == [8]
    few = [bound(module, params, config.MaskedDiffusion(), WORDS, [text], draw, draws=8, seed=s) for s in range(40)]
    nats, errors = np.array([b.nats[0] for b in few]), np.array([b.error for b in few])
    assert abs(nats.mean() - exact.nats[0]) < 4 * nats.std() / len(few) ** 0.5
    assert 0.6 < np.sqrt((errors**2).mean()) / nats.std(ddof=1) < 1.6  # the error that is reported is the one that is seen


def test_the_sum_has_less_error_than_as_many_samples():
    module, params = model("encoder")
    text = np.tile(TOKENS, 2)
    c, v = config.MaskedDiffusion(), WORDS
    runs = lambda draw, draws: [bound(module, params, c, v, [text], draw, draws=draws, seed=s).nats[0] for s in range(40)]
    assert np.std(runs(each_number, 1)) < np.std(runs(any_number, 8))


def test_a_single_draw_has_no_error_estimate():
    module, params = model("encoder")
    assert np.isnan(bound(module, params, config.MaskedDiffusion(), WORDS, [TOKENS], any_number, draws=1).error)
