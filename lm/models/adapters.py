"""Adapters of a frozen model: W + scale * A B in place of a matrix W, in front of anything that reads parameters.

    base = {"decoder": {"groups": {"block_0": {"attention": {"query": {"kernel": W [L, D, N, H]}, ...
    adapters =                                   {"query": {"kernel": {"a": [L, D, r], "b": [L, r, N, H]}}, ...
    model.apply({"params": merge(base, adapters, lora.factor)}, ...)

`merge` computes nothing: it puts each matrix with its adapter into a box of Flax's metadata, as quantised matrices are
(`lm.models.quantized`). A linear layer computes x W and, beside it, scale * (x A) B, so that a step has no gradient of W and no
sum of the size of W. Where the sum is needed itself (norms of DoRA, embeddings, experts) the module that reads the parameter
opens the box, and so computes the sum in float32; where layers are scanned, one layer's matrices are whole at a time. Of these
the gradient of W is computed too, though never stored, and 6 * rank * inputs * outputs more.

Axes: L layers or experts, D width, N heads, H head dim, r rank.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from lm import config
from lm.errors import UserError, nearest
from lm.models import quantized
from lm.models.quantized import Quantized, input_axes

ADAPTERS = "adapters"  # their name beside what else a run trains
LINEAR = ("query", "key", "value", "out", "up", "gate", "down", "in")  # the linear layers of a stack
Path = tuple[str, ...]


class Adapted(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A box with a matrix and its adapter. A scan over layers slices all of its arrays alike."""

    kernel: Any  # an array, or a `qwix.QArray`
    a: jax.Array
    b: jax.Array
    magnitude: jax.Array | None
    factor: float = struct.field(pytree_node=False)
    dropout: float = struct.field(pytree_node=False, default=0.0)  # of what A reads, where it is beside the matrix

    @property
    def frozen(self) -> jax.Array:
        """The matrix alone."""
        return quantized.dequantized(self.kernel) if hasattr(self.kernel, "qvalue") else self.kernel

    @property
    def beside(self) -> tuple[jax.Array, jax.Array] | None:
        """A and B, where x W + factor * (x A) B is all that the adapter does; None with DoRA."""
        return (self.a, self.b) if self.magnitude is None else None

    def unbox(self) -> jax.Array:
        return merged(self.kernel, self.a, self.b, self.magnitude, self.factor)

    def replace_boxed(self, val: Any) -> Self:
        raise TypeError("the matrix under an adapter is never written")

    def add_axis(self, index: int, params: dict[Any, Any]) -> Self:
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Self:
        return self


def merged(kernel: Any, a: jax.Array, b: jax.Array, magnitude: jax.Array | None, factor: float) -> jax.Array:
    """W + factor * A B in float32: kernel [*L, *I, *O], a [*L, *I, r], b [*L, r, *O].

    With `magnitude` [*L, *O] the weights V of each output are scaled to the norm |W| + magnitude, where |V| counts as a
    constant in the gradient (DoRA, arXiv 2402.09353, equations 5 and 11; its magnitude m is that sum).
    """
    w = quantized.dequantized(kernel) if hasattr(kernel, "qvalue") else kernel.astype(jnp.float32)
    stacked = tuple(range(a.ndim + b.ndim - 2 - w.ndim))
    contracted = ((a.ndim - 1,), (len(stacked),))
    wide = (x.astype(jnp.float32) for x in (a, b))
    v = w + factor * jax.lax.dot_general(*wide, (contracted, (stacked, stacked)), precision="highest")
    if magnitude is None:
        return v
    inputs = tuple(range(len(stacked), a.ndim - 1))
    norm = lambda x: jnp.sqrt(jnp.sum(x * x, axis=inputs, keepdims=True))
    wanted, now = norm(w) + jnp.expand_dims(magnitude, inputs), jax.lax.stop_gradient(norm(v))
    return v * (1 + (wanted - now) / now)  # XLA need not make wanted / now 1


def chosen(boxed: Mapping[str, Any], modules: Iterable[str] | None) -> dict[Path, Any]:
    """The matrices of a boxed tree of parameters that get an adapter, by path. UserError for a module that is not there."""
    matrices = {path: box for path, box in flatten_dict(boxed).items() if path[-1] in ("kernel", "embedding")}
    layers = {path for path in matrices if {"encoder", "decoder"} & set(path) and path[-2] in LINEAR}

    def named(name: str) -> set[Path]:
        parts = tuple(name.split("/"))
        among = layers if len(parts) == 1 else matrices
        found = {path for path in among if path[:-1][-len(parts) :] == parts}
        if not found:
            known = sorted({path[-2] for path in layers} | {"/".join(path[-3:-1]) for path in matrices})
            raise UserError(f"adapter.modules: no matrix '{name}'{nearest(name, known)}")
        return found

    wanted = layers if modules is None else set[Path]().union(*map(named, modules))
    return {path: box for path, box in matrices.items() if path in wanted}


