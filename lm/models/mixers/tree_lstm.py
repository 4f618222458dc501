"""Tree-LSTM (Tai, Socher and Manning, arXiv 1503.00075): a node's state is made of those of its children.

Axes: B batch, T nodes of a row, C children of a node, S steps, W nodes of a step, H units.

The states of leaves are computed at once, those of inner nodes step by step, the W nodes of a step together. One compiled
program serves all trees that fit its T, C, S and W, whatever their shapes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import config
from lm.errors import UserError
from lm.models.context import Context
from lm.models.layers import Projection, parameter
from lm.models.matmul import affine
from lm.models.mixers.common import Kernel
from lm.types import Tree

# (kernel, inputs [B, W, 4, H], states of children [B, W, C, 2, H]) -> h and c, [B, W, 2, H]
Cell = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def tree_states(inputs: jax.Array, kernel: jax.Array, tree: Tree, *, ordered: bool) -> jax.Array:
    """Returns the hidden vectors of all nodes, float32 [B, T, H].

    inputs: float32 [B, T, 4, H], `W x + b` of the gates i, o, u and f. kernel, in the dtype of the computation: [H, 4, H] for
    children in no order (equations 2-8), or [C H, 3 + C, H] for children in order (equations 9-14), where the last C gates are
    those by which the first child is forgotten, the second, ...

        child-sum   i, o, u of W x + U sum_k h_k,     f_k of W x + U h_k
        ordered     i, o, u of W x + sum_k U_k h_k,   f_k of W x + sum_l U_kl h_l
        both        c = i u + sum_k f_k c_k,  h = o tanh(c);  i, o, f by sigmoid, u by tanh
    """
    batch, nodes, _, size = inputs.shape
    steps = tree.steps.reshape(batch, -1)
    # Places of states: those of leaves are at their nodes, those of inner nodes behind all nodes in the order of the steps.
    place = jnp.where(tree.slots < 0, jnp.arange(nodes), nodes + tree.slots)
    children = _take(tree.children, steps, fill=-1)
    below = _take(place, children.reshape(batch, -1), fill=-1).reshape(children.shape)
    above = jnp.concatenate([jnp.where(tree.slots < 0, tree.edges, -1), _take(tree.edges, steps, fill=-1)], axis=1)
    leaves = _opened(inputs[:, :, :3], 0.0)
    own = _moved(inputs, steps, tree.slots)
    by_step = lambda x: jnp.moveaxis(x.reshape(*tree.steps.shape, *x.shape[2:]), 1, 0)
    states = _climbed(_ordered if ordered else _child_sum, leaves, by_step(own), kernel, by_step(below), above)
    every = jnp.concatenate([jnp.broadcast_to(jnp.arange(nodes), place.shape), steps], axis=1)  # the node of each place
    is_there = _take(place, every, fill=-1) == jnp.arange(every.shape[1])
    return _moved(states[:, :, 0], place, jnp.where(is_there, every, -1))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _climbed(cell: Cell, leaves: jax.Array, own: jax.Array, kernel: jax.Array, below: jax.Array, above: jax.Array) -> jax.Array:
    """Returns the states of all places, [B, T + S W, 2, H], from those of the leaves, [B, T, 2, H].

    own [S, B, W, 4, H]: inputs. below [S, B, W, C]: places of children, -1 none. above [B, T + S W]: which of the S W C
    children each place is. The gradient reads what each parent sends to its children, step by step from the roots down. That
    of a loop over reads of an array would add an array as large as all states at each step.
    """
    nodes, (steps, batch, width, _, size) = leaves.shape[1], own.shape

    def step(states: jax.Array, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        start, inputs, children = at
        new = cell(kernel, inputs, _read(states, children))
        return jax.lax.dynamic_update_slice_in_dim(states, new, start, axis=1), None

    states = jnp.concatenate([leaves, jnp.zeros((batch, steps * width, 2, size))], axis=1)
    return jax.lax.scan(step, states, (nodes + width * jnp.arange(steps), own, below))[0]


def _climbed_forward(cell: Cell, leaves: jax.Array, *rest: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    states = _climbed(cell, leaves, *rest)
    return states, (states, *rest)


def _climbed_backward(cell: Cell, kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[Any, ...]:
    states, own, kernel, below, above = kept
    steps, batch, width, children = below.shape
    nodes = states.shape[1] - steps * width
    by_step = lambda x: jnp.moveaxis(x[:, nodes:].reshape(batch, steps, width, *x.shape[2:]), 1, 0)

    def step(carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        sent, of_kernel = carry
        start, inputs, below, above, g = at
        _, pull = jax.vjp(cell, kernel, inputs, _read(states, below))
        more, of_inputs, of_children = pull(g + _take(sent, above))
        of_children = of_children.reshape(batch, width * children, *of_children.shape[3:])
        return (jax.lax.dynamic_update_slice_in_dim(sent, of_children, start, axis=1), of_kernel + more), of_inputs

    sent = jnp.zeros((batch, steps * width * children, *states.shape[2:]))
    at = (width * children * jnp.arange(steps), own, below, by_step(above), by_step(gradient))
    (sent, of_kernel), of_own = jax.lax.scan(step, (sent, jnp.zeros_like(kernel)), at, reverse=True)
    return gradient[:, :nodes] + _take(sent, above[:, :nodes]), of_own, of_kernel, None, None


_climbed.defvjp(_climbed_forward, _climbed_backward)


def _take(x: jax.Array, index: jax.Array, fill: int = 0) -> jax.Array:
    """x [B, T, ...], index [B, W] -> [B, W, ...], `fill` where the index is -1."""
    index = jnp.where(index < 0, x.shape[1], index)
    return jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=fill))(x, index)


def _read(states: jax.Array, children: jax.Array) -> jax.Array:
    """States [B, P, 2, H] of children at places [B, W, C]: [B, W, C, 2, H], zeros where there is none."""
    return _take(states, children.reshape(len(children), -1)).reshape(*children.shape, *states.shape[2:])


@jax.custom_vjp
def _moved(x: jax.Array, index: jax.Array, back: jax.Array) -> jax.Array:
    """As `_take`, of an index that names no place twice, and `back` [B, T], its inverse. So the gradient is read at `back`: a
    CPU takes ten times as long to add at an index as to read there."""
    return _take(x, index)


def _moved_forward(x: jax.Array, index: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _take(x, index), back


def _moved_backward(back: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    return _take(gradient, back), None, None


_moved.defvjp(_moved_forward, _moved_backward)


def _opened(gates: jax.Array, kept: jax.Array | float) -> jax.Array:
    """Gates i, o, u [..., 3, H] and what is kept of the children's cells [..., H] -> h and c [..., 2, H]."""
    c = nn.sigmoid(gates[..., 0, :]) * jnp.tanh(gates[..., 2, :]) + kept
    return jnp.stack([nn.sigmoid(gates[..., 1, :]) * jnp.tanh(c), c], axis=-2)


