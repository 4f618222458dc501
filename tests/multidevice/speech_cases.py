"""With 8 simulated devices (see test_multidevice.py): speech's losses and updates equal those of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, optim, sharding
from lm.data.sound_rows import _padded, _stream, _within, stream_of
from lm.recipes import task
from lm.training.step import make_step, plan_state
from lm.types import Example, Unaligned
from tests import speech

MESHES = {
    "data": config.Mesh(data=8),
    "fsdp": config.Mesh(data=1, fsdp=8),
    "tensor": config.Mesh(data=4, tensor=2),
    "fsdp and sequence": config.Mesh(data=1, fsdp=4, sequence=2),
}


def batch(architecture: str, seed: int):
    """Eight rows of noise, of unequal lengths, the last of them blank."""
    rng = np.random.default_rng(seed)
    stem = speech.model(architecture).encoder.stem
    frames = [rng.normal(size=(n, 80)).astype(np.float32) for n in (160, 80, 120, 44, 160, 100, 60, 0)]
    texts = [rng.integers(5, speech.VOCAB, n) for n in (6, 5, 4, 3, 9, 2, 5, 0)]
    heard, rows = stream_of(frames, stem), _padded(texts, 24)
    sizes = np.array(list(map(len, texts)))
    weights = _within(rows, sizes).astype(np.float32)
    if architecture == "encoder":
        return Unaligned(Example(heard, None, heard.tokens, (heard.segments > 0).astype(np.float32)), rows, weights)
    return Example(heard, _stream(rows, sizes), rows, weights)


def steps(architecture: str, mesh, devices=None) -> tuple[list[float], list[np.ndarray]]:
    run = dataclasses.replace(speech.run(architecture, "unused"), mesh=mesh)
    mesh = sharding.make_mesh(run.mesh, devices)
    what = task(run)
    tx, _ = optim.make(run.optimizer, run.train.steps)
    example = jax.tree.map(jnp.asarray, batch(architecture, 0))
    with sharding.use(mesh):
        plan = plan_state(lambda key: what.init(key, example), tx, mesh, ema=False)
        step = make_step(what.loss, tx, plan, optimizer=run.optimizer, train=run.train, asked=what.asked)
        state, losses = plan.create(0), []
        for s in range(3):
            rows = batch(architecture, s)
            take = lambda index, rows=rows: jax.tree.map(lambda x: x[index], rows)
            state, metrics = step(state, None, sharding.global_batch(take, np.arange(8), mesh))
            losses.append(float(metrics["loss"]))
    return losses, [np.asarray(x) for x in jax.tree.leaves(state.params)]


@pytest.fixture(scope="module", params=["encoder", "encoder_decoder"])
def alone(request):
    return request.param, steps(request.param, config.Mesh(), jax.devices()[:1])


@pytest.mark.parametrize("name", MESHES)
def test_sharded_equals_unsharded(alone, name):
    architecture, (losses, params) = alone
    found, moved = steps(architecture, MESHES[name])
    np.testing.assert_allclose(found, losses, rtol=2e-5)
    for a, b in zip(moved, params, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
