"""Any order: what is read and asked, that no token sees what comes later in the order, and how a gap is asked for."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config
from lm.config import Attention, Block, Embed, Head, Mlp, Model, Stack
from lm.data.rows import Rows
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives import any_order
from lm.objectives.prompts import Span
from lm.recipes.pretrain import objective_of
from tests.fakes import MemoryStore, random_params
from tests.unit.objectives.common import BOS, DATA, V, build, equal, first, rng, text, vocabulary

STACK = Stack(2, {"L": Block(Attention(2), Mlp(32))}, position=config.Rope())
MODEL = Model(V, 16, decoder=STACK, embed=Embed(ahead=65), head=Head(tied=False))
TEXT = np.array([BOS, 20, 21, 22], np.int32)


def test_docstring():
    e = first(lambda r: any_order.decoder(TEXT, r), lambda e: e.targets.tolist() == [21, 22, 20])
    equal(e.decoder.tokens, [BOS, 21, 22])
    equal(e.decoder.positions, [0, 2, 3])
    equal(e.decoder.ahead, [2, 3, 1])
    equal(e.weights, [1, 1, 1])


def test_all_orders_are_drawn_and_some_are_the_texts_own():
    orders = {tuple(any_order.decoder(TEXT, rng(s)).targets.tolist()) for s in range(200)}
    assert len(orders) == 6
    own = [any_order.decoder(TEXT, rng(s), left_to_right=0.5).targets.tolist() == [20, 21, 22] for s in range(600)]
    assert abs(np.mean(own) - (0.5 + 0.5 / 6)) < 0.07


@pytest.fixture(scope="module")
def model():
    module = Transformer(MODEL)
    return module, random_params(module, jax.tree.map(lambda x: x[None], any_order.decoder(TEXT, rng())), 0.3)


def logits(model, e):
    module, params = model
    return np.asarray(module.apply({"params": params}, jax.tree.map(lambda x: jnp.asarray(x)[None], replace(e, where=None))))[0]


def test_a_prediction_depends_on_the_set_that_it_has_seen_and_on_what_it_is_asked(model):
    """Not on later tokens; on earlier ones whatever their order, but for who asks; and on the position that is asked for."""
    tokens = text(6)
    e = any_order.ordered(tokens, np.array([0, 3, 1, 5, 2, 4]))
    before = logits(model, e)
    changed = tokens.copy()
    changed[2] += 1
    after = logits(model, any_order.ordered(changed, np.array([0, 3, 1, 5, 2, 4])))
    assert np.array_equal(before[:4], after[:4]) and not np.allclose(before[4], after[4])
    swapped = logits(model, any_order.ordered(tokens, np.array([0, 3, 1, 2, 5, 4])))
    assert not np.allclose(before[2], swapped[2])  # the same tokens seen, another position asked for
    module, params = model
    one = replace(e, decoder=replace(e.decoder, ahead=None))
    own = any_order.ordered(tokens, np.arange(6))
    plain = replace(own, decoder=replace(own.decoder, ahead=None))
    assert np.array_equal(logits(model, own), logits(model, plain))  # without a word of it, the next position is asked for
    assert not np.allclose(logits(model, one), before)


def test_a_gap_is_asked_for_after_both_sides(model):
    span = Span(*(np.array(x, np.int32) for x in ([50, 51], [52, 53], [54])), 2)
    (e,) = any_order.ask(span, vocabulary())
    equal(e.decoder.tokens, [50, 51, 54, 52])
    equal(e.decoder.positions, [0, 1, 4, 2])
    equal(e.decoder.ahead, [1, 4, 2, 3])
    equal(e.where, [2, 3])
    equal(e.targets, [52, 53])
    (suffix,) = any_order.ask(replace(span, right=np.zeros(0, np.int32)), vocabulary())
    equal(suffix.decoder.ahead, [1, 2, 3])
    equal(suffix.where, [1, 2])


def test_rows_and_refusals():
    o = build(config.AnyOrder(), "decoder")
    row = Rows({"a": MemoryStore(text(300), [300])}, o, 0).rows(np.arange(3))
    assert row.decoder.ahead.shape == row.targets.shape == (3, 64) and row.where is None
    assert sorted(row.decoder.ahead[0].tolist()) == list(range(1, 65))
    run = config.Run(MODEL, DATA, config.AnyOrder())
    assert objective_of(run, vocabulary()).window == 65
    small = replace(MODEL, embed=Embed(ahead=64))
    with pytest.raises(UserError, match="model.embed.ahead=64, .*set --config.model.embed.ahead=65"):
        objective_of(replace(run, model=small), vocabulary())
    with pytest.raises(UserError, match="take rope, learned or sinusoidal"):
        objective_of(replace(run, model=replace(MODEL, decoder=replace(STACK, position=config.Alibi()))), vocabulary())
