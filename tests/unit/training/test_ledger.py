"""The ledger: averages of hand-made rows, the steps of a budget, parameters; and that a step counts what it says."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, objectives, optim, sharding
from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, ReplacedTokens, Stack
from lm.data.rows import Rows
from lm.errors import UserError
from lm.models.transformer import abstract_params
from lm.objectives import Lengths
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.recipes import task
from lm.training.ledger import left_out, of_a_row, parameters, steps_for
from lm.training.step import counted, make_step, plan_state
from lm.types import Example, TokenStream
from tests.fakes import MemoryStore, small_model

V, D = 50, 8
STACK = Stack(1, {"L": Block(Attention(2), Mlp(32))}, position=Learned(16))


def decoder_rows(make):
    """Rows of a decoder whose segments, int [B, T], are `make(index)`; loss wherever there is text."""

    def rows(index):
        segments = make(index)
        return Example(None, TokenStream(segments, segments, segments), segments, (segments > 0).astype(np.float32))

    return SimpleNamespace(rows=rows, lengths=Lengths(None, 10), bytes_a_row=7 * 4.0)  # windows of 7 tokens, four bytes each


def test_a_row_by_hand():
    """Two rows of 5 and 4 tokens: in documents of 3, 2 and 4."""
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
    got = of_a_row(task(config.Run(Model(V, D, decoder=STACK))), decoder_rows(lambda index: segments[index]), 2)
    pairs = 6 + 3 + 10
    forward = 4 * 2 * 9 * D * D + 2 * 2 * pairs * D + 2 * 2 * 9 * D * 32 + 2 * 9 * D * V
    assert (got.flops, got.seen, got.loss_tokens, got.raw_bytes) == (3 * forward / 2, 4.5, 4.5, 28)
    second = of_a_row(task(config.Run(Model(V, D, decoder=STACK))), decoder_rows(lambda index: segments[index]), 1, first=1)
    assert second.seen == 4
    assert got.of(10) == {"model_flops": 15 * forward, "tokens_seen": 45, "tokens_with_loss": 45, "raw_bytes": 280}


def test_what_rows_leave_out_is_looked_for_everywhere():
    asked = []
    rows = SimpleNamespace(count=1000, left_out=lambda index: asked.append(index) or 0.1234567)
    assert left_out(rows) == 0.123457
    assert len(asked[0]) == 128 and (asked[0][0], asked[0][-1]) == (0, 999) and np.unique(np.diff(asked[0])).tolist() == [7, 8]
    rows.count = 3
    left_out(rows)
    assert asked[1].tolist() == [0, 1, 2]


# ---------------------------------------------------------------------------------------------------------- and the step


def store():
    """Documents of 5 to 20 tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 21, 40)
    return MemoryStore(rng.integers(10, V, lengths.sum()), lengths)


def masked_run(predict):
    """Of an encoder under a masked objective, or of two that detect what was replaced."""
    head = Head(tied=False, outputs=1) if predict in ("replaced", "replaced_chosen") else Head()
    generator = Model(V, 4, encoder=STACK, embed=Embed(width=D), head=Head(transform="gelu"))
    objective = ReplacedTokens(generator, rate=0.3, predict=predict) if predict else config.Masked(0.3)
    return config.Run(
        Model(V, D, encoder=STACK, head=head),
        config.Data(encoder_length=16),
        objective,
        train=config.Train(batch_size=4, microbatches=2),
    )


def four_rows(run):
    """The rows of the first step as an Example, their ledger, and how much of them is text, and is masked."""
    vocabulary = SimpleNamespace(vocab_size=V, bos_id=1, eos_id=2, mask_id=3, sentinel_ids=(), special=np.arange(V) < 10)
    objective = objectives.build(run.objective, "encoder", run.data, vocabulary)
    rows = Rows({"a": store()}, dataclasses.replace(objective, shortest=4), 0)  # so that some rows have padding
    example = rows.rows(np.arange(4))
    text, masks = int((example.encoder.segments > 0).sum()), int(example.weights.sum())
    assert 4 * 16 > text > masks > 4  # there is padding, and more text than is asked about
    return example, of_a_row(task(run), rows, 4), text, masks


