"""Every entry of configs/pod.py on its mesh, by shapes alone: all shardings divide evenly, and the state leaves room."""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from lm import config, optim, sharding
from lm.config import resolve
from lm.errors import UserError
from lm.models.positions import check_positions
from lm.training.adapted import adapted
from lm.training.assembly import abstract_params, bytes_a_device
from lm.training.recipe import abstract_batch
from lm.training.step import plan_state
from tpu import planned, table, topologies

FILE = Path(__file__).parents[3] / "configs/pod.py"
PODS = runpy.run_path(str(FILE))["PODS"]
ROOM = 0.6  # of a device's memory, at most, for parameters, the optimizer's state and a gradient


def load(name):
    return resolve.load(f"{FILE}:{name}")


def mesh_of(run):
    sizes = tuple(getattr(run.mesh, axis) for axis in sharding.AXES)
    return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def state_bytes(run, mesh):
    """(parameters, optimizer state, what is frozen) in bytes per device."""
    recipe = planned.recipe_of(run)
    task, row = adapted(recipe.task(run), run), planned.rows_of(run, recipe)[1]
    row = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_batch(row, 1))
    tx, _ = optim.make(run.optimizer, run.train.steps)
    plan = plan_state(lambda key: task.init(key, row), tx, mesh, ema=False)
    held = lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
    sizes = jax.tree.map(held, plan.abstract, plan.shardings)
    frozen = task.frozen and bytes_a_device(abstract_params(lambda key: task.frozen.init(key, row), mesh))
    return sum(jax.tree.leaves(sizes.params)), sum(jax.tree.leaves(sizes.opt_state)), frozen or 0


@pytest.mark.parametrize("name", PODS)
def test_an_entry_divides_and_its_state_fits(name):
    run = load(name)
    mesh, topology = mesh_of(run), topologies.parse(run.pod.topology)
    assert math.prod(mesh.shape.values()) == topology.devices * run.pod.slices
    assert mesh.shape["slice"] == run.pod.slices, "parameters do not travel between slices"
    sharding.check_batch(run.train.batch_size, run.train.microbatches, mesh)
    lengths = [length for length in (run.data.encoder_length, run.data.decoder_length) if length]
    assert all(length % mesh.shape["sequence"] == 0 for length in lengths)
    check_positions(run.model, run.data.encoder_length, run.data.decoder_length, cure="")
    parameters, optimizer, frozen = state_bytes(run, mesh)  # raises if a parameter does not divide evenly
    memory = topology.chip.hbm / topology.chip.devices
    assert 2 * parameters + optimizer + frozen < ROOM * memory


@pytest.mark.parametrize("name", PODS)
def test_what_pods_have_in_common(name):
    run = load(name)
    trunks = [trunk for trunk in (run.model.encoder, run.model.decoder) if trunk]
    assert all(trunk.scan and trunk.remat != "none" for trunk in trunks)
    assert (run.model.dtype, run.model.param_dtype) == ("bfloat16", "float32")
    plain = name.startswith(("bert", "t5", "clip"))  # dropout, T5's bias, and pictures of 50 vectors
    assert run.model.kernel == ("plain" if plain else "splash")
    assert run.train.steps > 1000
    if isinstance(run.recipe, config.Pretrain):
        assert run.data.sources["c4"].path == "c4/en"
    else:
        assert bool(run.train.init_from) != isinstance(run.recipe, config.TwoEncoders)  # these begin from the seed
        assert not planned.recipe_of(run).check(run, planned.recipe_of(run).task(run), mesh_of(run))


def test_all_architectures_and_axes_are_there():
    runs = [load(name) for name in PODS]
    assert {run.model.architecture for run in runs} == {"encoder", "decoder", "encoder_decoder"}
    assert {axis for run in runs for axis in sharding.AXES if getattr(run.mesh, axis) > 1} == set(sharding.AXES)


@pytest.mark.parametrize("name", PODS)
def test_the_kept_report_is_of_the_entry_as_it_stands_and_fits(name):
    report = json.loads((FILE.parents[1] / f"tpu/results/{name}.json").read_text())
    assert report["made_of"] == table.made_of(load(name))
    for step in (report, *table.engine_steps(report)):
        assert step["fits"] and step["hbm"]["peak"] + step["hbm"].get("beside", 0) < step["hbm"]["capacity"]
    assert f"`{name}`" in (FILE.parents[1] / "docs/pods.md").read_text()


def test_what_does_not_divide_would_be_found():
    run = load("palm_540b_v4_x2")
    with pytest.raises(UserError, match="axis 'vocab' of 256000 does not divide over tensor=12"):
        state_bytes(replace(run, model=replace(run.model, vocab_size=256_000)), mesh_of(run))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="has no palm_540b; did you mean 'palm_540b_v4_x2'"):
        load("palm_540b")
