"""With 8 simulated devices (see test_multidevice.py): contrastive losses, whose every vector is compared with those of all
devices, and their gradients equal those of one device."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fixtures import rows, run

from lm import config, optim, sharding
from lm.recipes import task
from lm.training.step import plan_state
from lm.types import Example, TokenStream, vector_stream
from tpu.collectives import collectives

MESHES = {
    "data": config.Mesh(data=8),
    "fsdp": config.Mesh(data=1, fsdp=8),
    "fsdp and tensor": config.Mesh(data=1, fsdp=4, tensor=2),
    "hybrid": config.Mesh(slice=2, data=1, fsdp=4),
}
ROWS, LENGTH, PATCHES = 16, 12, 16


def pair_run(mesh):
    """A run of two encoders; its pictures have 16 patches of 4 x 4 pixels."""
    block = config.Block(config.Attention(4), config.Mlp(64), dropout=0.1)
    head = config.Head(tied=False, outputs=24)
    stem = config.Patches(4, 16)
    image = config.Stack(2, {"L": block}, position=config.Learned(PATCHES + 1), stem=stem)
    model = config.Model(64, 32, encoder=image, head=head)
    text = config.Model(64, 32, decoder=config.Stack(2, {"L": block}, position=config.Learned(LENGTH)), head=head)
    data = config.Data(decoder_length=LENGTH)
    return config.Run(model, data, mesh=mesh, recipe=config.TwoEncoders(text))


def pairs(index):
    """Random pictures and captions, of which the last is blank."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (ROWS, PATCHES, 48), dtype=np.uint8)
    tokens = rng.integers(1, 64, (ROWS, LENGTH)).astype(np.int32)
    ends = rng.integers(3, LENGTH, ROWS).astype(np.int32)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    captions = TokenStream(tokens, places, (places <= ends[:, None]).astype(np.int32))
    weights = np.ones((ROWS, 1), np.float32)
    weights[-1] = 0
    whole = Example(vector_stream(pixels, PATCHES + 1), captions, np.zeros((ROWS, 1), np.int32), weights, ends[:, None])
    return jax.tree.map(lambda x: x[index], whole)


def computed(r, make, devices=None):
    """The loss of a batch, its gradients, and the compiled program."""
    mesh = sharding.make_mesh(r.mesh, devices)
    what = task(r)
    tx, _ = optim.make(r.optimizer, r.train.steps)
    blank = jax.tree.map(np.zeros_like, make(np.arange(ROWS)))
    with sharding.use(mesh):
        plan = plan_state(lambda key: what.init(key, blank), tx, mesh, ema=False)
        state, batch = plan.create(0), sharding.global_batch(make, np.arange(ROWS), mesh)

        @jax.jit
        def both(params, batch):
            def loss(params):
                mean, more = what.loss(params, None, batch, {"dropout": jax.random.key(1)})
                return mean.total, (mean.mean, {name: one.mean for name, one in more.items()})

            return jax.grad(loss, has_aux=True)(params)

        program = both.lower(state.params, batch).compile()
        gradients, (mean, more) = program(state.params, batch)
    return float(mean), jax.tree.map(float, more), jax.tree.map(np.asarray, gradients), program


@cache
def alone():
    return computed(pair_run(config.Mesh()), pairs, jax.devices()[:1])


@pytest.mark.parametrize("strategy", MESHES)
def test_a_picture_is_compared_with_the_captions_of_all_devices(strategy):
    loss, more, gradients, _ = alone()
    found, also, others, program = computed(pair_run(MESHES[strategy]), pairs)
    assert found == pytest.approx(loss, rel=1e-5) and also == pytest.approx(more, rel=1e-5)
    for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
    sent = collectives(program.as_text(), dict(sharding.make_mesh(MESHES[strategy]).shape))
    forward = [one for one in sent if "transpose(" not in one.op_name]  # of so few rows the backward pass may send logits
    assert forward and all(one.shape != (ROWS, ROWS) for one in forward)  # vectors are sent, logits are not


@pytest.mark.parametrize("strategy", MESHES)
def test_a_text_is_compared_with_those_of_all_devices(strategy):
    """SimCSE, with the same dropout on any mesh."""

    def made(mesh):
        r = run("encoder", config.Contrastive(), mesh)
        return replace(r, model=replace(r.model, encoder=replace(r.model.encoder, dropout=0.1)))

    data = rows("encoder", config.Contrastive(), encoder_length=16)
    one = computed(made(config.Mesh()), data.rows, jax.devices()[:1])
    many = computed(made(MESHES[strategy]), data.rows)
    assert many[0] == pytest.approx(one[0], rel=1e-5) and many[1] == pytest.approx(one[1], rel=1e-5)
    for a, b in zip(jax.tree.leaves(many[2]), jax.tree.leaves(one[2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