@pytest.mark.parametrize("predict", [None, "replaced", "replaced_chosen", "masked", "all"])
def test_places_with_loss_are_those_of_the_model_that_is_trained(predict):
    """With "replaced" and "all" these are all that is text, otherwise the masked ones."""
    _, ledger, text, masks = four_rows(masked_run(predict))
    assert (4 * ledger.seen, 4 * ledger.loss_tokens) == (text, text if predict in ("replaced", "all") else masks)


@pytest.mark.parametrize(("predict", "dtype"), [("replaced", "float32"), ("masked", "float32"), (None, "bfloat16")])
def test_a_step_counts_what_the_ledger_says(predict, dtype):
    """In two microbatches; and the state keeps its dtypes, or it could not be saved and gone on with."""
    run = masked_run(predict)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, param_dtype=dtype))
    example, ledger, _, _ = four_rows(run)
    what, mesh = task(run), sharding.make_mesh(config.Mesh())
    tx, _ = optim.make(run.optimizer, 10)
    batch = jax.tree.map(jnp.asarray, example)
    with sharding.use(mesh):
        plan = plan_state(lambda key: what.init(key, batch), tx, mesh, ema=False)
        step = make_step(what.loss, tx, plan, optimizer=run.optimizer, train=run.train, asked=what.asked)
        state, _ = step(plan.create(0), None, batch)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, plan.targets())
    assert counted(np.asarray(state.seen)) == (4 * ledger.seen, 4 * ledger.loss_tokens)


# -------------------------------------------------------------------------------------------------------------- budgets


RUN = config.Run(Model(V, D, decoder=STACK), train=config.Train(batch_size=5))


def longer_and_longer(index):
    """Rows of the first step have 4 tokens, of the next 5, ..., up to 10."""
    return (np.arange(10) < np.minimum(4 + index // 5, 10)[:, None]).astype(np.int64)


@pytest.mark.parametrize("what", ["seen", "loss_tokens", "flops"])
def test_steps_come_nearest_to_a_budget_or_it_is_refused(what):
    rows = decoder_rows(longer_and_longer)
    spent = np.cumsum([5 * getattr(of_a_row(task(RUN), rows, 5, first=5 * s), what) for s in range(60)])
    found, refused = 0, 0
    for budget in np.linspace(spent[0] / 2, spent[-2], 97):
        nearest = int(np.abs(spent - budget).argmin())
        if abs(spent[nearest] - budget) <= 0.01 * budget:
            assert steps_for(task(RUN), rows, 5, what, budget) == nearest + 1
            found += 1
        else:
            with pytest.raises(UserError, match=rf"{nearest + 1} steps of .* {what} miss the budget .* by over 1 %; raise it"):
                steps_for(task(RUN), rows, 5, what, budget)
            refused += 1
    assert found > 10 and refused > 10


# ----------------------------------------------------------------------------------------------------------- parameters


def test_parameters_with_and_without_embeddings():
    """Tables of tokens, positions and types are left out; the projection from them and a head of its own are not."""
    model = Model(V, D, encoder=STACK, embed=Embed(width=4, types=2), head=Head(tied=False))
    tables, project, head = (V + 16 + 2) * 4, 4 * D, D * V
    shapes = abstract_params(model)
    got = parameters(shapes)
    trunk = sum(x.size for x in jax.tree.leaves(shapes["encoder"]))
    rest = got["parameters_without_embeddings"] - trunk
    assert got["parameters"] - got["parameters_without_embeddings"] == tables
    assert project + head <= rest <= project + head + D + V  # with their biases, if any
    assert got["parameters"] == sum(x.size for x in jax.tree.leaves(shapes))


def test_rows_that_change_are_counted_over_all_of_the_training():
    """A decoder whose tokens come to see what follows: attention's products double on the way."""
    run = config.Run(small_model("decoder"), config.Data(decoder_length=32), config.MaskedDiffusion(anneal=1.0))
    objective = objectives.build(run.objective, "decoder", run.data, DummyVocabulary(50))
    rows = Rows({"a": MemoryStore(np.full(4000, 30), [4000])}, objective, 0, total=4000)
    cost = lambda **how: of_a_row(task(run), rows, 200, **how).flops
    first, last = cost(first=0), cost(first=3800)
    assert first < cost() < last
    assert cost() == pytest.approx((first + last) / 2, rel=0.01)
