"""The mesh, the rules from logical axis names to mesh axes, and the check that no parameter's axis is forgotten.

Models name axes ("embed", "heads", ...); only this file maps them to devices. One set of rules serves every strategy, since a
mesh axis of size 1 shards nothing. In how many shards each strategy splits what, and what devices exchange:

| strategy          | mesh               | rows | tokens of a row | parameters    | communication                             |
|-------------------|--------------------|------|-----------------|---------------|-------------------------------------------|
| data              | data=n             | n    | 1               | 1             | gradients                                 |
| fully sharded     | fsdp=n             | n    | 1               | n             | parameters, gradients                     |
| fsdp and tensor   | fsdp=n, tensor=m   | n    | 1               | n m           | the same, and each layer's activations    |
| fsdp and sequence | fsdp=n, sequence=m | n    | m               | n m           | the same, and keys and values             |
| expert            | data=n, expert=m   | n m  | 1               | m (experts')  | gradients, and tokens to and from experts |
| hybrid            | slice=s, fsdp=n    | s n  | 1               | n (per slice) | between slices only gradients             |

There is no pipeline parallelism. It would be an outermost mesh axis "stage" that shards "layers", with a schedule around the
scan of `lm.models.transformer.Stack` (`ppermute` of the carry, microbatch by microbatch). As long as a layer's parameters fit
under fsdp and tensor it only adds idle time: 540B parameters train without it (arXiv 2204.02311, section 4).
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
HOST = "pinned_host"  # jax's name of the host's memory that a device reads and writes
ROWS = ("slice", "data", "fsdp", "expert")  # the mesh axes that shard a batch's rows; outside of experts, "expert" is data

PARAMETERS: dict[str, str | tuple[str, ...] | None] = {
    "vocab": "tensor",
    "embed": ("fsdp", "sequence"),
    "embed_out": "tensor",  # the second axis of a width-by-width matrix
    "heads": "tensor",
    "kv_heads": "tensor",
    "kv_head": None,  # the single head of multi-query attention, replicated
    "head_dim": None,
    "heads_all": None,  # the vectors of all heads, concatenated
    "outputs": None,  # of a head with a few outputs instead of the vocabulary
    "embed_in": None,  # the width of a factorised embedding
    "stem_in": None,  # what a stem projects to the width, such as a patch's pixels
    "codes": None,  # rows of a codebook
    "code": None,  # the numbers of one
    "latent": None,  # the numbers of a bottleneck's vector
    "hidden": "tensor",
    "gates": None,  # of a recurrent layer
    "blocks": "tensor",  # of a block-diagonal matrix
    "block_in": None,
    "block_out": None,
    "taps": None,  # of a convolution
    "experts": "expert",
    "position": None,
    "types": None,
    "buckets": None,
    "layers": None,
    "rank": None,  # between the two matrices of an adapter
    "tiles": None,  # of a quantised matrix whose inputs share scales
}

ACTIVATIONS: dict[str, str | tuple[str, ...] | None] = {
    "batch": ROWS,
    "batch_by_expert": ("slice", "data", "fsdp"),  # rows after their tokens moved to the devices of their experts
    "batch_by_table": ("slice", "data", "expert"),  # rows after their tokens moved to the devices that hold a table's shards
    "experts": "expert",
    "capacity": None,
    "length": "sequence",
    "keys": None,  # a device needs all keys of its rows
    "embed_act": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "kv_head": None,
    "head_dim": None,
    "hidden": "tensor",
    "vocab_act": "tensor",
}

RULES = {**PARAMETERS, **ACTIVATIONS}  # names in both tables map to the same mesh axes
Names = tuple[str | None, ...]
BATCH = PartitionSpec(ROWS)


def make_mesh(c: config.Mesh, devices: list[Any] | None = None) -> Mesh:
    """Returns the mesh over `devices` (None: all). An axis of size -1 gets the devices that the others leave; `data` is -1 by
    default and becomes 1 if another axis is."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(c, axis) for axis in AXES]
    if sizes.count(-1) > 1 and c.data == -1:
        sizes[AXES.index("data")] = 1
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) > 1 or len(devices) % known or (-1 not in sizes and known != len(devices)):
        wanted = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True) if s != 1) or "data=1"
        raise UserError(f"mesh {wanted} does not divide {len(devices)} devices; set one of config.mesh.* to -1")
    sizes = [len(devices) // known if s == -1 else s for s in sizes]
    return Mesh(_device_array(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _device_array(sizes: list[int], devices: list[Any]) -> np.ndarray:
    """Returns the devices as an array of these sizes whose neighbours are linked; only the first axis crosses slices."""
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
    except (NotImplementedError, ValueError) as error:  # the sizes do not factor over the torus
        raise UserError(f"these devices cannot be laid out as {dict(zip(AXES, sizes, strict=True))}: {error}") from error


@contextmanager
def use(mesh: Mesh) -> Generator[None]:
    """Context in which the mesh is set and logical axis names are mapped to it, for tracing and running."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield


def check_batch(batch_size: int, microbatches: int, mesh: Mesh, *, name: str = "train.batch_size") -> None:
    """Raises UserError unless microbatches divide evenly over the mesh's data shards; `name` is the setting in the error."""
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    if batch_size % (microbatches * shards):
        fitting = max(1, round(batch_size / (microbatches * shards))) * microbatches * shards
        raise UserError(
            f"{name}={batch_size} does not divide over {shards} data shards x {microbatches} microbatches; take {fitting}"
        )


def waits_on_host(placed: Any) -> bool:
    """Whether arrays of this sharding are in the host's memory and not in a device's, which on a CPU are the same."""
    return placed.memory_kind == HOST and next(iter(placed.device_set)).platform != "cpu"


def on_device(tree: Any) -> Any:
    """The arrays, with copies on the devices of those that are in the host's memory, with which no device computes."""

    def moved(x: jax.Array) -> jax.Array:
        here = x.sharding.with_memory_kind("device")
        return jax.jit(lambda x: jax.device_put(x, here))(x)

    return jax.tree.map(lambda x: moved(x) if x.sharding.memory_kind == HOST else x, tree)


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Returns the shardings of parameters with logical axis names (the abstract result of `model.init`). ValueError for a
    missing or unknown name, UserError if an axis does not divide over its mesh axes."""

    def one(path: Any, leaf: Any) -> NamedSharding:
        param = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(leaf, nn.LogicallyPartitioned):
            raise ValueError(f"parameter {param} names no axes; make it with nn.with_logical_partitioning")
        axes = []
        for name, size in zip(leaf.names, leaf.value.shape, strict=True):
            if name is None or name not in PARAMETERS:
                raise ValueError(f"parameter {param}: unknown axis name '{name}'{nearest(str(name), PARAMETERS)}")
            axis = PARAMETERS[name]
            mesh_sizes = {a: mesh.shape[a] for a in _as_tuple(axis)}
            if size % math.prod(mesh_sizes.values()):
                shown = " x ".join(f"{a}={n}" for a, n in mesh_sizes.items() if n > 1)
                raise UserError(f"parameter {param}: axis '{name}' of {size} does not divide over {shown}")
            axes.append(axis if axis not in axes else None)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def _as_tuple(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axis is None else (axis,) if isinstance(axis, str) else axis


def shards(name: str) -> int:
    """Returns the number of shards of a logical axis on the current mesh; 1 outside of `use`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in _as_tuple(RULES[name]))


def divides(x: jax.Array, names: Names) -> bool:
    """Whether the leading axes of x, with these names, divide evenly over the current mesh."""
    return all(n % shards(name) == 0 for n, name in zip(x.shape, names, strict=False) if name)


def kv_axis(heads: int) -> str:
    """Returns the logical name of an axis of so many key-value heads: a single one (multi-query) is replicated."""
    return "kv_heads" if heads > 1 else "kv_head"


def spec(*names: str | None) -> PartitionSpec:
    """Returns the PartitionSpec of an array with these logical axes (None: not sharded)."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in names))


def shard_map_by_axes(fn: Callable[..., Any], inputs: tuple[Names, ...], output: Names, *, summed: Names) -> Callable[..., Any]:
    """Returns `fn` under `jax.shard_map`: each device runs it on its shards of the arguments. Outside of `use`, `fn` itself.

    inputs: logical axes of each argument.
    output: logical axes of each result.
    summed: logical axes over whose mesh axes results are summed.

    If the first argument does not divide over the devices, as with a single prompt, calls `fn` and leaves it to the compiler.
    """

    def call(*arguments: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or not divides(arguments[0], inputs[0]):
            return fn(*arguments)
        mesh_axes = tuple(axis for name in summed if name for axis in _as_tuple(RULES[name]))
        fn_and_sum = lambda *local: jax.lax.psum(fn(*local), mesh_axes)
        in_specs = tuple(spec(*names) for names in inputs)
        return jax.shard_map(fn_and_sum, in_specs=in_specs, out_specs=spec(*output), check_vma=False)(*arguments)

    return call


REPLICATED, TOKEN_SHARDED = PartitionSpec(), PartitionSpec(ROWS, ACTIVATIONS["length"])


def shard_map_tokens(fn: Callable[..., Any], inputs: tuple[PartitionSpec, ...], outputs: Any) -> Callable[..., Any]:
    """Returns `fn` under `jax.shard_map`: each device runs it on its own rows and tokens. Outside of `use`, `fn` itself.

    Specs are REPLICATED or TOKEN_SHARDED (arrays [B, T, ...]), one for each argument and for each subtree of the results;
    replicated results must be summed with `psum_tokens`. Other sharded axes, such as a vocabulary, are left to the compiler,
    and so is everything if rows or tokens do not divide over the devices.
    """

    def call(*arguments: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        sharded = [
            x for tree, spec in zip(arguments, inputs, strict=True) if spec == TOKEN_SHARDED for x in jax.tree.leaves(tree)
        ]
        if mesh.empty or not all(divides(x, ("batch", "length")) for x in sharded):
            return fn(*arguments)
        mesh_axes = {axis for part in TOKEN_SHARDED for axis in _as_tuple(part)}
        return jax.shard_map(fn, in_specs=inputs, out_specs=outputs, axis_names=mesh_axes, check_vma=False)(*arguments)

    return call


def psum_tokens(x: jax.Array) -> jax.Array:
    """Sums x over all devices' tokens within `shard_map_tokens`; the result is replicated.

    Not a reduce-scatter: if a vocabulary is sharded over "tensor", XLA gathers it before scattering.
    """
    mesh_axes = jax.sharding.get_abstract_mesh().manual_axes
    total = lambda x: jax.lax.psum(x, mesh_axes)
    # On a CPU, XLA crashes on a bfloat16 psum if some axes are left to the compiler (jax 0.10.2).
    wider = lambda x: total(x.astype(jnp.float32)).astype(x.dtype)
    return jax.lax.platform_dependent(x, cpu=wider, default=total) if mesh_axes else x


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def global_batch(make: Callable[[np.ndarray], Any], index: np.ndarray, mesh: Mesh) -> Any:
    """Returns rows `index` (int64 [B], the same on all processes) as global arrays sharded over the data axes.

    `make(index)` returns rows as a pytree of numpy arrays [B, ...]; a process calls it for the rows of its own devices alone.
    """
    sharding = NamedSharding(mesh, BATCH)
    slices = sharding.addressable_devices_indices_map((len(index),)).values()
    spans = sorted({s[0].indices(len(index))[:2] for s in slices if s is not None})
    local = np.unique(np.concatenate([np.arange(*span) for span in spans]))
    rows = make(index[local])

    def to_global(leaf: np.ndarray) -> jax.Array:
        def shard(index_of_shard: tuple[slice, ...] | None) -> np.ndarray:
            assert index_of_shard is not None
            first, last, _ = index_of_shard[0].indices(len(index))
            return leaf[np.searchsorted(local, first) : np.searchsorted(local, last)]

        return jax.make_array_from_callback((len(index), *leaf.shape[1:]), sharding, shard)

    return jax.tree.map(to_global, rows)


def replicated_params(params: Any, shardings: Any, mesh: Mesh, least: int = 2**16) -> list[str]:
    """Returns the names of replicated parameters of at least `least` elements, if the mesh has axes that shard parameters."""
    if mesh.shape["fsdp"] * mesh.shape["sequence"] * mesh.shape["tensor"] == 1:
        return []
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, leaf), s in zip(flat, jax.tree.leaves(shardings), strict=True)
        if math.prod(leaf.shape) >= least and s.is_fully_replicated
    ]
