"""Multi-token prediction: what each head is asked, what it may see, and that the model beside it is untouched by them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config, flops
from lm.data.rows import pack, stack
from lm.losses.cross_entropy import cross_entropy
from lm.models.future import Future
from lm.models.transformer import Transformer, head_params
from lm.objectives import Lengths, causal
from lm.recipes import task
from lm.recipes.multi_token import ahead
from tests.fakes import small_model

MODEL = small_model("decoder")
V = MODEL.vocab_size


def batch(*lengths, seed=0):
    """Two rows: these texts, and the first of them alone."""
    rng = np.random.default_rng(seed)
    pieces = [causal.decoder(rng.integers(0, V, n + 1).astype(np.int32), rng) for n in lengths]
    return stack([pack(pieces, Lengths(None, 16)), pack(pieces[:1], Lengths(None, 16))])


@pytest.fixture(scope="module", params=[False, True], ids=["parallel", "sequential"])
def trained(request):
    what = task(config.Run(MODEL, objective=config.MultiToken(2, request.param, weight=0.5)))
    params = nn.unbox(what.init(jax.random.key(0), batch(7, 5)))
    rng = np.random.default_rng(1)
    return request.param, what, jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), params)


def test_ahead_docstring():
    rows = batch(3, 2)
    row = dataclasses.replace(rows, targets=np.array([[5, 6, 7, 8, 9, *[0] * 11]] * 2))
    targets, weights = ahead(row, 1)
    assert targets[0, :5].tolist() == [6, 7, 8, 9, 0] and weights[0, :6].tolist() == [1, 1, 0, 1, 0, 0]
    assert ahead(row, 2)[1].sum() == 1 + 1 and (np.asarray(ahead(row, 0)[1]) == row.weights).all()


def logits(params, sequential, rows):
    """float [heads + 1, B, T, V], by plain calls of the modules."""
    model, future = Transformer(MODEL), Future(MODEL, 2, sequential)
    variables = {"params": params["model"]}
    hidden = model.apply(variables, rows, method="hidden")
    embedded = model.apply(variables, rows.decoder, "decoder", method="embedded")
    later = future.apply({"params": params["future"]}, hidden, rows.decoder, embedded)
    return np.stack([np.asarray(model.apply(variables, h, method="logits"), float) for h in (hidden, *later)])


def test_the_loss_is_the_sum_over_heads_of_what_each_is_asked(trained):
    sequential, what, params = trained
    rows = batch(7, 5)
    mean, more = what.loss(params, None, rows, None)
    logp = logits(params, sequential, rows)
    logp = logp - np.log(np.exp(logp).sum(-1, keepdims=True))
    sums = np.zeros(3)
    for r, texts in enumerate(([(0, 7), (7, 12)], [(0, 7)])):
        for k in range(3):
            for first, stop in texts:
                for t in range(first, stop - k):
                    sums[k] -= logp[k, r, t, rows.targets[r, t + k]]
    assert float(mean.total) == pytest.approx(sums[0] + 0.5 * sums[1:].sum(), rel=1e-4)
    assert float(mean.weight) == 19 and float(more["later_1"].weight) == 19 - 3 and float(more["later_2"].weight) == 19 - 6
    assert [float(m.total) for m in more.values()] == pytest.approx(sums, rel=1e-4)
    alone = cross_entropy(params["model"], Transformer(MODEL).apply, rows, head_params=head_params, vocab_size=V)
    assert float(more["next"].total) == pytest.approx(float(alone.total), rel=1e-6)
    assert float(what.scores(params, None, rows)["loss"].total) == pytest.approx(float(alone.total), rel=1e-5)


def test_a_head_sees_no_token_that_it_predicts(trained):
    """In parallel a head sees what the model sees; in sequence also the tokens between the next one and its own."""
    sequential, _, params = trained
    rows, at = batch(12), 5
    before = logits(params, sequential, rows)[:, 0]
    for changed in range(at + 1, 12):
        tokens = rows.decoder.tokens.copy()
        tokens[0, changed] = (tokens[0, changed] + 1) % V
        other = dataclasses.replace(rows, decoder=dataclasses.replace(rows.decoder, tokens=tokens))
        after = logits(params, sequential, other)[:, 0]
        moved = np.abs(after - before)[:, at].max(axis=-1) > 1e-6
        assert moved.tolist() == [sequential and changed <= at + k for k in range(3)]


def test_what_is_saved_of_it_is_the_model(trained):
    _, what, params = trained
    model, own = what.writer(params, None)
    assert model.config == MODEL and own is params["model"]


def test_the_ledger_counts_the_heads(trained):
    """As many as XLA counts, of the layers, the projections of two vectors, and the logits of each head."""
    _, what, params = trained
    rows = batch(7, 5)
    wide = dataclasses.replace(MODEL, vocab_size=512, width=256)
    what = task(config.Run(wide, objective=config.MultiToken(2, trained[0])))
    shapes = nn.unbox(jax.eval_shape(what.init, jax.random.key(0), rows))
    loss = lambda params: what.loss(params, None, rows, None)[0].total
    xla = jax.jit(jax.grad(loss)).lower(shapes).cost_analysis()["flops"]
    ours = sum(
        flops.count(m, batch=2, decoder=16, predicted=p, causal_share=1.0).train for m, p in what.passes(Lengths(None, 16))
    )
    assert ours == pytest.approx(xla, rel=0.05)