def init(key: jax.Array, boxed: Mapping[str, Any], lora: config.Lora) -> dict[str, Any]:
    """New adapters of a boxed tree of parameters, whose values are not read: A is uniform within inputs ** -0.5, as in peft,
    and B is 0. All are float32, and boxed with the names of their axes."""
    found: dict[Path, Any] = {}
    for path, box in chosen(boxed, lora.modules).items():
        names, shape, inputs = box.names, box.value.shape, input_axes(box.names)
        first, last = inputs[0], inputs[-1] + 1
        own = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()) & 0x7FFFFFFF)
        a = jax.random.uniform(own, (*shape[:last], lora.rank), jnp.float32, -1.0, 1.0) * math.prod(shape[first:last]) ** -0.5
        found[*path, "a"] = nn.LogicallyPartitioned(a, (*names[:last], "rank"))
        outputs = (*shape[:first], lora.rank, *shape[last:])
        found[*path, "b"] = nn.LogicallyPartitioned(jnp.zeros(outputs), (*names[:first], "rank", *names[last:]))
        if lora.dora:
            norms = jnp.zeros((*shape[:first], *shape[last:]))
            found[*path, "magnitude"] = nn.LogicallyPartitioned(norms, (*names[:first], *names[last:]))
    return unflatten_dict(found)


def frozen(boxed: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A boxed tree of parameters as it lies in memory: linear layers of the kinds "int8" and "nf4" are `qwix.QArray`s, whose
    arrays are boxed with the names of their axes. Axes along which inputs share a scale are named "tiles"."""
    flat = flatten_dict(boxed)
    for path, box in {} if kind == "float" else chosen(boxed, None).items():
        name = lambda x, box=box: nn.LogicallyPartitioned(
            x,
            tuple(n if size == whole else "tiles" for n, size, whole in zip(box.names, x.shape, box.value.shape, strict=True)),
        )
        flat[path] = jax.tree.map(name, quantized.matrix(box.value, box.names, kind))
    return unflatten_dict(flat)


def as_held(params: Mapping[str, Any], boxed: Mapping[str, Any], kind: str, target: Any = None) -> dict[str, Any]:
    """Parameters as they lie in memory (`frozen`), with the shardings of `target`, abstract; None: on the default device."""
    if kind == "float":
        return dict(params)
    flat, placed = flatten_dict(params), None if target is None else flatten_dict(target)
    for path, box in chosen(boxed, None).items():
        put = None if placed is None else jax.tree.map(lambda x: x.sharding, placed[path])
        flat[path] = jax.jit(lambda x, names=box.names: quantized.matrix(x, names, kind), out_shardings=put)(flat[path])
    return unflatten_dict(flat)


def merge(base: Mapping[str, Any], adapters: Mapping[str, Any], factor: float, dropout: float = 0.0) -> dict[str, Any]:
    """The base's parameters with a box for each matrix that has an adapter, and for each that is quantised. `dropout` is of
    what the adapters of linear layers read, if a "dropout" rng is passed to the model."""
    flat = {path: Quantized(x) if hasattr(x, "qvalue") else x for path, x in flatten_dict(base).items()}
    by_matrix: dict[Path, dict[str, Any]] = {}
    for path, x in flatten_dict(adapters).items():
        by_matrix.setdefault(path[:-1], {})[path[-1]] = x
    for path, own in by_matrix.items():
        kernel = flat[path].array if isinstance(flat[path], Quantized) else flat[path]
        flat[path] = Adapted(kernel, own["a"], own["b"], own.get("magnitude"), factor, dropout)
    return unflatten_dict(flat)


@jax.jit
def unboxed(params: Mapping[str, Any]) -> Any:
    """What `merge` returns as arrays: those with an adapter, and those that are quantised, are float32."""
    return nn.unbox(params)


def added(params: Mapping[str, Any], own: Mapping[str, Any], boxed: Mapping[str, Any], lora: config.Lora) -> dict[str, Any]:
    """Parameters with adapters added, one matrix at a time: each in the dtype and with the sharding that it had, or as a NumPy
    array if it was one. A base that lay in fewer bits when the adapters were trained is rounded to these first."""
    flat, linear = flatten_dict(params), set() if lora.base == "float" else set(chosen(boxed, None))
    by_matrix: dict[Path, dict[str, Any]] = {path: {} for path in linear}
    for path, x in flatten_dict(own).items():
        by_matrix.setdefault(path[:-1], {})[path[-1]] = x
    names = {path: box.names for path, box in chosen(boxed, None).items()}

    def one(path: Path, x: Any, parts: dict[str, Any]) -> jax.Array:
        kernel = quantized.matrix(x, names[path], lora.base) if path in linear else x
        if not parts:
            return Quantized(kernel).unbox().astype(x.dtype)
        return merged(kernel, parts["a"], parts["b"], parts.get("magnitude"), lora.factor).astype(x.dtype)

    for path, parts in by_matrix.items():
        x = flat[path]
        placed = x.sharding if isinstance(x, jax.Array) else None
        y = jax.jit(partial(one, path), out_shardings=placed)(x, parts)
        flat[path] = y if isinstance(x, jax.Array) else np.asarray(y)
    return unflatten_dict(flat)
