"""Losses of distillation against trl's and torch's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses import distill

V, B, T = 11, 2, 6
RNG = np.random.default_rng(0)
STUDENT, TEACHER = (3 * RNG.normal(size=(B, T, V)).astype(np.float32) for _ in range(2))


def test_divergence_is_trls():
    torch = pytest.importorskip("torch")
    gkd = pytest.importorskip("trl.experimental.gkd", exc_type=ImportError)
    jsd = gkd.GKDTrainer.generalized_jsd_loss
    for beta, temperature in itertools.product((0.0, 0.1, 0.5, 0.9, 1.0), (1.0, 2.0)):
        a, b = torch.tensor(STUDENT, requires_grad=True), torch.tensor(TEACHER)
        theirs = jsd(a, b, beta=beta, temperature=temperature, reduction="sum")
        theirs.backward()
        ours = lambda x, beta=beta, t=temperature: distill.divergence(x, TEACHER, beta=beta, temperature=t).sum() / t**2
        value, gradient = jax.value_and_grad(ours)(STUDENT)
        np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
        np.testing.assert_allclose(gradient, a.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_the_triple_loss_is_distilberts():
    """Its training script's sum: 5 KL at temperature 2 (batchmean, times T^2), 2 cross-entropy, 1 cosine, on torch's losses."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    targets, t = RNG.integers(0, V, (B, T)), 2.0
    hidden = RNG.normal(size=(2, B, T, 7)).astype(np.float32)
    a, b = torch.tensor(STUDENT.reshape(-1, V), requires_grad=True), torch.tensor(TEACHER.reshape(-1, V))
    x, y = (torch.tensor(h.reshape(-1, 7), requires_grad=i == 0) for i, h in enumerate(hidden))
    soft = F.kl_div(F.log_softmax(a / t, -1), F.softmax(b / t, -1), reduction="batchmean") * t**2
    hard = F.cross_entropy(a, torch.tensor(targets.reshape(-1)))
    total = 5 * soft + 2 * hard + F.cosine_embedding_loss(x, y, torch.ones(len(x)))
    total.backward()

    def ours(logits, own):
        apart = distill.divergence(logits, TEACHER, temperature=t).mean()
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()
        return 5 * apart + 2 * nats + distill.cosine_distance(own, hidden[1]).mean()

    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(STUDENT, hidden[0])
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    np.testing.assert_allclose(gradients[0].reshape(-1, V), a.grad.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients[1].reshape(-1, 7), x.grad.numpy(), rtol=1e-4, atol=1e-6)
