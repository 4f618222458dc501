"""What a step does with a task that uses every seam: `tests/toy.py`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, optim, sharding
from lm.training import loop
from lm.training.assembly import bytes_a_device, computation
from lm.training.step import STEP_METRICS, counted, make_step, plan_state
from lm.types import WeightedMean
from tests import toy


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(config.Mesh(), jax.devices()[:1])


def computed(mesh, microbatches=1):
    recipe, run = toy.Toy(), toy.run()
    run = replace(run, train=replace(run.train, microbatches=microbatches))
    rows = recipe.rows(run, None)["train"]
    return computation(run, toy.TASK, mesh, rows.lengths, recipe.row(rows))


def batch(mesh, first=0):
    return sharding.global_batch(toy.pairs, np.arange(first, first + 4), mesh)


def test_a_frozen_tree_is_read_and_neither_trained_nor_taken(mesh):
    made = computed(mesh)
    with sharding.use(mesh):
        state, frozen, rows = made.plan.create(0), toy.teacher(made.frozen), batch(mesh)
        params, teacher = np.array(state.params["kernel"]), np.array(frozen["kernel"])
        after, _ = made.step(state, frozen, rows)
        assert state.params["kernel"].is_deleted() and not frozen["kernel"].is_deleted()
        np.testing.assert_array_equal(frozen["kernel"], teacher)
        assert jax.tree.map(jnp.shape, after.params) == {"kernel": (toy.D, toy.D)}
        moved = np.array(after.params["kernel"]) - params
        # The first update of Adam is the rate times the gradient's sign, towards the teacher, for the tokens with loss.
        asked = np.unique(np.concatenate([e.decoder.tokens[np.array(e.weights) > 0] for e in (rows.better, rows.worse)]))
        assert 0 < len(asked) < toy.D
        np.testing.assert_array_equal(np.sign(moved[asked]), np.sign(teacher - params)[asked])
        # An argument, not a constant of the program: another tree of the same shapes compiles nothing.
        _, there = made.step(after, jax.tree.map(lambda x: x + 100, frozen), rows)
        assert made.step._cache_size() == 1 and float(there["loss"]) > 1000


def test_frozen_arrays_lie_as_parameters_of_their_names_do(mesh):
    made = computed(mesh)
    assert made.frozen["kernel"].sharding == made.plan.targets().params["kernel"].sharding
    assert bytes_a_device(made.frozen) == 4 * toy.D**2
    made.lower()  # without any array


def test_a_batch_of_another_kind_is_cut_and_counted(mesh):
    """The same update, metrics and counts whether a batch of pairs is cut in microbatches or not."""
    found = []
    for microbatches in (1, 2, 4):
        made = computed(mesh, microbatches)
        with sharding.use(mesh):
            state, rows = made.plan.create(0), batch(mesh)
            state, metrics = made.step(state, toy.teacher(made.frozen), rows)
        assert counted(np.asarray(state.seen)) == (int(rows.tokens_read()), int(rows.tokens_asked()))
        assert metrics.keys() == {*STEP_METRICS, "margin", "worse_loss"}
        found.append((state.params, metrics))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found[0], other)
    asked = np.asarray(rows.worse.weights).sum(1)
    assert len(set(asked.tolist())) > 1, "microbatches of equal weight would not tell a mean from a mean of means"
    assert int(rows.tokens_read()) == sum(int((e.decoder.segments > 0).sum()) for e in (rows.better, rows.worse))


def test_a_metric_must_not_take_the_name_of_a_steps_own(mesh):
    made = computed(mesh)
    wrong = lambda *args, **kwargs: (toy.loss(*args, **kwargs)[0], {"grad_norm": WeightedMean(1.0, 1.0)})
    tx, _ = optim.make(made.run.optimizer, 6)
    plan = plan_state(lambda key: toy.init(key, batch(mesh)), tx, mesh, ema=False)
    step = make_step(wrong, tx, plan, optimizer=made.run.optimizer, train=made.run.train)
    with sharding.use(mesh), pytest.raises(ValueError, match="grad_norm"):
        step.lower(plan.targets(), made.frozen, made.batch)


def test_a_task_says_what_it_counts(mesh):
    made = computed(mesh)
    tx, _ = optim.make(made.run.optimizer, 6)
    plan = plan_state(lambda key: toy.init(key, batch(mesh)), tx, mesh, ema=False)
    asked = lambda pair: pair.better.tokens_read()
    step = make_step(toy.loss, tx, plan, optimizer=made.run.optimizer, train=made.run.train, asked=asked)
    with sharding.use(mesh):
        rows = batch(mesh)
        state, _ = step(plan.create(0), toy.teacher(made.frozen), rows)
    assert counted(np.asarray(state.seen)) == (int(rows.tokens_read()), int(rows.better.tokens_read()))


def test_a_source_is_asked_for_each_step_with_the_state_before_it():
    step = lambda state, frozen, batch: (state + batch * frozen, {"loss": batch})
    seen = []
    source = lambda s, state: seen.append((s, state)) or state + s
    hook = lambda done, state, metrics: seen.append((done, state, metrics["loss"]))
    state = loop.run(1, step, source, [hook], steps=range(3, 5), frozen=10, clock=loop.Clock())
    assert seen == [(3, 1), (4, 41, 4), (4, 41), (5, 491, 45)] and state == 491
    assert loop.run(7, step, None, [], steps=range(5, 5), clock=loop.Clock()) == 7


def test_a_prefetched_source_ignores_the_state():
    source = loop.prefetched(lambda step: step * step, range(3, 6))
    assert [source(step, None) for step in range(3, 6)] == [9, 16, 25]
    loop.prefetched(lambda step: pytest.fail("asked for nothing"), range(3, 3))
