"""With 8 simulated devices (see test_multidevice.py): losses and updates of tree-LSTMs equal those of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, optim, sharding
from lm.data import trees
from lm.data.corpus import listops
from lm.data.rows import blank, pack, stack
from lm.objectives import Lengths
from lm.objectives.streams import stream
from lm.recipes import task
from lm.training.step import make_step, plan_state
from lm.types import Example, TreeSizes
from tests import nested

MESHES = {
    "data": config.Mesh(data=8),
    "fsdp": config.Mesh(data=1, fsdp=8),
    "fsdp and tensor": config.Mesh(data=1, fsdp=4, tensor=2),
}
LENGTHS = Lengths(40, None, 4, tree=TreeSizes(24, 2, 3))


def example(index: int) -> Example:
    """An expression, its digits and operators as ids."""
    record = listops.expression(1, index, depth=3, most=8)
    nodes = trees.folded(trees.parse(record.tree), 3)
    ids = [4 + int(word) if word.isdigit() else 20 + len(word) for word in nodes.read]
    encoder = dataclasses.replace(stream(np.array(ids)), tree=trees.arrays(nodes))
    return Example(encoder, None, np.array([int(record.label)]), np.ones(1, np.float32), np.array([len(ids) - 1]))


def batch(seed: int) -> Example:
    """Eight rows of one to four trees, the last of them blank."""
    rows = [pack([example(40 * seed + 4 * row + i) for i in range(1 + row % 4)], LENGTHS) for row in range(7)]
    return stack([*rows, blank(LENGTHS)])


def steps(children: int | None, mesh, devices=None) -> tuple[list[float], list[np.ndarray]]:
    run = dataclasses.replace(nested.run(nested.Path("unused"), children), mesh=mesh)
    mesh = sharding.make_mesh(run.mesh, devices)
    what = task(run)
    tx, _ = optim.make(run.optimizer, run.train.steps)
    rows = jax.tree.map(jnp.asarray, batch(0))
    with sharding.use(mesh):
        plan = plan_state(lambda key: what.init(key, rows), tx, mesh, ema=False)
        step = make_step(what.loss, tx, plan, optimizer=run.optimizer, train=run.train, asked=what.asked)
        state, losses = plan.create(0), []
        for s in range(3):
            made = batch(s)
            take = lambda index, made=made: jax.tree.map(lambda x: x[index], made)
            state, metrics = step(state, None, sharding.global_batch(take, np.arange(8), mesh))
            losses.append(float(metrics["loss"]))
    return losses, [np.asarray(x) for x in jax.tree.leaves(state.params)]


@pytest.fixture(scope="module", params=[None, 3])
def alone(request):
    return request.param, steps(request.param, config.Mesh(), jax.devices()[:1])


@pytest.mark.parametrize("name", MESHES)
def test_sharded_equals_unsharded(alone, name):
    children, (losses, params) = alone
    found, moved = steps(children, MESHES[name])
    np.testing.assert_allclose(found, losses, rtol=2e-5)
    for a, b in zip(moved, params, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
