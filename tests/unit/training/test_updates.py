"""Several updates in one step: the same as one after the other, and one step in all else."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm import config, optim, sharding
from lm.config import Optimizer, Schedule
from lm.training.step import Updates, make_step, plan_state
from lm.types import Example, TokenStream, WeightedMean


def rows(seed, shape):
    rng = np.random.default_rng(seed)
    one = jnp.ones((*shape, 1), jnp.int32)
    weights = rng.integers(1, 5, (*shape, 1))
    return Example(None, TokenStream(one, one, one), jnp.asarray(rng.normal(size=(*shape, 1))), jnp.float32(weights))


def loss(params, frozen, example, rngs):
    total = jnp.sum(example.weights * (params["kernel"] - example.targets) ** 2)
    noise = jax.random.uniform(rngs["dropout"])
    return WeightedMean(total, jnp.sum(example.weights)), {"noise": WeightedMean(noise, jnp.float32(1))}


def made(count, schedule, updates=None):
    tx, rate = optim.make(Optimizer(schedule=schedule, learning_rate=0.1), 10, updates=count)
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    init = lambda key: {"kernel": nn.LogicallyPartitioned(jnp.ones(3), ("embed",))}
    plan = plan_state(init, tx, mesh, ema=False)
    settings = dict(optimizer=Optimizer(), train=config.Train(max_skipped=4), updates=updates)
    return plan.create(0), make_step(loss, tx, plan, **settings), mesh, rate


def test_updates_of_a_step_are_steps_one_after_the_other():
    schedule = Schedule("constant", warmup=0)
    several, step, mesh, _ = made(3, schedule, Updates(3, lambda params, frozen, batch, key: batch))
    single, one, _, _ = made(1, schedule)
    parts = rows(0, (3, 4))
    with sharding.use(mesh):
        several, metrics = step(several, None, parts)
        alone = []
        for i in range(3):
            single, found = one(single, None, jax.tree.map(lambda x, i=i: x[i], parts))
            alone.append(found)
    np.testing.assert_allclose(several.params["kernel"], single.params["kernel"], rtol=1e-6)
    assert int(several.step) == 1 and int(single.step) == 3
    np.testing.assert_array_equal(several.seen, single.seen)
    weights = np.asarray(parts.weights).sum(axis=(1, 2))
    losses = [float(found["loss"]) for found in alone]
    np.testing.assert_allclose(float(metrics["loss"]), np.average(losses, weights=weights), rtol=1e-6)
    np.testing.assert_allclose(float(metrics["grad_norm"]), np.mean([found["grad_norm"] for found in alone]), rtol=1e-6)
    np.testing.assert_allclose(float(metrics["noise"]), np.mean([found["noise"] for found in alone]), rtol=1e-6)
    assert len({float(found["noise"]) for found in alone}) == 3  # each update has a key of its own


def test_updates_are_made_of_the_state_before_the_step_and_its_key():
    def batches(params, frozen, batch, key):
        moved = batch.replace(targets=batch.targets + params["kernel"][0] + jax.random.normal(key))
        return jax.tree.map(lambda x: jnp.stack([x, x]), moved)

    found = []
    for _ in range(2):
        state, step, mesh, _ = made(2, Schedule("constant", warmup=0), Updates(2, batches))
        with sharding.use(mesh):
            found.append([float(step(state, None, rows(0, (4,)))[1]["loss"])])
    assert found[0] == found[1]


def test_a_schedule_counts_steps_and_skipped_updates_count_one_by_one():
    schedule = Schedule("linear", warmup=0, final=0.0)
    state, step, mesh, rate = made(2, schedule, Updates(2, lambda params, frozen, batch, key: batch))
    assert float(rate(5)) == np.float32(0.05)  # what is logged for the sixth of ten steps
    broken = rows(0, (2, 4))
    broken = broken.replace(targets=broken.targets.at[1].set(jnp.nan))
    with sharding.use(mesh):
        for _ in range(5):
            state, metrics = step(state, None, rows(1, (2, 4)))
        before = np.asarray(state.params["kernel"])
        state, metrics = step(state, None, broken)
        assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"]), int(state.step)) == (1, 1, 6)
        moved = np.asarray(state.params["kernel"])
        assert (moved != before).all() and np.isfinite(moved).all()  # by the first of the two alone
