"""Codes, losses and gradients of a codebook against torch's autograd, written there as the paper has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config
from lm.losses import vq as losses
from lm.models.vq import Codebook, quantise, squared_distances, unit

K, C = 7, 5


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(3, 4, C)).astype(np.float32)
    return z, rng.normal(size=(K, C)).astype(np.float32), rng.normal(size=z.shape).astype(np.float32)


@pytest.mark.parametrize("of_length_1", [False, True])
def test_loss_and_gradients_are_those_of_torch(of_length_1):
    """Equation 3: a squared error of what is made of the codes, the codebook's loss and the commitment's."""
    torch = pytest.importorskip("torch")
    z, table, wanted = arrays()
    beta = 0.25

    def ours(z, table):
        if of_length_1:
            z, table = unit(z), unit(table)
        q = quantise(z, table)
        made = jnp.tanh(2.0 * q.vectors)  # any function that is not linear stands for the decoder
        losses_of = losses.codebook(z, q.chosen) + beta * losses.commitment(z, q.chosen)
        return jnp.sum(losses.squared_error(jnp.asarray(wanted), made) + losses_of), q.codes

    (loss, codes), gradients = jax.value_and_grad(ours, argnums=(0, 1), has_aux=True)(jnp.asarray(z), jnp.asarray(table))

    tz, te = (torch.tensor(x, requires_grad=True) for x in (z, table))
    uz, ue = (torch.nn.functional.normalize(x, dim=-1) for x in (tz, te)) if of_length_1 else (tz, te)
    found = torch.cdist(uz, ue).argmin(-1)
    e = ue[found]
    made = torch.tanh(2.0 * (uz + (e - uz).detach()))
    error = ((made - torch.tensor(wanted)) ** 2).mean(-1)
    total = (error + ((uz.detach() - e) ** 2).sum(-1) + beta * ((uz - e.detach()) ** 2).sum(-1)).sum()
    total.backward()

    assert codes.tolist() == found.tolist() and codes.dtype == jnp.int32
    assert float(loss) == pytest.approx(total.item(), rel=1e-5)
    for own, theirs in zip(gradients, (tz.grad, te.grad), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-4, atol=1e-6)


def test_the_nearest_row_is_that_of_a_search_over_all():
    z, table, _ = arrays(1)
    distances = ((z[:, :, None] - table) ** 2).sum(-1)
    q = quantise(jnp.asarray(z), jnp.asarray(table))
    np.testing.assert_allclose(q.distances, distances, rtol=1e-5, atol=1e-5)
    assert np.array_equal(q.codes, distances.argmin(-1)) and np.array_equal(q.chosen, table[q.codes])


def test_a_gradient_passes_straight_through():
    z, table, g = arrays(2)
    through = jax.grad(lambda z: jnp.sum(g * quantise(z, jnp.asarray(table)).vectors))(jnp.asarray(z))
    np.testing.assert_array_equal(through, g)
    own = jax.grad(lambda table: jnp.sum(g * quantise(jnp.asarray(z), table).vectors))(jnp.asarray(table))
    assert not np.any(own)  # the codebook learns from its own loss alone


def test_a_module_gives_the_rows_of_its_codes():
    c = config.Codebook(codes=K, size=C)
    module, z = Codebook(c), jnp.asarray(arrays(3)[0])
    boxed = module.init(jax.random.key(0), z)
    assert boxed["params"]["table"].names == ("codes", "code")
    variables = nn.unbox(boxed)
    q = module.apply(variables, z)
    rows = module.apply(variables, q.codes, method="rows")
    np.testing.assert_array_equal(rows, q.chosen)
    np.testing.assert_allclose(q.vectors, q.chosen, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(rows, axis=-1), 1.0, rtol=1e-6)
    again = module.apply(variables, 100.0 * z)
    assert np.array_equal(again.codes, q.codes)  # directions alone count


def test_how_evenly_codes_are_used():
    codes, weights = jnp.array([[0, 1, 1], [2, 2, 5]]), jnp.array([[1.0, 1, 1], [1, 1, 0]])
    found = losses.counts(codes, weights, K)
    assert found.tolist() == [1, 2, 2, 0, 0, 0, 0]
    shares = np.array([0.2, 0.4, 0.4])
    assert float(losses.perplexity(found)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert float(losses.perplexity(jnp.ones(K))) == pytest.approx(K, rel=1e-6)
    assert float(losses.perplexity(jnp.eye(K)[0])) == pytest.approx(1.0, rel=1e-6)


def test_bfloat16_vectors_are_compared_in_float32():
    c = config.Codebook(codes=K, size=C, unit=False)
    z = jnp.asarray(arrays(4)[0])
    q, variables = Codebook(c).init_with_output(jax.random.key(1), z.astype(jnp.bfloat16))
    assert q.vectors.dtype == q.chosen.dtype == jnp.float32
    table = nn.unbox(variables)["params"]["table"]
    rounded = z.astype(jnp.bfloat16).astype(jnp.float32)
    assert np.array_equal(q.codes, jnp.argmin(squared_distances(rounded, table), axis=-1))


def test_evenness_is_the_entropy_that_is_missing():
    """log K - H of the mean of softmax(-distances / temperature), over the vectors that count; its gradient is torch's."""
    torch = pytest.importorskip("torch")
    z, table, _ = arrays(5)
    weights = np.array([[1, 1, 0, 1]] * 3, np.float32)

    def ours(z, table):
        return losses.unevenness(quantise(z, table).distances, jnp.asarray(weights), temperature=0.7)

    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(jnp.asarray(z), jnp.asarray(table))
    tz, te = (torch.tensor(x, requires_grad=True) for x in (z, table))
    shares = torch.softmax(-(torch.cdist(tz, te) ** 2) / 0.7, dim=-1)[torch.tensor(weights) > 0].mean(0)
    wanted = np.log(K) + (shares * shares.log()).sum()
    wanted.backward()
    assert float(value) == pytest.approx(wanted.item(), rel=1e-5)
    for own, theirs in zip(gradients, (tz.grad, te.grad), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-4, atol=1e-6)
    same = jnp.zeros((3, 4, K))
    assert float(losses.unevenness(same, jnp.asarray(weights), temperature=1.0)) == pytest.approx(0.0, abs=1e-6)
