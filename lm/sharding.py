"""Where arrays live: the mesh, the tables from logical axis names to mesh axes, and the check that nothing is forgotten.

Models name axes ("embed", "heads", ...); only this file says what they mean on devices. One table serves every strategy,
since an axis of the mesh with one device shards nothing:

| strategy          | mesh               | rows in | tokens of a row in | parameters in    | what travels                    |
|-------------------|--------------------|---------|--------------------|------------------|---------------------------------|
| data              | data=n             | n parts | 1                  | 1                | gradients                       |
| fully sharded     | fsdp=n             | n       | 1                  | n                | parameters, gradients           |
| fsdp and tensor   | fsdp=n, tensor=m   | n       | 1                  | n m              | and activations, in each layer  |
| fsdp and sequence | fsdp=n, sequence=m | n       | m                  | n m              | and keys and values             |
| expert            | data=n, expert=m   | n m     | 1                  | m (the experts') | and tokens, to experts and back |
| hybrid            | slice=s, fsdp=n    | s n     | 1                  | n, in each slice | between slices gradients alone  |

A pipeline over layers has no axis: its place is an outermost axis "stage" that cuts "layers", with a schedule in
`lm.models.transformer.Stack` around the scan (the carry goes on by `ppermute`, microbatch by microbatch). As long as a
layer's parameters fit by fsdp and tensor, it only adds idle time: 540 B parameters train without (arXiv 2204.02311, section 4).
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm import config
from lm.errors import UserError, nearest

AXES = ("slice", "data", "fsdp", "sequence", "expert", "tensor")
ROWS = ("slice", "data", "fsdp", "expert")  # where a batch's rows lie: but for the experts, theirs is one more axis of data

PARAMETERS: dict[str, str | tuple[str, ...] | None] = {
    "vocab": "tensor",
    "embed": ("fsdp", "sequence"),
    "embed_out": "tensor",  # the second axis of a width-by-width matrix
    "heads": "tensor",
    "kv_heads": "tensor",
    "kv_head": None,  # the only one of all queries (MQA): every device has it
    "head_dim": None,
    "heads_all": None,  # all heads' vectors in a row
    "outputs": None,  # of a head that gives a few numbers instead of the vocabulary
    "embed_in": None,  # a factorised embedding's own width
    "hidden": "tensor",
    "experts": "expert",
    "position": None,
    "types": None,
    "buckets": None,
    "layers": None,
}

ACTIVATIONS: dict[str, str | tuple[str, ...] | None] = {
    "batch": ROWS,
    "batch_by_expert": ("slice", "data", "fsdp"),  # rows whose tokens have gone to the devices of their experts
    "batch_by_table": ("slice", "data", "expert"),  # rows whose tokens have gone to the devices that hold parts of a table
    "experts": "expert",
    "capacity": None,
    "length": "sequence",
    "keys": None,  # of a row: a query looks at all of them
    "embed_act": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "kv_head": None,
    "head_dim": None,
    "hidden": "tensor",
    "vocab_act": "tensor",
}

# Activations and parameters share the names whose meaning is the same; "embed" is a parameter's alone.
MEANING = {**PARAMETERS, **ACTIVATIONS}
RULES = tuple(MEANING.items())
Names = tuple[str | None, ...]
BATCH = PartitionSpec(ROWS)


def make_mesh(c: config.Mesh, devices: list[Any] | None = None) -> Mesh:
    """The mesh over all devices; one size of -1 takes what the others leave, that of `data` if no other does."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(c, axis) for axis in AXES]
    if sizes.count(-1) > 1 and c.data == -1:
        sizes[AXES.index("data")] = 1
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) > 1 or len(devices) % known or (-1 not in sizes and known != len(devices)):
        wanted = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True) if s != 1) or "data=1"
        raise UserError(f"mesh {wanted} does not divide {len(devices)} devices; set one of config.mesh.* to -1")
    sizes = [len(devices) // known if s == -1 else s for s in sizes]
    return Mesh(_placed(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _placed(sizes: list[int], devices: list[Any]) -> np.ndarray:
    """Devices as an array of these sizes, on which neighbours are joined by links; slices lie along the first axis alone."""
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices > 1 and sizes[0] != slices:
        raise UserError(f"the devices are {slices} slices and config.mesh.slice={sizes[0]}; set --config.mesh.slice={slices}")
    try:
        if slices > 1:
            ones = [1] * (len(sizes) - 1)
            return mesh_utils.create_hybrid_device_mesh(
                [1, *sizes[1:]], [slices, *ones], devices, allow_split_physical_axes=True
            )
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError) as error:  # torus and sizes that have no factors in common
        raise UserError(f"these devices cannot be laid out as {dict(zip(AXES, sizes, strict=True))}: {error}") from error


@contextmanager
def use(mesh: Mesh) -> Generator[None]:
    """Within: the mesh is set and logical names have their meaning, for tracing and running."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def check_batch(batch_size: int, microbatches: int, mesh: Mesh, *, name: str = "train.batch_size") -> None:
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    if batch_size % (microbatches * shards):
        fitting = max(1, round(batch_size / (microbatches * shards))) * microbatches * shards
        raise UserError(
            f"{name}={batch_size} does not divide over {shards} data shards x {microbatches} microbatches; take {fitting}"
        )


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings for parameters that carry logical names (the abstract result of `model.init`); unknown names raise."""

    def one(path: Any, leaf: Any) -> NamedSharding:
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(leaf, nn.LogicallyPartitioned):
            raise ValueError(f"parameter {where} names no axes; make it with nn.with_logical_partitioning")
        axes = []
        for name, size in zip(leaf.names, leaf.value.shape, strict=True):
            if name is None or name not in PARAMETERS:
                raise ValueError(f"parameter {where}: unknown axis name '{name}'{nearest(str(name), PARAMETERS)}")
            axis = PARAMETERS[name]
            over = {a: mesh.shape[a] for a in _names(axis)}
            if size % math.prod(over.values()):
                shown = " x ".join(f"{a}={n}" for a, n in over.items() if n > 1)
                raise UserError(f"parameter {where}: axis '{name}' of {size} does not divide over {shown}")
            axes.append(axis if axis not in axes else None)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def _names(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axis is None else (axis,) if isinstance(axis, str) else axis


def shards(name: str) -> int:
    """In how many parts the axis `name` is cut where this is traced; 1 outside of `use`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in _names(MEANING[name]))


def divides(x: jax.Array, names: Names) -> bool:
    """Whether the first axes of x, which have these names, can be cut in equal parts, as the devices want it."""
    return all(n % shards(name) == 0 for n, name in zip(x.shape, names, strict=False) if name)


def kv_axis(heads: int) -> str:
    """The name of the axis of so many heads of keys and values: an only one is no axis to be cut along."""
    return "kv_heads" if heads > 1 else "kv_head"


def spec(*names: str | None) -> PartitionSpec:
    """Where an array with these axes lies."""
    return PartitionSpec(*(None if name is None else MEANING[name] for name in names))


def shard_map_by_axes(fn: Callable[..., Any], inputs: tuple[Names, ...], output: Names, *, summed: Names) -> Callable[..., Any]:
    """`fn`, run by each device on its own part of every argument; outside of `use`, `fn` itself.

    `inputs` and `output` name the axes, the latter those of each result. Results are added up over the devices that hold
    parts of the axes `summed`. Rows that do not divide over the devices, as those of a single prompt, are left to the
    compiler: right, but not spread.
    """

    def call(*arguments: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or not divides(arguments[0], inputs[0]):
            return fn(*arguments)
        over = tuple(axis for name in summed if name for axis in _names(MEANING[name]))
        one = lambda *parts: jax.lax.psum(fn(*parts), over)
        ins = tuple(spec(*names) for names in inputs)
        return jax.shard_map(one, in_specs=ins, out_specs=spec(*output), check_vma=False)(*arguments)

    return call


REPLICATED, TOKEN_SHARDED = PartitionSpec(), PartitionSpec(ROWS, ACTIVATIONS["length"])


def shard_map_tokens(fn: Callable[..., Any], inputs: tuple[PartitionSpec, ...], outputs: Any) -> Callable[..., Any]:
    """Returns `fn`, run by each device on its own rows and tokens; outside of `use`, `fn` itself.

    Specs are REPLICATED or TOKEN_SHARDED (arrays [B, T, ...]), one for each argument and for each subtree of the results;
    replicated results must be summed with `psum_tokens`. Other sharded axes, such as a vocabulary, are left to the compiler,
    and so are rows that do not divide over the devices.
    """

    def call(*arguments: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        own = [
            x for given, where in zip(arguments, inputs, strict=True) if where == TOKEN_SHARDED for x in jax.tree.leaves(given)
        ]
        if mesh.empty or not all(divides(x, ("batch", "length")) for x in own):
            return fn(*arguments)
        over = {axis for part in TOKEN_SHARDED for axis in _names(part)}
        return jax.shard_map(fn, in_specs=inputs, out_specs=outputs, axis_names=over, check_vma=False)(*arguments)

    return call


def psum_tokens(x: jax.Array) -> jax.Array:
    """The sum over all devices' own tokens, replicated; for use within `shard_map_tokens`.

    Not scattered over the devices: where a vocabulary is sharded over "tensor", XLA would gather it before the scatter.
    """
    over = jax.sharding.get_abstract_mesh().manual_axes
    total = lambda x: jax.lax.psum(x, over)
    # Of bfloat16, where some axes are left to the compiler, XLA dies of it on a CPU (jax 0.10.2).
    wider = lambda x: total(x.astype(jnp.float32)).astype(x.dtype)
    return jax.lax.platform_dependent(x, cpu=wider, default=total) if over else x


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def global_batch(make: Callable[[np.ndarray], Any], index: np.ndarray, mesh: Mesh) -> Any:
    """Rows `index` (int64 [B], global) as arrays sharded over the data axes; a process makes only the rows it holds."""
    sharding = NamedSharding(mesh, BATCH)
    places = sharding.addressable_devices_indices_map((len(index),)).values()
    local = sorted({place[0].indices(len(index))[:2] for place in places if place is not None})
    held = np.unique(np.concatenate([np.arange(*span) for span in local]))
    rows = make(index[held])

    def place(leaf: np.ndarray) -> jax.Array:
        def part(where: tuple[slice, ...] | None) -> np.ndarray:
            assert where is not None
            first, last, _ = where[0].indices(len(index))
            return leaf[np.searchsorted(held, first) : np.searchsorted(held, last)]

        return jax.make_array_from_callback((len(index), *leaf.shape[1:]), sharding, part)

    return jax.tree.map(place, rows)


def uncovered(params: Any, shardings: Any, mesh: Mesh, least: int = 2**16) -> list[str]:
    """Names of parameters of `least` elements or more that every device holds whole, though the mesh could shard them."""
    if mesh.shape["fsdp"] * mesh.shape["sequence"] * mesh.shape["tensor"] == 1:
        return []
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, leaf), s in zip(flat, jax.tree.leaves(shardings), strict=True)
        if math.prod(leaf.shape) >= least and s.is_fully_replicated
    ]
