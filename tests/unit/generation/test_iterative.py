"""Mask-Predict follows its schedule, and Gibbs sampling is the chain that it should be, by exact enumeration."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lm import config
from lm.generation.diffusion import _filled, fill, pseudo_log_probs
from lm.generation.padding import left_padded
from lm.types import Example, TokenStream
from tests.fakes import random_params
from tests.unit.evaluation.test_spans import model as with_positions
from tests.unit.objectives.asking import BOS, MASK, TEXT, WIDE

FORBIDDEN = np.arange(WIDE) < TEXT
ROW = np.array([BOS, TEXT, MASK, MASK, TEXT + 1, MASK, MASK, MASK], np.int32)


@cache
def model():
    """An encoder with learned positions and large weights, so that each mask is predicted by its own neighbours."""
    module, _ = with_positions("encoder", config.Learned(64))
    one = jnp.zeros((1, 4), jnp.int32)
    return module, random_params(module, Example(TokenStream(one, one, one), None, None, None), 1.0)


def log_probs(tokens):
    """float64 [T, V] of the encoder, computed without `fill`."""
    module, params = model()
    one = np.asarray(tokens, np.int32)[None]
    read = TokenStream(one, np.arange(one.shape[1])[None], np.ones_like(one))
    logits = np.array(module.apply({"params": params}, Example(read, None, None, None)), float)[0]
    logits[:, FORBIDDEN] = -np.inf
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def filled(rows, **settings):
    module, params = model()
    stream = left_padded(rows)
    return np.asarray(fill(module, params, stream, stream.tokens == MASK, jax.random.key(0), forbidden=FORBIDDEN, **settings))


def mask_predict(tokens, iterations):
    """Algorithm of arXiv 1904.09324, section 3, word for word; also the number of masks that each iteration predicts."""
    tokens, masked = tokens.copy(), np.flatnonzero(tokens == MASK)
    p, sizes = np.zeros(len(tokens)), []
    for t in range(iterations):
        n = len(masked) * (iterations - t) // iterations
        again = sorted(masked, key=lambda i: p[i])[:n] if t else list(masked)
        tokens[again] = MASK
        table = log_probs(tokens)
        for i in again:
            tokens[i], p[i] = table[i].argmax(), table[i].max()
        sizes.append(n)
    return tokens, sizes


@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 10])
def test_mask_predict_is_the_published_algorithm(iterations):
    wanted, _ = mask_predict(ROW, iterations)
    assert filled([ROW], steps=iterations, order="mask_predict")[0].tolist() == wanted.tolist()


def test_one_iteration_of_mask_predict_is_each_token_by_itself():
    alone = np.where(ROW == MASK, log_probs(ROW).argmax(-1), ROW)
    assert filled([ROW], steps=1, order="mask_predict")[0].tolist() == alone.tolist()
    assert mask_predict(ROW, 10)[0].tolist() != alone.tolist()  # so that the schedule is what is tested above


def test_mask_predict_takes_back_the_least_confident_by_a_linear_schedule():
    """Traced by hand: 4 places and 4 iterations predict 4, 3, 2 and 1 of them, and confidence is that of the last time."""
    a, b = 1, 2  # tokens; 0 is the mask
    confidence = [  # by the masks that are left: (token, probability) at each place
        ((1, 1, 1, 1), [(a, 0.9), (a, 0.5), (a, 0.6), (a, 0.7)]),  # takes back 1, 2 and 3
        ((0, 1, 1, 1), [None, (b, 0.55), (b, 0.95), (b, 0.65)]),  # takes back 1 and 3
        ((0, 1, 0, 1), [None, (a, 0.8), None, (a, 0.75)]),  # takes back 3
        ((0, 0, 0, 1), [None, None, None, (b, 0.6)]),
    ]
    seen = []

    def predict(tokens, left):
        jax.debug.callback(lambda *now: seen.append([x[0].astype(int).tolist() for x in now]), tokens, left, ordered=True)
        logits = jnp.full((1, 4, 3), -1e9)
        for masks, found in confidence:
            table = np.full((4, 3), 1e-9)
            for place, one in enumerate(found):
                token, p = one or (0, 1.0)
                table[place] = (1 - p) / 2
                table[place, token] = p
            logits = jnp.where((left[0] == jnp.array(masks, bool)).all(), jnp.log(table)[None], logits)
        return logits

    tokens, masked = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    settings = dict(steps=4, temperature=0.0, forbidden=None)
    out = _filled(predict, tokens, masked, jax.random.key(0), order="mask_predict", **settings)
    jax.effects_barrier()
    assert out.tolist() == [[a, a, b, b]]
    assert seen == [
        [[0, 0, 0, 0], [1, 1, 1, 1]],
        [[a, 0, 0, 0], [0, 1, 1, 1]],
        [[a, 0, b, 0], [0, 1, 0, 1]],
        [[a, a, b, 0], [0, 0, 0, 1]],
    ]


# ------------------------------------------------------------------------------------------------------------------ Gibbs

V, T, ROWS = 5, 3, 20_000
JOINT = np.random.default_rng(0).dirichlet(np.full(V**T, 0.3)).reshape((V,) * T)


def conditionals(joint, place):
    """float [V, V, V, V]: of the token at a place given the others; the last axis is that token."""
    moved = np.moveaxis(joint, place, -1)
    p = moved / moved.sum(-1, keepdims=True)
    return np.moveaxis(np.broadcast_to(np.expand_dims(p, place), (*(V,) * T, V)), -1, -1)


def toy(joint):
    """`predict` of a model that knows the joint distribution: each token's marginal while all are masks, and then its
    distribution given all others."""
    tables = jnp.log(jnp.asarray(np.stack([conditionals(joint, i) for i in range(T)]), jnp.float32))
    marginals = jnp.log(jnp.asarray(np.stack([joint.sum(tuple(j for j in range(T) if j != i)) for i in range(T)]), jnp.float32))

    def predict(tokens, left):
        x = jnp.minimum(tokens, V - 1)  # at a mask any index does, as the distribution there does not depend on it
        given = jnp.stack([tables[i][x[:, 0], x[:, 1], x[:, 2]] for i in range(T)], axis=1)
        return jnp.where(left.all(axis=1)[:, None, None], marginals, given)

    return predict


def chain(joint, steps, *, temperature=1.0, kept=V):
    """The exact distribution after the first step and `steps` updates of one place at random, from the `kept` likeliest."""
    states = list(itertools.product(range(V), repeat=T))
    index = {s: i for i, s in enumerate(states)}
    marginals = [joint.sum(tuple(j for j in range(T) if j != i)) for i in range(T)]
    hot = lambda p: p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    start = np.array([np.prod([hot(marginals[i])[s[i]] for i in range(T)]) for s in states])
    update = np.zeros((V**T, V**T))
    for s in states:
        for place in range(T):
            p = hot(conditionals(joint, place)[s])
            p = np.where(p >= np.sort(p)[-kept], p, 0)
            for token in range(V):
                to = (*s[:place], token, *s[place + 1 :])
                update[index[s], index[to]] += p[token] / p.sum() / T
    return start @ np.linalg.matrix_power(update, steps)


def agrees(drawn, wanted):
    """The p-value of a chi-squared test over the states that are expected five times or more, the others as one."""
    counts = np.bincount(np.ravel_multi_index(drawn.T, (V,) * T), minlength=V**T)
    assert not counts[wanted < 1e-12].any()
    often = wanted * len(drawn) >= 5
    rest = lambda x: np.append(x[often], x[~often].sum())
    observed, expected = rest(counts), rest(wanted * len(drawn))
    kept = expected > 0
    return stats.chisquare(observed[kept], expected[kept] * observed[kept].sum() / expected[kept].sum()).pvalue


def sampled(joint, **settings):
    tokens, masked = jnp.full((ROWS, T), V, jnp.int32), jnp.ones((ROWS, T), bool)
    settings = dict(temperature=1.0, forbidden=None, order="gibbs") | settings
    return np.asarray(_filled(toy(joint), tokens, masked, jax.random.key(1), **settings))


@pytest.mark.parametrize("updates", [0, 1, 3])
def test_gibbs_sampling_is_exactly_its_chain(updates):
    assert agrees(sampled(JOINT, steps=updates + 1), chain(JOINT, updates)) > 1e-3


def test_gibbs_sampling_comes_to_the_joint_distribution():
    """Its conditional distributions are those of one joint, which is the chain's stationary distribution."""
    drawn, joint = sampled(JOINT, steps=80), JOINT.reshape(-1)
    np.testing.assert_allclose(chain(JOINT, 79), joint, atol=1e-3)
    assert agrees(drawn, joint) > 1e-3
    assert agrees(sampled(JOINT, steps=1), joint) < 1e-9  # independent draws do not


