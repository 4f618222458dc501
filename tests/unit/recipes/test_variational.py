"""The variational autoencoder as a task: its loss by hand, its annealing as a function of the row, its held-out figures."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config
from lm.data.rows import Rows
from lm.errors import UserError
from lm.losses.log_probs import log_probs
from lm.models.bottleneck import gaussians
from lm.models.transformer import Transformer, head_params
from lm.recipes import joining, task
from lm.recipes.variational import NamingCollapse
from tests.fakes import MemoryStore, small_model
from tests.unit.objectives.common import BOS, EOS, RESERVED, build

V = 60
MODEL = replace(
    small_model("encoder_decoder"),
    vocab_size=V,
    bottleneck=config.Bottleneck(vectors=2, pool="queries", width=3, latent="gaussian", documents=8),
)


def rows(total=0, shuffle=False):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 14, 12)
    tokens, ends = rng.integers(RESERVED, V, lengths.sum()), np.cumsum(lengths)
    tokens[ends - lengths], tokens[ends - 1] = BOS, EOS
    data = config.Data(encoder_length=24, decoder_length=24)
    return Rows({"a": MemoryStore(tokens, lengths)}, build(config.Variational(), data=data), 0, None, shuffle, total)


@pytest.fixture(scope="module")
def batch():
    return rows().rows(np.arange(4))


@pytest.fixture(scope="module")
def params(batch):
    made = nn.unbox(jax.jit(task(config.Run(MODEL, objective=config.Variational())).init)(jax.random.key(0), batch))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), made)


def by_hand(params, batch, rngs=None):
    """Nats of the targets, and of the divergence of each row's documents: [B]."""
    model = Transformer(MODEL)
    settings = dict(head_params=head_params, vocab_size=V, rngs=rngs)
    nats = -(batch.weights * jax.jit(partial(log_probs, apply=model.apply, **settings))(params, example=batch)).sum(1)
    _, sown = model.apply({"params": params}, batch, method="hidden", mutable=["latents"])
    g = gaussians(sown)
    mean, var = np.asarray(g.mean, float), np.exp(np.asarray(g.log_var, float))
    each = 0.5 * (mean**2 + var - 1 - np.log(var)).sum((-1, -2))
    return np.asarray(nats), each, np.asarray(g.there)


def test_the_loss_is_what_it_says(batch, params):
    objective = config.Variational(weight=0.7, anneal=0.5, free=1.5)
    what = task(config.Run(MODEL, objective=objective))
    progress = np.array([0.0, 0.25, 0.5, 1.0], np.float32)
    mean, more = jax.jit(what.loss, static_argnames="rngs")(params, None, replace(batch, progress=progress), rngs=None)
    nats, each, there = by_hand(params, batch)
    weight = 0.7 * np.minimum(progress / 0.5, 1)
    wanted = nats.sum() + (weight[:, None] * np.where(there, np.maximum(each, 1.5), 0)).sum()
    assert float(mean.total) == pytest.approx(wanted, rel=1e-4) and float(mean.weight) == batch.weights.sum()
    assert float(more["divergence"].mean) == pytest.approx(each[there].mean(), rel=1e-4)
    assert float(more["divergence_weight"].mean) == pytest.approx(weight.mean(), rel=1e-5)
    assert float(more["reconstruction"].mean) == pytest.approx(nats.sum() / batch.weights.sum(), rel=1e-4)


def test_held_out_figures_are_the_bound_and_more_draws_tighten_it(batch, params):
    figures = {}
    for draws in (1, 16):
        what = task(config.Run(MODEL, objective=config.Variational(weight=0.0, draws=draws)))
        figures[draws] = {k: float(v.mean) for k, v in jax.jit(what.scores)(params, None, batch).items()}
    one, many = figures[1], figures[16]
    _, each, there = by_hand(params, batch)
    tokens = batch.weights.sum()
    assert one["loss"] == pytest.approx(one["reconstruction"] + each[there].sum() / tokens, rel=1e-4)
    assert one["divergence_share"] == pytest.approx((each[there].sum() / tokens) / one["loss"], rel=1e-4)
    assert "loss_importance" not in one and many["loss_importance"] < many["loss"]


def test_rows_say_how_much_of_the_training_is_done():
    training = rows(total=40, shuffle=True)
    assert training.rows(np.array([0, 10, 40, 80])).progress.tolist() == [0.0, 0.25, 1.0, 1.0]
    assert rows().rows(np.array([0, 1])).progress.tolist() == [1.0, 1.0]


def test_rows_of_more_documents_than_there_are_vectors_for_are_refused():
    found = rows()
    most = max(int(found.rows(np.arange(found.count)).encoder.segments.max()), 1)
    assert most <= found.documents <= most + 2
    joining.check_documents(MODEL, {"train": found})
    small = replace(MODEL, bottleneck=replace(MODEL.bottleneck, documents=1))
    with pytest.raises(UserError, match=f"rows have up to {found.documents} documents, and the bottleneck has vectors for 1"):
        joining.check_documents(small, {"train": found})


def test_a_model_that_draws_nothing_is_refused():
    with pytest.raises(UserError, match="set --config.model.bottleneck.latent=gaussian"):
        task(config.Run(small_model("encoder_decoder"), objective=config.Variational()))


@pytest.mark.parametrize("nats,named", [(0.05, 1.0), (0.2, 0.0)])
def test_a_collapse_is_named(nats, named):
    found = NamingCollapse(lambda params: {"divergence": nats}, 0.1)(None)
    assert found == {"divergence": nats, "posterior_collapse": named}
