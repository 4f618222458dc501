"""Preference losses against their papers' formulas in NumPy; gradients against finite differences and exact enumeration."""

from dataclasses import replace
from functools import cache, partial
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config
from lm.data.examples import ExampleBuilder
from lm.data.rows import blank, pack, stack
from lm.losses import preference, reward
from lm.losses.preference import METHODS, Answers, compared, judged, means
from lm.models.transformer import Transformer, head_params
from lm.types import Compared, Judged
from tests.fakes import WORDS, WordTokenizer, small_model, small_params

sigmoid = lambda x: 1 / (1 + np.exp(-x))


def log_probs(seed=0, rows=6):
    """Sums of log-probabilities and counts of tokens, float32 [rows, 2] each: own, the reference's, tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 9, (rows, 2)).astype(np.float32)
    own, theirs = (-(tokens * rng.uniform(0.1, 3.0, (rows, 2))).astype(np.float32) for _ in range(2))
    return own, theirs, tokens


def ratios():
    own, theirs, tokens = log_probs()
    return own[:, 0] - theirs[:, 0], own[:, 1] - theirs[:, 1], tokens


def dpo(beta=0.1):
    w, l, _ = ratios()
    return -np.log(sigmoid(beta * (w - l)))


def dpo_norm():
    w, l, n = ratios()
    return -np.log(sigmoid(5 * (w / n[:, 0] - l / n[:, 1])))


def ipo():
    w, l, n = ratios()
    return (w / n[:, 0] - l / n[:, 1] - 1 / (2 * 0.1)) ** 2


def hinge():
    w, l, _ = ratios()
    return np.maximum(0, 1 - 0.1 * (w - l))


def simpo():
    own, _, n = log_probs()
    w, l = (own / n).T
    return -np.log(sigmoid(2.0 * w - 2.0 * l - 1.0))


def orpo():
    own, _, n = log_probs()
    p = np.exp(own / n)
    odds = p / (1 - p)
    return -np.log(p[:, 0]) - 0.1 * np.log(sigmoid(np.log(odds[:, 0] / odds[:, 1])))


def cpo():
    own, _, n = log_probs()
    return -np.log(sigmoid(0.1 * (own[:, 0] - own[:, 1]))) - own[:, 0] / n[:, 0]


PAPERS = {f.__name__: f for f in (dpo, dpo_norm, ipo, hinge, simpo, orpo, cpo)}


def answers(method):
    own, theirs, tokens = log_probs()
    return Answers(own, theirs if method.reads_reference else None, tokens)


@pytest.mark.parametrize("name", PAPERS)
def test_a_row_of_the_table_is_its_paper(name):
    """DPO compares sums and IPO means: with answers of other lengths the two differ."""
    found = compared(answers(METHODS[name]), np.zeros(6, np.float32), METHODS[name])
    np.testing.assert_allclose(found["loss"][0], PAPERS[name](), rtol=2e-5)


def test_every_method_of_the_config_has_its_row_and_its_paper():
    assert set(get_args(get_type_hints(config.Preference)["method"])) == set(METHODS) == {*PAPERS, "kto"}
    assert all(method.paper.startswith("arXiv ") for method in METHODS.values())


def test_smoothing_is_the_share_of_wrong_preferences():
    w, l, _ = ratios()
    z, method = 0.1 * (w - l), METHODS["dpo"]
    found = compared(answers(method), np.zeros(6, np.float32), method, smoothing=0.2)["loss"][0]
    np.testing.assert_allclose(found, -0.8 * np.log(sigmoid(z)) - 0.2 * np.log(sigmoid(-z)), rtol=2e-5)


def test_a_margin_and_gamma_are_rewards_to_be_ahead_by():
    w, l, _ = ratios()
    method, margin = replace(METHODS["dpo"], gamma=0.3), np.arange(6, dtype=np.float32)
    found = compared(answers(method), margin, method)
    np.testing.assert_allclose(found["loss"][0], -np.log(sigmoid(0.1 * (w - l) - 0.3 - margin)), rtol=2e-5)
    np.testing.assert_allclose(found["margin"][0], 0.1 * (w - l), rtol=1e-5)
    np.testing.assert_array_equal(found["accuracy"][0], w > l)


def test_metrics_are_the_rewards_and_the_log_probabilities():
    (own, theirs, _), found = log_probs(), compared(answers(METHODS["dpo"]), np.zeros(6, np.float32), METHODS["dpo"])
    for i, name in enumerate(("chosen", "rejected")):
        np.testing.assert_allclose(found[f"reward_{name}"][0], 0.1 * (own - theirs)[:, i], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(found[f"log_prob_{name}"][0], own[:, i])


def test_kto_is_its_paper():
    """Equation 8, with other weights for both kinds; the divergence is a mean of mismatched pairs, at least 0."""
    own, theirs, tokens = log_probs(1, rows=7)
    good, method = np.array([1, 0, 0, 1, 0, 1, 1], np.float32), METHODS["kto"]
    for shift in (0.0, -40.0):
        a, other = (Answers(own[:, i] + shift * i, theirs[:, i], tokens[:, i]) for i in range(2))
        found = judged(a, other, good, method, desirable=1.5, undesirable=0.5)
        ratio, kl = own[:, 0] - theirs[:, 0], max(0.0, float(np.mean(own[:, 1] + shift - theirs[:, 1])))
        wanted = np.where(good, 1.5 * (1 - sigmoid(0.1 * (ratio - kl))), 0.5 * (1 - sigmoid(0.1 * (kl - ratio))))
        np.testing.assert_allclose(found["loss"][0], wanted, rtol=2e-5)
        np.testing.assert_allclose(found["kl"][0], kl, rtol=1e-5)
        metrics = {name: float(mean.mean) for name, mean in means(found).items()}
        np.testing.assert_allclose(metrics["reward_good"], 0.1 * ratio[good > 0].mean(), rtol=1e-4)
        np.testing.assert_allclose(metrics["reward_bad"], 0.1 * ratio[good == 0].mean(), rtol=1e-4)


def test_no_gradient_flows_through_the_divergence():
    own, theirs, tokens = log_probs(1, rows=7)

    def loss(other):
        a, b = Answers(own[:, 0], theirs[:, 0], tokens[:, 0]), Answers(other, theirs[:, 1], tokens[:, 1])
        return means(judged(a, b, np.ones(7, np.float32), METHODS["kto"]))["loss"].total

    assert float(loss(own[:, 1] + 50)) != float(loss(own[:, 1] + 60))
    np.testing.assert_array_equal(jax.grad(loss)(own[:, 1] + 50), np.zeros(7))


def test_a_reward_is_bradley_terry_with_margin_and_centring():
    rng = np.random.default_rng(0)
    r, margin = rng.normal(size=(5, 2)).astype(np.float32), rng.uniform(0, 1, 5).astype(np.float32)
    there = np.array([1, 1, 0, 1, 1], np.float32)
    found = reward.bradley_terry(r, margin, there, centre=0.01)
    wanted = -np.log(sigmoid(r[:, 0] - r[:, 1] - margin)) + 0.01 * (r[:, 0] + r[:, 1]) ** 2
    np.testing.assert_allclose(found["loss"][0], wanted, rtol=2e-5)
    mean = means(found)
    np.testing.assert_allclose(mean["loss"].mean, wanted[there > 0].mean(), rtol=2e-5)
    np.testing.assert_allclose(mean["accuracy"].mean, (r[:, 0] > r[:, 1])[there > 0].mean(), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------ of a model

LONG, ARCHITECTURES = 5, ("decoder", "encoder_decoder")
KINDS = {name: Judged if method.feedback else Compared for name, method in METHODS.items()}


def batch_of(architecture, kind=Compared, *, rewards=False, blanks=1, rows=3):
    """`rows` pairs of answers of one to four tokens, and blank ones."""
    rng = np.random.default_rng(3)
    builder = ExampleBuilder(WordTokenizer(), architecture, length=LONG, answer=4, prefix=False)
    make = builder.reward_example if rewards else builder.last_turn_example
    lengths = builder.reward_lengths if rewards else builder.answer_lengths
    draw = lambda low, high: rng.integers(3, len(WORDS), rng.integers(low, high + 1)).astype(np.int32)
    end, empty, sides = np.array([2], np.int32), blank(lengths), ([], [])
    for _ in range(rows):
        before = np.concatenate([builder.bos, draw(1, LONG - 1)])
        for side in sides:
            side.append(pack([make(before, np.concatenate([draw(0, 3), end]))], lengths))
    first, second = (stack([*side, *[empty] * blanks]) for side in sides)
    return kind(first, second, np.r_[np.arange(rows) % 2, np.zeros(blanks)].astype(np.float32))


@cache
def loss_of(architecture, name):
    """(params, reference, batch) -> the loss and the metrics of a method, jitted with the gradient."""
    model, method = small_model(architecture), METHODS[name]
    settings = dict(method=method, head_params=head_params, vocab_size=len(WORDS))

    def loss(params, reference, batch):
        found = means(
            preference.values(
                params, reference if method.reads_reference else None, Transformer(model).apply, batch, **settings
            )
        )
        return found["loss"].total, found

    return model, jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize(
    ("architecture", "name"), [*((a, "dpo") for a in ARCHITECTURES), ("decoder", "orpo"), ("decoder", "kto")]
)
def test_a_gradient_is_that_of_finite_differences(architecture, name):
    """Along a random direction. KTO's divergence, which has no gradient, is 0 here."""
    model, run = loss_of(architecture, name)
    params, reference = (small_params(model, seed) for seed in ((2, 1) if name == "kto" else (1, 2)))
    batch = batch_of(architecture, KINDS[name])
    (value, _), gradient = run(params, reference, batch)
    rng = np.random.default_rng(0)
    way = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    moved = lambda h: float(run(jax.tree.map(lambda p, w: p + h * w, params, way), reference, batch)[0][0])
    along = sum(float(jnp.vdot(g, w)) for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True))
    near, far = (moved(h) - moved(-h) for h in (1e-3, 2e-3))
    np.testing.assert_allclose(along, (8 * near - far) / 12e-3, rtol=3e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["orpo", "kto"])