def test_gibbs_sampling_has_a_temperature_and_the_likeliest_tokens_after_a_burn_in():
    wanted = chain(JOINT, 2, temperature=0.5)
    assert agrees(sampled(JOINT, steps=3, temperature=0.5), wanted) > 1e-3
    assert agrees(sampled(JOINT, steps=3, top_k=2, burn_in=1), chain(JOINT, 2, kept=2)) > 1e-3
    assert agrees(sampled(JOINT, steps=3, top_k=2, burn_in=3), chain(JOINT, 2)) > 1e-3


@pytest.mark.parametrize("order", ["mask_predict", "gibbs"])
def test_what_was_given_stays_and_no_mask_is_left(order):
    rows = [ROW, np.array([BOS, MASK, TEXT], np.int32), np.array([BOS, TEXT], np.int32)]
    for steps in (1, 2, 6):
        tokens, given = filled(rows, steps=steps, order=order, temperature=1.0), left_padded(rows).tokens
        assert np.array_equal(tokens[given != MASK], given[given != MASK])
        assert not FORBIDDEN[tokens[given == MASK]].any()


def test_pseudo_log_probs_hide_one_token_at_a_time():
    module, params = model()
    rows = [np.array([BOS, TEXT, TEXT + 2, TEXT + 1, TEXT + 3], np.int32), np.array([BOS, TEXT + 1, TEXT], np.int32)]
    stream = left_padded(rows)
    asked = (stream.tokens >= TEXT) & (np.arange(5) > 2)
    got = np.asarray(pseudo_log_probs(module, params, stream, asked, MASK, most=2))
    for row, some, alone in zip(got, asked, rows, strict=True):
        for place in np.flatnonzero(some):
            own = place - (len(some) - len(alone))
            hidden = alone.copy()
            hidden[own] = MASK
            one = hidden[None]
            read = TokenStream(one, np.arange(len(alone))[None], np.ones_like(one))
            logits = np.array(module.apply({"params": params}, Example(read, None, None, None)), float)[0, own]
            wanted = logits[alone[own]] - np.log(np.exp(logits).sum())
            assert row[place] == pytest.approx(wanted, abs=1e-4)
    assert (got[~asked] == 0).all()
