"""What a step needs, and what is advised where a device has less: compiled on a CPU, whose memory is set by the test."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, sharding
from lm.config import Attention, Block, Mlp, Model, Rope, Stack
from lm.errors import UserError
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.recipes import pretrain
from lm.training import assembly, fit
from lm.training.display import grouped
from lm.training.recipe import Parts

DATA: Any = SimpleNamespace()  # prepared data, which nothing here reads
STACK = Stack(1, {"L": Block(Attention(2), Mlp(64))}, position=Rope())
RUN = config.Run(Model(128, 32, decoder=STACK), config.Data(decoder_length=64), train=config.Train(steps=9, batch_size=16))


class Pretraining(pretrain.Pretraining):
    """Pretraining whose rows have shapes alone."""

    def rows(self, run, data):
        return {"train": SimpleNamespace(lengths=pretrain.objective_of(run, DummyVocabulary.of(run)).lengths)}


def parts_of(run):
    return Parts(**vars(fit.planned(run, Pretraining(), DATA)), data=DATA, rows={})


@pytest.fixture(scope="module")
def parts():
    return parts_of(RUN)


@pytest.fixture(scope="module")
def found(parts):
    return fit.needs(parts)


@pytest.fixture
def memory(monkeypatch):
    """Sets the bytes of a device."""
    return lambda size: [monkeypatch.setattr(module, "capacity", lambda devices: int(size)) for module in (fit, assembly)]


def test_the_parts_are_those_of_the_state_and_add_up_to_xlas_sum(parts, found):
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    state = parts.plan.abstract
    assert found.kinds["parameters"] == size(state.params)
    assert found.kinds["optimizer and the rest of the state"] == size(state) - size(state.params) > size(state.params) * 2
    assert "frozen, and in no checkpoint" not in found.kinds, "what is 0 has no line"
    xla = parts.lower().compile().memory_analysis()
    whole = xla.argument_size_in_bytes + xla.output_size_in_bytes - xla.alias_size_in_bytes + xla.temp_size_in_bytes
    assert found.total == whole
    assert found.outcome.state == size(state) + found.kinds["batch"]


def test_a_table_says_gib_the_sum_and_the_machine():
    found = fit.Needs({"parameters": 3 * 2**30, fit.TEMPORARIES: 2**29}, 4 * 2**30, "this machine")
    assert found.table().splitlines() == [
        "memory of a step, GiB on a device",
        "         3.000  parameters",
        "         0.500  temporaries, with activations (XLA)",
        "         3.500  in all of 4.0 that this machine has: it fits",
    ]
    short = dataclasses.replace(found, capacity=2**30)
    assert short.table().endswith("3.500  in all of 1.0 that this machine has: IT DOES NOT FIT")
    unknown = dataclasses.replace(found, capacity=None)
    assert unknown.table().endswith("3.500  in all") and unknown.fits


@pytest.fixture
def simulated(parts, monkeypatch):
    """Sets the bytes of a device, and what steps need: KEPT of activations for each row of a part, by its length squared."""

    def needs(made, lowered=None):
        c, remat = made.run, made.run.model.decoder.remat
        rows = c.train.batch_size / c.train.microbatches
        kinds = {"parameters": 1000, fit.TEMPORARIES: int(rows * KEPT[remat] * (c.data.decoder_length / 64) ** 2)}
        tried.append(made.run)
        return fit.Needs(kinds, capacity, "this machine")

    def memory(size, run):
        nonlocal capacity
        capacity = size
        made = dataclasses.replace(parts, run=run)
        return fit.advise(made, Pretraining(), needs(made))

    capacity, tried = 0, []
    monkeypatch.setattr(fit, "needs", needs)
    monkeypatch.setattr(fit, "bytes_a_device", lambda tree: 500)
    return memory


KEPT = {"none": 1000, "dots": 400, "full": 100}
FULL = dataclasses.replace(RUN.model, decoder=dataclasses.replace(STACK, remat="full"))
ODD = config.Train(steps=9, batch_size=5)


@pytest.mark.parametrize(
    "size,changes,flags",
    [
        (10_500, {}, "--config.train.microbatches=2"),  # 9,000 of 9,450 bytes: what is advised leaves a tenth
        (9_900, {}, "--config.train.microbatches=4"),
        (2_900, {}, "--config.train.microbatches=16"),
        (2_100, {}, "--config.train.microbatches=8 --config.model.decoder.remat=dots"),
        (1_600, {"train": ODD, "model": FULL}, "--config.train.batch_size=2"),
        (1_700, {"train": config.Train(steps=9, batch_size=1), "data": config.Data(decoder_length=256), "model": FULL},
         "--config.data.decoder_length=128"),
        (1_000, {}, None),
    ],
)  # fmt: skip
def test_what_is_advised_is_the_nearest_that_fits(simulated, size, changes, flags):
    assert simulated(size, dataclasses.replace(RUN, **changes)) == flags


def test_a_run_whose_step_does_not_fit_ends_in_a_line(parts, found, memory):
    memory(found.outcome.state / 2)  # nothing else is compiled, for the state alone is too large
    said: list[str] = []
    with pytest.raises(UserError, match="^out of memory: a step needs .* GiB on a device, and .*machine.* has .*: nothing"):
        fit.FittedStep(parts, Pretraining(), said.append)(parts.plan.targets(), None, parts.batch)
    assert len(said) == 1 and "looking for what fits" in said[0]


def test_a_setting_of_a_saved_model_is_not_advised(simulated, monkeypatch):
    """The model of train.init_from is not of the config, so that its remat cannot be set there."""
    monkeypatch.setattr(fit, "check", lambda run, recipe, mesh: None)
    monkeypatch.setattr(
        fit,
        "planned",
        lambda run, recipe, data: SimpleNamespace(run=run, plan=SimpleNamespace(targets=list), frozen=0, batch=0),
    )
    tuned = dataclasses.replace(RUN, train=config.Train(steps=9, batch_size=16, init_from="runs/x"))
    assert simulated(2_100, tuned) == "--config.data.decoder_length=32 --config.train.microbatches=16"


def test_a_step_that_fits_is_compiled_once(memory):
    memory(2**40)
    parts = parts_of(dataclasses.replace(RUN, train=config.Train(steps=9, batch_size=4)))
    state = parts.plan.create(0)
    batch = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), parts.batch)
    compiled: list[str] = []
    listener = lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        step = fit.FittedStep(parts, Pretraining(), lambda text: None)
        with sharding.use(parts.mesh):
            for _ in range(3):
                state, _ = step(state, None, batch)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert len(compiled) == 1 and int(state.step) == 3


def test_xlas_own_error_becomes_a_line():
    with pytest.raises(UserError, match="^out of memory: .*--dry_run says what a step needs: take more train.microbatches"):
        with fit.in_a_line():
            jnp.zeros(2**46, jnp.int8).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), fit.in_a_line():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def test_a_container_has_less_than_its_machine(monkeypatch):
    texts = {"/sys/fs/cgroup/memory.max": "max\n"}
    monkeypatch.setattr(Path, "is_file", lambda path: str(path) in texts)
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: texts[str(path)])
    device = SimpleNamespace(platform="cpu")
    machine = assembly.capacity([device])
    texts["/sys/fs/cgroup/memory.max"] = f"{machine // 4}\n"
    assert assembly.capacity([device]) == machine // 4 and assembly.capacity([device, device]) == machine // 4 // 2
    texts["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = str(2**63 - 4096)  # no limit, in the first version of cgroups
    assert assembly.capacity([device]) == machine // 4
    assert assembly.capacity([SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 7})]) == 7


def test_layers_that_are_alike_are_one_line():
    counts = {f"decoder/group_{n}/block_0": 1000 if n != 2 else 5 for n in range(12)} | {"embed/tokens": 70}
    assert grouped(counts) == [
        "        11,000  decoder/group_0-1,3-11/block_0, 11 of 1,000",
        "             5  decoder/group_2/block_0",
        "            70  embed/tokens",
    ]
    assert grouped({}) == []
