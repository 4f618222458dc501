"""Losses of distillation against trl's and torch's."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Data, Distill, Masked, Run
from lm.losses import distill
from lm.recipes.distill_task import task
from lm.types import Example

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


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A random BERT and a random DistilBERT of transformers, each (theirs, (ours, its parameters))."""
    pytest.importorskip("transformers")
    from tests.parity import tiny

    return tiny, *(tiny.both(tiny.CASES[name], tmp_path_factory.mktemp(name)) for name in ("bert", "distilbert"))


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_step_of_distilberts_script(pair, everywhere):
    """The script's step (transformers, research_projects/distillation/distiller.py): KL at all tokens or, if restricted,
    at the masked ones; cross-entropy at these; 1 - cosine of the last hidden states at all tokens. Value and gradient."""
    torch = pytest.importorskip("torch")
    F, t = torch.nn.functional, 2.0
    tiny, (theirs, (teacher, frozen)), (theirs_small, (student, params)) = pair
    rng, seen = np.random.default_rng(1), np.arange(tiny.T) < np.array([[tiny.T], [tiny.T - 5]])
    tokens = np.where(seen, rng.integers(3, tiny.V, (2, tiny.T)), 0).astype(np.int32)
    where = np.array([[0, 4, 7], [2, 5, 0]], np.int32)  # the last one is padding
    weights, targets = np.array([[1, 1, 1], [1, 1, 0]], np.float32), rng.integers(3, tiny.V, (2, 3)).astype(np.int32)

    labels = np.full((2, tiny.T), -100)
    for row, place in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        labels[row, where[row, place]] = targets[row, place]
    mask, labels = torch.tensor(seen), torch.tensor(labels)
    given = dict(input_ids=torch.tensor(tokens).long(), attention_mask=mask.long(), output_hidden_states=True)
    small = theirs_small(**given)
    with torch.no_grad():
        large = theirs(**given)
    chosen = mask if everywhere else labels > -1
    soft = (F.log_softmax(small.logits[chosen] / t, -1), F.softmax(large.logits[chosen] / t, -1))
    total = 5 * F.kl_div(*soft, reduction="batchmean") * t**2 + 2 * F.cross_entropy(
        small.logits.view(-1, tiny.V), labels.view(-1)
    )
    x, y = small.hidden_states[-1][mask], large.hidden_states[-1][mask]
    total = total + F.cosine_embedding_loss(x, y, torch.ones(len(x)))
    gradients = torch.autograd.grad(total, [p for p in theirs_small.parameters() if p.requires_grad])

    recipe = Distill("there", logits=5.0, labels=2.0, hidden=1.0, temperature=t, everywhere=everywhere)
    data = Data(encoder_length=tiny.T)
    run = Run(student.config, data, Masked(), recipe=recipe)
    made = task(run, SimpleNamespace(model=teacher.config, params=lambda target: frozen))
    example = Example(tiny.stream(tokens, seen), None, targets, weights, where)

    def loss(params):
        found, means = made.loss(params, frozen, example, rngs=None)
        return found.mean, means

    (value, means), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert float(means["divergence"].weight) == (seen.sum() if everywhere else weights.sum())
    assert float(means["hidden"].weight) == seen.sum() and float(means["cross_entropy"].weight) == weights.sum()
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    norm = np.sqrt(sum(float((g**2).sum()) for g in gradients))
    np.testing.assert_allclose(np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient))), norm, rtol=1e-4)
