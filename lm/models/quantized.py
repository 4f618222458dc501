"""Weights of fewer bits, which a model reads as it reads any others: int8 and int4 with scales (qwix), or bfloat16.

    params = quantized.weights(Transformer(model), params, "int4")
    model.apply({"params": params}, ...)

Quantisation is after training and of weights alone: activations and products keep the model's dtype. In int8 each output of a
matrix has a scale ("vector-wise", arXiv 2208.07339). In int4 each GROUP of inputs to an output has a scale and a zero point
("grouping", arXiv 2210.17323): 16 levels are too few for a row of any length, and symmetric ones have 1.2 times the error on
SmolLM2-135M. Matrices over the vocabulary are int8 in both, with a scale for each token: a tied table is both the model's input
and its output. Biases, norms, routers, heads of a few outputs, and tables of positions and types are small, and stay as they
are.

A quantised matrix lies in a box of Flax's metadata, which a module opens where it reads the parameter. Where layers are
scanned, one layer's matrices are whole at a time.
"""

import math
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lm import config
from lm.errors import UserError
from lm.models.transformer import Transformer, boxed_params

GROUP = 32  # inputs that share a scale in int4
NF4_GROUP = 64  # in nf4, as QLoRA has it
SMALLEST = 8  # if a group had fewer, because the inputs do not divide by GROUP, all of them share a scale
STACKED = ("layers", "experts", "blocks")  # axes that count matrices
KEPT = {"outputs", "position", "types"}  # axes of the matrices that stay as they are


class Quantized(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A box with a `qwix.QArray`. A scan over layers slices its values and its scales alike."""

    array: Any

    def unbox(self) -> jax.Array:
        return dequantized(self.array)

    def replace_boxed(self, val: Any) -> Self:
        raise TypeError("quantised weights are never written")

    def add_axis(self, index: int, params: dict[Any, Any]) -> Self:
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Self:
        return self


def weights(model: Transformer, params: dict[str, Any], kind: config.Weights | None) -> dict[str, Any]:
    """The parameters of a model in fewer bits; None: as they are. UserError for integers without qwix."""
    if kind is None:
        return params
    if kind == "bfloat16":
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)

    def one(path: tuple[Any, ...], box: Any, x: jax.Array) -> Any:
        if path[-1].key not in ("kernel", "embedding") or KEPT & set(box.names):
            return x
        return Quantized(matrix(x, box.names, "int8" if "vocab" in box.names else kind))

    boxed = lambda x: isinstance(x, nn.meta.AxisMetadata)
    return jax.tree_util.tree_map_with_path(one, boxed_params(model), params, is_leaf=boxed)


def matrix(x: jax.Array, axes: tuple[str, ...], kind: str) -> Any:
    """A matrix with these logical axes as a `qwix.QArray`: int8, int4, or nf4, whose 16 levels are the quantiles of a normal
    distribution, with a scale for NF4_GROUP inputs (QLoRA, arXiv 2305.14314). UserError without qwix."""
    try:
        import qwix
    except ImportError as error:
        raise UserError(f"{kind} weights need qwix ({error}): pip install -e '.[quantize]'") from None
    if kind == "int8":
        return qwix.quantize(x, jnp.int8, channelwise_axes=_outputs(axes))
    last = input_axes(axes)[-1]
    group = math.gcd(x.shape[last], GROUP if kind == "int4" else NF4_GROUP)
    tiles = {last: group if group >= SMALLEST else x.shape[last]}
    rest = [axis for axis in range(x.ndim) if axis != last]
    options: Any = dict(calibration_method="minmax" if kind == "int4" else "absmax", scale_dtype=jnp.bfloat16)
    return qwix.quantize(x, jnp.int4 if kind == "int4" else kind, channelwise_axes=rest, tiled_axes=tiles, **options)


def dequantized(array: Any) -> jax.Array:
    """A `qwix.QArray` as float32."""
    import qwix

    return qwix.dequantize(array.astype(jnp.float32))


def input_axes(axes: tuple[str, ...]) -> list[int]:
    """The axes of a kernel that its product sums over: those before its outputs, which are one axis, or heads by their size."""
    first = sum(name in STACKED for name in axes)
    return list(range(first, len(axes) - (2 if axes[-1] == "head_dim" else 1)))


def _outputs(axes: tuple[str, ...]) -> list[int]:
    """All other axes. Of a table of tokens these are its rows: they are the outputs of a tied head."""
    return [0] if axes[0] == "vocab" else [axis for axis in range(len(axes)) if axis not in input_axes(axes)]


def size(params: Any) -> int:
    """Bytes of the parameters, those of int4 packed by two. (`nbytes` of an int4 array counts a byte for each.)"""
    bits = lambda x: jnp.iinfo(x.dtype).bits if jnp.issubdtype(x.dtype, jnp.integer) else 8 * x.dtype.itemsize
    return sum(x.size * bits(x) for x in jax.tree.leaves(params)) // 8
