"""Makes the parts of a run from its config and recipe: mesh, task, data, state plan and step. Cheap checks come first."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lm import config, optim, paths, sharding
from lm.errors import UserError
from lm.models.transformer import with_kernel
from lm.objectives import Lengths
from lm.training.adapted import adapted
from lm.training.recipe import Computation, Parts, Recipe, abstract_batch
from lm.training.step import make_step, plan_state
from lm.training.task import Task


def assemble(run: config.Run, recipe: Recipe, *, progress: bool = True) -> Parts:
    """Raises UserError if the config contradicts itself, or does not fit the devices or the data."""
    mesh = sharding.make_mesh(run.mesh)
    task = check(run, recipe, mesh)
    data = recipe.data(run, progress=progress)
    if run.model.reads_tokens and data.tokenizer.vocab_size > run.model.vocab_size:
        raise UserError(
            f"model.vocab_size={run.model.vocab_size} is smaller than the tokenizer's {data.tokenizer.vocab_size}; "
            f"set --config.model.vocab_size={data.tokenizer.vocab_size} or more"
        )
    rows = recipe.rows(run, data)
    if run.model.kernel == "auto":
        run = with_chosen_kernel(run, mesh, rows["train"].lengths)
        task = check(run, recipe, mesh)
    computed = computation(run, task, mesh, rows["train"].lengths, recipe.row(rows["train"]))
    parts = Parts(**vars(computed), data=data, rows=rows)
    check_memory(bytes_a_device((parts.plan.targets(), parts.frozen)), mesh.local_devices)
    recipe.check_data(parts)
    return parts


KERNELS = {"splash": "tpu", "cudnn": "gpu"}  # of attention -> the one platform that has it


def with_chosen_kernel(run: config.Run, mesh: Mesh, lengths: Lengths) -> config.Run:
    """The run with the kernel of attention that `kernel="auto"` means here: the one of these devices where it takes the model
    and rows of these lengths, otherwise the plain one."""
    if run.model.kernel != "auto":
        return run
    device, shards = mesh.devices.flat[0], mesh.shape["sequence"]
    kernel = next((name for name, platform in KERNELS.items() if platform == device.platform), "plain")
    chosen = with_kernel(run.model, kernel)
    every = [n for n in (lengths.encoder, lengths.decoder) if n]
    # Splash takes tiles of 128; with a causal order each device has two parts of a row.
    fits = all(n % (128 * shards * (1 + (shards > 1))) == 0 for n in every)
    if chosen.kernel == "cudnn":
        fits = all(n % 2 == 0 for n in every) and shards == 1 and largest_head(chosen) <= most_of_a_head(device)
    return replace(run, model=chosen if fits else with_kernel(run.model, "plain"))


def check(run: config.Run, recipe: Recipe, mesh: Mesh) -> Task:
    """Returns the task. Raises UserError if the config contradicts itself or does not fit the devices."""
    if not (run.model.encoder or run.model.decoder):
        raise UserError("model has neither an encoder nor a decoder: give one of them, or both")
    if run.train.init_from is not None and not run.train.init_from.startswith("gs://"):
        paths.local(run.train.init_from, name="train.init_from")
    sharding.check_batch(run.train.batch_size, run.train.microbatches, mesh)
    if run.evaluate.batch_size is not None:
        sharding.check_batch(run.evaluate.batch_size, 1, mesh, name="evaluate.batch_size")
    task, platform = adapted(recipe.task(run), run), mesh.devices.flat[0].platform
    if run.optimizer.offload and sharding.HOST not in (m.kind for m in mesh.devices.flat[0].addressable_memories()):
        raise UserError(f"optimizer.offload needs {sharding.HOST} memory, which jax has not on a {platform}: leave it out")
    recipe.check(run, task, mesh)
    for path, model in task.models.items():
        if platform != KERNELS.get(model.kernel, platform):
            raise UserError(
                f"{path}.kernel='{model.kernel}' runs on {KERNELS[model.kernel].upper()}s alone, and this is a {platform}: "
                f"set --config.{path}.kernel=plain"
            )
        device = mesh.devices.flat[0]
        if model.kernel == "cudnn" and (largest := largest_head(model)) > (most := most_of_a_head(device)):
            raise UserError(
                f"{path}.kernel='cudnn' takes heads of up to {most} dimensions on a GPU before Hopper (this is of compute "
                f"capability {device.compute_capability}), and the model's have {largest}: set --config.{path}.kernel=plain"
            )
    return task


def largest_head(model: config.Model) -> int:
    """Dimensions of the model's largest head of attention; 0 without attention."""
    found = [attention for stack in (model.encoder, model.decoder) if stack for attention in stack.attentions()]
    return max((attention.size(model.width) for attention in found), default=0)


