"""The variational bound: the divergence against torch and a plain formula, and what annealing and free nats change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses.variational import annealed, charged, divergence, importance, log_ratio, of_documents

SHAPE = (2, 3, 2, 5)
THERE = np.array([[1, 1, 0], [1, 0, 0]], bool)


def draws(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=SHAPE).astype(np.float32) for _ in range(3)]


def test_divergence_is_that_of_torch_and_of_the_closed_form():
    mean, log_var, _ = draws()
    found = np.asarray(divergence(mean, log_var, THERE))
    by_hand = np.zeros((2, 3))
    for b, m in zip(*np.nonzero(THERE), strict=True):
        for mu, var in zip(mean[b, m].ravel(), np.exp(log_var[b, m].ravel().astype(float)), strict=True):
            by_hand[b, m] += 0.5 * (mu * mu + var - 1 - np.log(var))
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    torch = pytest.importorskip("torch")
    normal, spread = torch.distributions.Normal, torch.exp(0.5 * torch.tensor(log_var))
    wanted = torch.distributions.kl_divergence(normal(torch.tensor(mean), spread), normal(0.0, 1.0)).sum((-2, -1))
    np.testing.assert_allclose(found, wanted.numpy() * THERE, rtol=1e-5)


def test_the_ratio_of_densities_is_that_of_torch():
    torch = pytest.importorskip("torch")
    mean, log_var, z = draws(1)
    normal, t = torch.distributions.Normal, torch.tensor
    wanted = normal(0.0, 1.0).log_prob(t(z)) - normal(t(mean), torch.exp(0.5 * t(log_var))).log_prob(t(z))
    np.testing.assert_allclose(log_ratio(z, mean, log_var), wanted.sum((-2, -1)).numpy(), rtol=2e-5, atol=1e-5)


def test_a_document_pays_its_free_nats_without_a_gradient():
    nats = jnp.array([[0.5, 3.0, 0.0], [2.5, 0.0, 0.0]])
    assert charged(nats, THERE, 2.0).tolist() == [[2.0, 3.0, 0.0], [2.5, 0.0, 0.0]]
    gradient = jax.grad(lambda x: jnp.sum(charged(x, THERE, 2.0)))(nats)
    assert gradient.tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


def test_the_weight_rises_with_what_is_done():
    progress = jnp.array([0.0, 0.1, 0.2, 0.7, 1.0])
    np.testing.assert_allclose(annealed(progress, 0.4, 0.5), [0.0, 0.125, 0.25, 0.5, 0.5], rtol=1e-6)
    assert annealed(progress, 0.0, 0.5).tolist() == [0.5] * 5


def test_sums_over_documents():
    values, segments = np.array([[1, 2, 4, 8, 16]], np.float32), np.array([[1, 1, 2, 3, 0]])
    assert of_documents(values, segments, 3).tolist() == [[3, 4, 8]]


def test_the_importance_weighted_bound_is_exact_where_the_draws_are_the_posterior():
    """x = z + noise: p(x) is known, and weights p(x | z) p(z) / q(z | x) of the true posterior are all p(x)."""
    x, rng = 1.3, np.random.default_rng(0)
    log_normal = lambda v, mean, var: -0.5 * ((v - mean) ** 2 / var + np.log(2 * np.pi * var))
    exact = log_normal(x, 0, 2)
    z = x / 2 + np.sqrt(0.5) * rng.normal(size=8)
    posterior = log_normal(x, z, 1) + log_normal(z, 0, 1) - log_normal(z, x / 2, 0.5)
    assert float(importance(jnp.asarray(posterior))) == pytest.approx(exact, rel=1e-5)
    z = rng.normal(size=(4000, 64))  # drawn from the prior: a bound of one draw, nearer with 64
    weights = jnp.asarray(log_normal(x, z, 1))
    one, many = float(weights.mean()), float(importance(weights.T).mean())
    assert one < many < exact + 1e-3 and exact - many < 0.02 < exact - one
