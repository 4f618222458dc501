"""With 8 simulated devices (see test_multidevice.py): recipes of images give on a mesh what they give on one device."""

from pathlib import Path

import jax
import numpy as np
import pytest

from lm import config, optim, sharding
from lm.config import resolve
from lm.data.image_questions import Described
from lm.data.image_text import Images, ImageTextRows, PictureRows
from lm.evaluation.image_text import write
from lm.models.transformer import Transformer
from lm.recipes import task
from lm.training.step import make_step, plan_state
from tests.unit.data.test_image_text import Spelling

CONFIG = Path(__file__).parents[1] / "e2e" / "tiny_pictures.py"
MESHES = {
    "data": config.Mesh(data=8),
    "fsdp and tensor": config.Mesh(data=1, fsdp=4, tensor=2),
    "all": config.Mesh(data=2, fsdp=2, tensor=2),
}
ONE = config.Mesh()


def setup(what):
    """A tiny run and its rows."""
    run = resolve.load(f"{CONFIG}:{what}")
    rng = np.random.default_rng(0)
    described = [Described(f"w{i} w{i + 1}", "w9", "yes" if i % 2 else "no") for i in range(16)]
    images = Images(rng.integers(0, 256, (16, 16, 16, 3)).astype(np.uint8), 8, described)
    if what == "codes":
        return run, PictureRows(images, length=4, seed=0, shift=1)
    return run, ImageTextRows(images, Spelling(), kinds=("caption", "colour"), length=4, text=12, seed=0)


def steps(run, rows, mesh, devices=None, count=3):
    """The state after some steps, and their losses."""
    mesh, what = sharding.make_mesh(mesh, devices), task(run)
    tx, _ = optim.make(run.optimizer, count)
    example = rows.rows(np.arange(8))
    with sharding.use(mesh):
        plan = plan_state(lambda key: what.init(key, example), tx, mesh, ema=False)
        step = make_step(what.loss, tx, plan, optimizer=run.optimizer, train=run.train, asked=what.asked)
        state, seen = plan.create(0), []
        for s in range(count):
            state, metrics = step(state, None, sharding.global_batch(rows.rows, np.arange(8 * s, 8 * s + 8), mesh))
            seen.append({name: float(value) for name, value in metrics.items() if np.ndim(value) == 0})
    return state, seen


@pytest.mark.parametrize(
    ("what", "strategy"),
    [("codes", "data"), ("codes", "fsdp and tensor"), ("cross", "all"), ("prefix", "data"), ("prefix", "fsdp and tensor")],
)
def test_sharded_is_unsharded(what, strategy):
    run, rows = setup(what)
    one, many = steps(run, rows, ONE, jax.devices()[:1]), steps(run, rows, MESHES[strategy])
    for a, b in zip(one[1], many[1], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(one[0].params), jax.tree.leaves(many[0].params), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4)


def test_texts_are_the_same_on_a_mesh():
    run, rows = setup("prefix")
    state, _ = steps(run, rows, ONE, jax.devices()[:1], count=2)
    held_out = ImageTextRows(rows.images, rows.tokenizer, kinds=rows.kinds, length=4, text=12, seed=0, shuffle=False)
    network, params = Transformer(run.model), jax.tree.map(np.asarray, state.params)
    alone = write(network, params, held_out, range(8), slots=8)
    mesh = sharding.make_mesh(MESHES["data"])
    with sharding.use(mesh):
        assert write(network, params, held_out, range(8), slots=8) == alone
