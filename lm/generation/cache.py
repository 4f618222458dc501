"""The cache of a fixed number of slots: how it is allocated, and how a prompt's own cache is put into a slot.

Axes: S slots, K key heads, L length, H head dim. Arrays of scanned layers have one more axis in front.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from lm import config
from lm.models.attention import quantised
from lm.models.mask import ring_index
from lm.models.transformer import Transformer
from lm.sharding import kv_axis, spec
from lm.types import TokenStream

Kind = Literal["own", "bfloat16", "int8"]  # of keys and values: as the model computes them, or smaller


def allocated(
    model: Transformer, params: Any, *, slots: int, length: int, source: int, kind: Kind, ahead: int, prefix: bool
) -> Any:
    """An empty cache with room for `length` tokens in each slot, and for `source` that an encoder reads. Each slot has a length
    of its own. `ahead`: tokens that are read at once beyond the next one. `prefix`: those of a prompt attend to each other.

    Layers with a window keep the last tokens alone, in a ring (`lm.models.mask.ring_index`). Keys and values of kind int8 have
    a float32 scale for each vector.
    """
    one = jnp.zeros((slots, 1), jnp.int32)
    long = jnp.zeros((slots, source), jnp.int32)

    def first(params: Any) -> Any:
        variables = {"params": params}
        encoded: Any = ()
        if source:
            stem: Any = model.config.encoder and model.config.encoder.stem
            vectors = stem and jnp.zeros((slots, *stem.inputs))
            encoded = model.apply(variables, TokenStream(long, long, long, vectors=vectors), method="encoded")
        stream = TokenStream(one, one, one, one > 0 if prefix else None)
        return model.apply(variables, stream, *encoded, cache_length=length, method="decode", mutable=["cache"])[1]["cache"]

    windows = _windows(model.config)
    out: dict[tuple[str, ...], jax.Array] = {}
    for path, x in flatten_dict(jax.eval_shape(first, params)).items():
        shape = list(x.shape or (slots,))
        if path[-1] not in ("key", "value"):
            out[path] = jnp.zeros(shape, x.dtype)
            continue
        at = axis(path) + 2
        if path[-2] == "attention" and (window := windows.get(path[1:3])):
            shape[at] = min(shape[at], window + ahead)
        out[path] = jnp.zeros(shape, x.dtype if kind == "own" else kind)
        if kind == "int8":
            out[_scale(path)] = jnp.zeros(shape[:-1], jnp.float32)
    return unflatten_dict(out)


def put(slots: Any, slot: jax.Array, row: Any, size: jax.Array) -> Any:
    """The cache with `row`, that of a prompt of `size` tokens, in a slot."""
    old, new = flatten_dict(slots), flatten_dict(row)
    for path, x in new.items():
        have, at = old[path], axis(path)
        if not x.ndim:  # the length
            old[path] = have.at[slot].set(size.astype(have.dtype))
            continue
        if path[-1] in ("key", "value"):
            room = have.shape[at + 2]
            if x.shape[at + 2] > room:
                x = jnp.take(x, jnp.maximum(ring_index(size, room), 0), axis=at + 2)
            if _scale(path) in old:
                x, scale = quantised(x)
                old[_scale(path)] = _updated(old[_scale(path)], scale, slot, at)
        else:  # segments: 0 behind the prompt, so that nothing older is seen
            x = jnp.pad(x, [(0, h - n) if i > at else (0, 0) for i, (h, n) in enumerate(zip(have.shape, x.shape, strict=True))])
        old[path] = _updated(have, x, slot, at)
    return unflatten_dict(old)


def beginning(slots: Any, slot: jax.Array, size: jax.Array, *, rows: int = 1) -> Any:
    """The cache of the first `size` tokens of a slot, `rows` times. What the slot holds behind them is not seen."""
    out: dict[tuple[str, ...], jax.Array] = {}
    for path, x in flatten_dict(slots).items():
        if path[-1] == "length":
            out[path] = size
            continue
        x = jnp.repeat(jax.lax.dynamic_slice_in_dim(x, slot, 1, axis=axis(path)), rows, axis=axis(path))
        out[path] = jnp.where(jnp.arange(x.shape[-1]) < size, x, 0) if path[-1] == "segments" else x
    return unflatten_dict(out)


def goes_on_only(slots: Any) -> bool:
    """Whether a layer keeps the last tokens alone, or a state that cannot go back to what it was."""
    flat = flatten_dict(slots)
    own = [(path, x) for path, x in flat.items() if path[-2:] == ("attention", "key")]
    rings = any(x.shape[axis(path) + 2] < slots["segments"].shape[1] for path, x in own)
    return rings or any("mixer" in path for path in flat)


def first_row(cache: Any) -> Any:
    """The cache of the first row alone."""
    return _each(lambda x, at: jax.lax.slice_in_dim(x, 0, 1, axis=at) if x.ndim else x, cache)


def spread(row: Any, count: int, size: jax.Array) -> Any:
    """`count` times the cache of a prompt of `size` tokens; each has a length of its own."""
    return _each(lambda x, at: jnp.repeat(x, count, axis=at) if x.ndim else jnp.full(count, size, x.dtype), row)


def taken(cache: Any, rows: jax.Array) -> Any:
    """The cache of these rows, int32 [N]."""
    return _each(lambda x, at: jnp.take(x, rows, axis=at), cache)


def _each(f: Callable[[jax.Array, int], jax.Array], cache: Any) -> Any:
    return unflatten_dict({path: f(x, axis(path)) for path, x in flatten_dict(cache).items()})


def specs(cache: Any) -> Any:
    """The PartitionSpecs of a cache with a length for each row: rows like a batch, heads like the parameters."""

    def one(path: tuple[str, ...], x: jax.Array) -> PartitionSpec:
        heads = path[-1].startswith(("key", "value"))
        names = ["batch", kv_axis(x.shape[axis(path) + 1])] if heads else ["batch"]
        names = [None] * axis(path) + names
        return spec(*names, *[None] * (x.ndim - len(names)))

    return unflatten_dict({path: one(path, x) for path, x in flatten_dict(cache).items()})


def axis(path: tuple[str, ...]) -> int:
    """The axis of the rows: scanned layers are stacked before it."""
    return int("groups" in path)


def _updated(old: jax.Array, new: jax.Array, slot: jax.Array, at: int) -> jax.Array:
    start = [slot if i == at else 0 for i in range(old.ndim)]
    return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)


def _scale(path: tuple[str, ...]) -> tuple[str, ...]:
    return (*path[:-1], f"{path[-1]}_scale")


def _windows(model: config.Model) -> dict[tuple[str, ...], int]:
    """(group, block) as in a cache's paths -> its window, for layers whose cache may be a ring."""
    stack = model.decoder
    if stack is None or isinstance(stack.position, (config.Buckets, config.Alibi)):  # whose biases have a column for each key
        return {}
    if model.join == "prefix":  # whose vectors stand in the cache before the tokens
        return {}
    letters, size = stack.letters(), len(stack.pattern)
    groups = ["groups"] if stack.scan else [f"group_{i}" for i in range(-(-len(letters) // size))]
    windows: dict[tuple[str, ...], int] = {}
    for g, group in enumerate(groups):
        for i, letter in enumerate(letters[g * size : (g + 1) * size]):
            block = stack.blocks[letter]
            if block.mixer is None and block.attention is not None and (window := block.attention.window):
                windows[group, f"block_{i}"] = window
    return windows