def _product(h: jax.Array, kernel: jax.Array) -> jax.Array:
    return affine(h.astype(kernel.dtype), kernel).astype(jnp.float32)


def _child_sum(kernel: jax.Array, inputs: jax.Array, children: jax.Array) -> jax.Array:
    h, c = children[..., 0, :], children[..., 1, :]  # zeros where there is no child, whose forget gate then does nothing
    forget = nn.sigmoid(inputs[..., 3:, :] + _product(h, kernel[:, 3]))
    return _opened(inputs[..., :3, :] + _product(jnp.sum(h, axis=-2), kernel[:, :3]), jnp.sum(forget * c, axis=-2))


def _ordered(kernel: jax.Array, inputs: jax.Array, children: jax.Array) -> jax.Array:
    h, c = children[..., 0, :], children[..., 1, :]
    added = _product(h.reshape(*h.shape[:-2], -1), kernel)
    forget = nn.sigmoid(inputs[..., 3:, :] + added[..., 3:, :])
    return _opened(inputs[..., :3, :] + added[..., :3, :], jnp.sum(forget * c, axis=-2))


class TreeLstm(nn.Module):
    """x [B, T, D] -> [B, T, D]: the hidden vectors of `tree_states`, times V; zeros at padding. Without `context.tree`, as when
    parameters are made, all nodes are leaves."""

    config: config.TreeLstm
    std: float | None = None
    out_std: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        places, size = self.config.children, self.config.size(x.shape[-1])
        if context.tree is None and not self.is_initializing():
            raise UserError(
                "the model has a tree-LSTM, which reads trees, and here are none: it learns and is tested with "
                "recipe.kind=finetune and recipe.trees"
            )
        tree = _leaves(x, places or 1) if context.tree is None else context.tree
        if places is not None and context.tree is not None and tree.children.shape[-1] != places:
            raise ValueError(f"nodes have up to {tree.children.shape[-1]} children, and the layer's have {places}")
        x = nn.with_logical_constraint(x, ("batch", "keys", "embed_act"))  # each device computes whole rows
        axes, dtypes = ("embed", "gates", "head_dim"), dict[str, Any](dtype=self.dtype, param_dtype=self.param_dtype)
        inputs = Projection((4, size), axes, std=self.std, name="in", **dtypes)(x).astype(jnp.float32)
        bias = parameter(self, "bias", _first_bias, (4, size), axes[1:], self.param_dtype)
        shape = (size, 4, size) if places is None else (places * size, 3 + places, size)
        kernel = Kernel(shape, axes, shape[0], std=self.std, param_dtype=self.param_dtype, name="recurrent")()
        h = tree_states(inputs + bias, kernel.astype(self.dtype), tree, ordered=places is not None)
        h = jnp.where(context.mask.q_segments[..., None] > 0, h, 0).astype(self.dtype)
        y = Projection((x.shape[-1],), ("hidden", "embed"), std=self.out_std, name="out", **dtypes)(h)
        return nn.with_logical_constraint(y, ("batch", "length", "embed_act"))


def _first_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """1 for the forget gate, as `lm.models.mixers.lstm` has it."""
    return jnp.zeros(shape, dtype).at[3].set(1)


def _leaves(x: jax.Array, children: int) -> Tree:
    """Trees whose nodes are all leaves, with room for so many children at each."""
    batch, nodes = x.shape[:2]
    return Tree(*(jnp.full((batch, *shape), -1, jnp.int32) for shape in ((nodes, children), (0, 1), (nodes,), (nodes,))))