def most_of_a_head(device: Any) -> int:
    """Dimensions of a head that cuDNN's attention takes on a GPU: 256 from Hopper (compute capability 9) on, 128 before."""
    return 256 if float(getattr(device, "compute_capability", "0")) >= 9 else 128


def check_memory(state: int, devices: list[Any]) -> None:
    """Raises UserError if the state takes more bytes per device than a device has. A step needs more than the state."""
    limit = capacity(devices)
    if limit is not None and state > limit:
        raise UserError(
            f"parameters, moments and averages take {state / 2**30:,.1f} GiB of a device, which has {limit / 2**30:,.1f} GiB: "
            "take a smaller model or vocabulary, or shard it over more devices (config.mesh.fsdp)"
        )


def capacity(devices: list[Any]) -> int | None:
    """Bytes that each of these devices has; None if that is unknown. CPU devices share the machine's memory, or what a
    container may take of it."""
    if devices[0].platform != "cpu":
        return (devices[0].memory_stats() or {}).get("bytes_limit")
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = file.read_text("utf-8").strip() if file.is_file() else ""
        limits += [int(text)] if text.isdecimal() else []
    return min(limits) // len(devices)


def computation(run: config.Run, task: Task, mesh: Mesh, lengths: Lengths, row: Any) -> Computation:
    """Makes everything that needs no data, from a blank row. Puts nothing on the mesh's devices."""
    updates = task.updates.count if task.updates else 1
    tx, schedule = optim.make(run.optimizer, run.train.steps, updates=updates, width=run.model.width)
    shapes = abstract_batch(row, run.train.batch_size)
    batch = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # Outside of `sharding.use`: Optax creates a few concrete numbers, which would be put on the mesh.
    settings: dict[str, Any] = dict(ema=run.optimizer.ema is not None, offload=run.optimizer.offload)
    plan = plan_state(lambda key: task.init(key, batch()), tx, mesh, **settings)
    frozen = None
    if task.frozen is not None:
        init_frozen = task.frozen.init
        frozen = abstract_params(lambda key: init_frozen(key, batch()), mesh)
    settings = dict(optimizer=run.optimizer, train=run.train, asked=task.asked, updates=task.updates)
    step = make_step(task.loss, tx, plan, **settings)
    return Computation(run, mesh, task, lengths, row, plan, step, schedule, frozen)


def abstract_params(init: Callable[[jax.Array], Any], mesh: Mesh) -> Any:
    """The result of `init(key)` as abstract arrays, with shardings from its logical axis names."""
    boxed = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.param_shardings(boxed, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings)


def bytes_a_device(tree: Any) -> int:
    """Bytes on each device of abstract arrays with shardings, without those that wait in the host's memory."""
    return _bytes([x for x in jax.tree.leaves(tree) if not sharding.waits_on_host(x.sharding)])


def bytes_on_host(tree: Any) -> int:
    """Bytes of abstract arrays with shardings that wait in the host's memory for each device."""
    return _bytes([x for x in jax.tree.leaves(tree) if sharding.waits_on_host(x.sharding)])


def _bytes(arrays: list[Any]) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in arrays)