def test_blank_rows_change_neither_loss_nor_gradient_and_make_no_nan(name):
    """Of ORPO an empty answer has the mean 0, whose odds are infinite; KTO's divergence is a mean over real rows."""
    model, run = loss_of("decoder", name)
    params, reference, batch = small_params(model, 1), small_params(model, 2), batch_of("decoder", KINDS[name])
    (value, found), gradient = run(params, reference, batch)
    more = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:2])]), batch)
    (padded, same), also = run(params, reference, more)
    np.testing.assert_allclose(padded, value, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), (same, also), (found, gradient))


def test_a_reference_that_is_the_model_gives_ln_2_and_no_margin():
    model, run = loss_of("decoder", "dpo")
    params = small_params(model, 1)
    batch = batch_of("decoder")
    (_, found), _ = run(params, params, batch)
    np.testing.assert_allclose(found["loss"].mean, np.log(1 + np.exp(batch.margin[:3])).mean(), rtol=1e-6)  # ln 2 without one
    assert float(found["margin"].total) == 0.0 and float(found["accuracy"].total) == 0.0
    assert float(found["log_prob_chosen"].mean) < 0


def test_dpo_learns_the_preference_where_answers_are_enumerated():
    """Over all 27 answers of 3 tokens: where a reward labels all pairs, the optimum of DPO is the reference times exp(reward /
    beta) (equation 4)."""
    rng = np.random.default_rng(0)
    n, method = 27, METHODS["dpo"]
    theirs, r = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    theirs = jax.nn.log_softmax(theirs)
    w, l = (x.ravel() for x in np.meshgrid(np.arange(n), np.arange(n)))
    p = sigmoid(r[w] - r[l]).astype(np.float32)

    def loss(logits):
        own = jax.nn.log_softmax(logits)
        a = Answers(jnp.stack([own[w], own[l]], 1), jnp.stack([theirs[w], theirs[l]], 1), np.ones((n * n, 2), np.float32))
        return jnp.mean(p * compared(a, np.zeros(n * n, np.float32), method)["loss"][0]) * 2

    optimum = jax.nn.log_softmax(theirs + r / method.beta)
    np.testing.assert_allclose(jax.grad(loss)(optimum), np.zeros(n), atol=1e-6)
    assert float(jnp.abs(jax.grad(loss)(theirs)).max()) > 1e-4
