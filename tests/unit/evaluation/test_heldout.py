"""Held-out rows: all of them, or some that stand evenly over the split; blank rows count for nothing."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm import config, sharding
from lm.errors import UserError
from lm.evaluation import heldout
from lm.evaluation.heldout import HeldOut
from lm.objectives import DECLARATIONS, Declaration, Suit
from lm.recipes.pretrain import Pretraining
from lm.types import WeightedMean
from tests.fakes import Backwards


class Rows:
    """Rows whose loss is their number; past the last of 10 they are blank."""

    count = 10

    def __init__(self, **sizes):
        self.asked, self.sizes = [], sizes or {"one": 10}

    def rows(self, index):
        self.asked += index.tolist()
        return SimpleNamespace(index=index, weight=index < self.count)


@pytest.mark.parametrize(("limit", "chosen"), [(None, range(10)), (99, range(10)), (4, (0, 3, 6, 9)), (1, (0,))])
def test_rows_are_spread_evenly(limit, chosen, monkeypatch):
    monkeypatch.setattr(sharding, "global_batch", lambda make, index, mesh: make(index))
    rows = Rows()
    score = lambda params, b: {"loss": WeightedMean((b.index * b.weight).sum(), b.weight.sum())}
    mesh = sharding.make_mesh(config.Mesh(data=jax.device_count()))
    found = HeldOut(rows, score, 3, mesh, limit)(None)
    assert [i for i in rows.asked if i < 10] == list(chosen) and len(rows.asked) % 3 == 0
    assert found["loss"] == np.mean(chosen) and repr(found["tokens"]) == str(len(chosen)), "a count is an integer"
    assert set(found) == {"loss", "tokens", "perplexity"}  # a single source has no figures beside the total's


def test_each_of_several_sources_has_a_loss_by_the_way(monkeypatch):
    """No row is scored twice, and the total is that of all rows."""
    monkeypatch.setattr(sharding, "global_batch", lambda make, index, mesh: make(index))
    score = lambda params, b: {"loss": WeightedMean((b.index * b.weight).sum(), b.weight.sum())}
    mesh = sharding.make_mesh(config.Mesh(data=jax.device_count()))
    rows = Rows(near=4, far=1, other=5)
    found = HeldOut(rows, score, 3, mesh)(None)
    assert [i for i in rows.asked if i < 10] == list(range(10)) and len(rows.asked) == 3 * (2 + 1 + 2)
    assert (found["near/loss"], found["far/loss"], found["other/loss"]) == (1.5, 4.0, 7.0)
    assert found["loss"] == 4.5 and found["tokens"] == 10
    store = lambda tokens, size: SimpleNamespace(num_tokens=tokens + 1, num_documents=1, num_bytes=size)
    rows.stores = {"near": store(2, 8), "far": store(2, 4), "other": store(4, 4)}
    bits = HeldOut(rows, score, 3, mesh, factors=True)(None)
    for name, expected in (("near/", 1.5 * 2 / 8), ("far/", 4 * 2 / 4), ("other/", 7 * 4 / 4), ("", 4.5 * 8 / 16)):
        assert bits[f"{name}bits_per_byte"] == pytest.approx(expected / np.log(2))
    few = HeldOut(Rows(near=4, far=1, other=5), score, 3, mesh, 2)(None)  # the first and the last
    assert (few["near/loss"], few["other/loss"], few["loss"]) == (0.0, 9.0, 4.5) and "far/loss" not in few
    masked = lambda params, b: {"loss": WeightedMean(2.0 * (b.index == 5).sum(), (b.index == 5).sum())}
    assert set(HeldOut(rows, masked, 3, mesh)(None)) == {"loss", "other/loss", "tokens", "perplexity"}  # no mask, no loss


@pytest.mark.parametrize("factors", [True, False])
def test_bits_per_byte_are_those_of_objectives_that_say_so(factors, monkeypatch):
    """And of no objective that says nothing."""
    shape = SimpleNamespace(architecture="decoder")
    run = SimpleNamespace(
        objective=Backwards(), model=shape, evaluate=config.Evaluate(), train=config.Train(), data=config.Data()
    )
    what = SimpleNamespace(scores=lambda params, frozen, batch: {}, nats=True)
    parts = SimpleNamespace(run=run, rows={"holdout": Rows()}, task=what, mesh=None, test_size=1, scorer=lambda frozen: None)
    with pytest.raises(UserError, match="'backwards' does not suit the decoder"):
        Pretraining().evaluators(parts, None)
    suit = Suit(lambda c, data, v: None, factors=factors, reads_prefix=False)
    monkeypatch.setitem(DECLARATIONS, Backwards, Declaration(Backwards, {"decoder": suit}))
    assert [found.factors for found in Pretraining().evaluators(parts, None)] == [factors]
    run.data = config.Data(after="=")  # the loss is of a part of each text
    assert [found.factors for found in Pretraining().evaluators(parts, None)] == [False]


def test_intervals_are_over_documents_as_of_a_regression_with_clusters(monkeypatch):
    """Batches of two rows of eight tokens; documents begin at these tokens, and each batch is of the one at its second row."""
    linear_model = pytest.importorskip("statsmodels.api")
    monkeypatch.setattr(sharding, "global_batch", lambda make, index, mesh: make(index))
    rows, rng = Rows(near=6, far=4), np.random.default_rng(0)
    losses, weights = rng.normal(3.0, 1.0, 11), rng.integers(1, 9, 11)
    weigh = lambda b: weights[b.index] * b.weight
    score = lambda params, b: {"loss": WeightedMean((losses[b.index] * weigh(b)).sum(), weigh(b).sum())}
    stores = {"near": (0, 20, 50), "far": (0, 4, 8, 31)}
    sizes = {"near": (60, 140), "far": (40, 90)}
    rows.stores = {
        name: SimpleNamespace(
            offsets=np.array(at), num_tokens=sizes[name][0], num_bytes=sizes[name][1], num_documents=len(at) - 1
        )
        for name, at in stores.items()
    }
    rows.objective = SimpleNamespace(stride=8)
    mesh = sharding.make_mesh(config.Mesh(data=jax.device_count()))
    judge = HeldOut(rows, score, 2, mesh, factors=True)
    judge(None)
    assert judge.intervals() == {}  # three documents are too few
    monkeypatch.setattr(heldout, "ENOUGH", 2)
    judge = HeldOut(rows, score, 2, mesh, factors=True)
    assert judge.intervals() == {}
    figures, found = judge(None), judge.intervals()
    pairs = np.arange(10).reshape(5, 2)  # their second rows begin at tokens 8, 24, 40 of near, and 8, 24 of far
    of, total = weights[pairs].sum(1), (losses * weights)[pairs].sum(1)
    groups = [0, 1, 1, 5, 5]
    fit = linear_model.WLS(total / of, np.ones(5), weights=of).fit()
    fit = fit.get_robustcov_results("cluster", groups=groups, use_t=True)
    np.testing.assert_allclose(found["loss"], fit.conf_int()[0], rtol=1e-9)
    assert figures["loss"] == pytest.approx(fit.params[0]) and found["loss"][0] < figures["loss"] < found["loss"][1]
    for name in ("bits_per_byte", "perplexity"):
        assert found[name][0] < figures[name] < found[name][1]
    assert found["bits_per_byte"][1] / figures["bits_per_byte"] == pytest.approx(found["loss"][1] / figures["loss"])
    judge(None)
    assert judge.intervals() == found and set(found) == {"loss", "bits_per_byte", "perplexity"}
    assert HeldOut(rows, score, 10, mesh, 6).intervals() == {}
    whole = HeldOut(rows, score, 10, mesh, 5)
    whole(None)
    assert set(whole.intervals()) == {"loss", "perplexity"}  # two batches, one of each source
