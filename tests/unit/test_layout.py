"""Checkpoints of the first layout of parameter names (tests/checkpoints); e2e/test_first_layout.py resumes its runs."""

import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, layout, saved
from lm.checkpoint import Checkpoints
from lm.errors import UserError
from lm.models.transformer import abstract_params
from lm.types import TrainState

ARCHIVE = Path(__file__).parents[1] / "checkpoints/first_layout.tar.xz"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("first")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root / "first_layout"


def paths(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize("name", ["decoder", "encoder_decoder", "converted"])
def test_models_of_the_first_layout_are_read(first, name):
    model = saved.open(first / name).model
    target = abstract_params(model, jax.local_devices()[0])
    params = saved.open(first / name).params(target)
    assert jax.tree.structure(params) == jax.tree.structure(target)
    assert "groups" in params["decoder"] or "group_1" in params["decoder"]
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(params) if x.ndim > 1)
    assert (saved.open(first / name).tokenizer_bytes() is None) == (name == "converted")


def test_only_names_of_groups_change_and_they_change_back():
    mean = {"turns": {"block_0": jnp.ones(2)}, "turnstile": jnp.zeros(1), "embed": {"turn_x": jnp.zeros(1)}}
    tree = (
        {"model": {"decoder": {"turn_0": mean, "turn_12": mean}}, "generator": {"encoder": mean}},
        [mean],
        None,
        jnp.ones(()),
    )
    current = layout.to_current(tree)
    assert paths(current) == {layout.current_path(p) for p in paths(tree)}
    assert {"0/model/decoder/group_12/groups/block_0", "1/0/turnstile", "1/0/embed/turn_x"} < paths(current)
    assert paths(layout.to_first(current)) == paths(tree)


def state(params):
    zero = jnp.int32(0)
    return TrainState(jnp.int32(1), params, (None, {"mu": params}), params, zero, zero, jnp.zeros((2, 2), jnp.uint32))


def written(workdir, params):
    run = config.Run(config.Model(8, 8))
    checkpoints = Checkpoints(workdir, config.Checkpoint(), run, b"tokenizer")
    checkpoints.save(state(params))
    checkpoints.wait()
    return checkpoints


def test_a_state_with_moments_and_averages_is_restored_under_the_new_names(tmp_path):
    old = {name: {"decoder": {"turn_0": jnp.arange(3.0), "turns": jnp.ones(2)}} for name in ("model", "generator")}
    new = layout.to_current(old)
    checkpoints = written(tmp_path, old)
    found = checkpoints.restore(1, state(new))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, found, state(new))
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), new["model"])
    jax.tree.map(np.testing.assert_array_equal, saved.open(tmp_path).params(target), new["model"])


def test_both_layouts_in_one_checkpoint_are_an_error(tmp_path):
    both = {"decoder": {"turn_0": jnp.ones(2), "group_1": jnp.ones(2)}}
    checkpoints = written(tmp_path, both)
    cause = r"parameters named 'turn_0', as the first layout named them, beside 'group_1'.*restore one"
    with pytest.raises(UserError, match=rf"checkpoints/1 has {cause}"):
        checkpoints.restore(1, state(layout.to_current(both)))
    checkpoints.close()
    with pytest.raises(UserError, match=cause):
        saved.open(tmp_path).params(layout.to_current(both))
