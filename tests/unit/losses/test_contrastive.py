"""Two views of a text find each other: against torch's cross-entropy, whatever is padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lm import config
from lm.data.rows import Rows
from lm.errors import UserError
from lm.losses.contrastive import pairs, unit, views
from lm.recipes import task
from lm.types import Example, TokenStream
from tests.fakes import MemoryStore, small_model
from tests.unit.objectives.common import build, text


def stub(hidden):
    """An `apply` whose hidden vectors depend on the key of the dropout alone: hidden [2, B, P, D]."""
    calls = iter(hidden)

    def apply(variables, example, *, method, rngs):
        assert method == "hidden" and rngs["dropout"] is not None
        return jnp.asarray(next(calls))

    return apply


def test_it_is_the_cross_entropy_of_cosines():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 3, 2, 5)).astype(np.float32)
    weights = np.array([[1, 1], [1, 0], [1, 1]], np.float32)
    example = Example(None, None, None, weights)
    loss, accuracy = views(None, stub(hidden), example, jax.random.key(0), temperature=0.1)
    a, b = (torch.nn.functional.normalize(torch.tensor(h.reshape(6, 5)[[0, 1, 2, 4, 5]]), dim=-1) for h in hidden)
    logits = a @ b.T / 0.1
    wanted = torch.nn.functional.cross_entropy(logits, torch.arange(5), reduction="sum")
    assert float(loss.total) == pytest.approx(float(wanted), rel=1e-5) and float(loss.weight) == 5
    assert float(accuracy.total) == (logits.argmax(1) == torch.arange(5)).sum()


def test_pairs_find_each_other_as_in_clip():
    """The mean of torch's cross-entropies over rows and columns, with a pair of weight 0 left out; gradients too."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 5)).astype(np.float32)
    weights = np.array([1, 1, 0, 1, 1, 1], np.float32)
    x, y, log_scale = (torch.tensor(v[weights > 0] if np.ndim(v) else v, requires_grad=True) for v in (a, b, np.float32(1.7)))
    normal = torch.nn.functional.normalize
    logits = log_scale.exp() * normal(x, dim=-1) @ normal(y, dim=-1).T
    entropy = torch.nn.functional.cross_entropy
    wanted = (entropy(logits, torch.arange(5)) + entropy(logits.T, torch.arange(5))) / 2
    wanted.backward()

    def loss(a, b, log_scale):
        mean, hits = pairs(unit(a), unit(b), weights, jnp.exp(log_scale))
        return mean.mean, hits

    (found, hits), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(a, b, 1.7)
    assert float(found) == pytest.approx(wanted.item(), rel=1e-5)
    assert float(hits["a_to_b"].total) == (logits.argmax(1) == torch.arange(5)).sum()
    assert float(hits["b_to_a"].total) == (logits.argmax(0) == torch.arange(5)).sum()
    for ours, theirs in zip(gradients[:2], (x, y), strict=True):
        np.testing.assert_allclose(ours[weights > 0], theirs.grad.numpy(), atol=1e-5 * np.abs(theirs.grad.numpy()).max())
        assert not np.any(ours[weights == 0])
    assert float(gradients[2]) == pytest.approx(log_scale.grad.item(), rel=1e-4)


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_a_row_has_a_vector_for_each_text(architecture):
    lengths = [20, 30, 14, 9, 3, 40, 100]
    rows = Rows({"a": MemoryStore(text(sum(lengths)), lengths)}, build(config.Contrastive(), architecture), 0, shuffle=False)
    batch = rows.rows(np.arange(rows.count))
    read = getattr(batch, architecture)
    for i in range(rows.count):
        ends = [
            np.flatnonzero(read.segments[i] == s)[0 if architecture == "encoder" else -1]
            for s in range(1, read.segments[i].max() + 1)
        ]
        assert batch.where[i][batch.weights[i] > 0].tolist() == ends
    assert batch.tokens_asked() == batch.weights.sum() > 5


def test_a_model_without_dropout_is_refused():
    with pytest.raises(UserError, match="two views of a text differ by dropout alone, and the model has none"):
        task(config.Run(small_model("encoder"), objective=config.Contrastive()))


def test_vectors_of_different_texts_move_apart():
    """Sixty steps on sixteen random texts that begin alike."""
    model = small_model("encoder")
    model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, dropout=0.5))
    what = task(config.Run(model, objective=config.Contrastive()))
    tokens = np.random.default_rng(0).integers(2, model.vocab_size, (16, 12)).astype(np.int32)
    tokens[:, 0] = 1  # whose vector is the text's
    read = TokenStream(tokens, np.tile(np.arange(12, dtype=np.int32), (16, 1)), np.ones_like(tokens))
    batch = Example(read, None, np.zeros((16, 1), np.int32), np.ones((16, 1), np.float32), np.zeros((16, 1), np.int32))
    params = nn.unbox(what.init(jax.random.key(0), batch))
    tx = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key):
        loss = lambda p: what.loss(p, None, batch, {"dropout": key})[0].mean
        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state, before = tx.init(params), what.scores(params, None, batch)
    for i in range(60):
        params, state = step(params, state, jax.random.key(i))
    after = what.scores(params, None, batch)
    assert before["accuracy"].mean < 0.6 and after["accuracy"].mean > before["accuracy"].mean + 0.25
    assert after["loss"].mean < 0.5 * before["loss"].mean
