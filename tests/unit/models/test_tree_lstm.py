"""Tree-LSTM: equal to a recursion over nodes written plainly in torch, states and gradients; trees in a row do not see each
other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Block, Model, Stack, TreeLstm
from lm.data import trees
from lm.models.mixers.tree_lstm import tree_states
from lm.models.transformer import abstract_params
from lm.types import Tree, TreeSizes

torch = pytest.importorskip("torch")

H, PLACES = 5, 3


def random_tree(rng: np.random.Generator, leaves: int, most: int) -> trees.Nodes:
    """A tree over so many leaves, all of another shape, with 2 to `most` children at a node."""
    parts = [([0], [0]) for _ in range(leaves)]
    while len(parts) > 1:
        count = min(len(parts), int(rng.integers(2, most + 1)))
        at = int(rng.integers(len(parts) - count + 1))
        joined = [[x for part in parts[at : at + count] for x in part[i]] for i in range(2)]
        parts[at : at + count] = [([*joined[0], 0], [*joined[1], count])]
    return trees.Nodes(tuple(parts[0][0]), tuple(parts[0][1]))


def batch(rows: list[list[trees.Nodes]], length: int, width: int) -> Tree:
    """Rows of several trees each, in the fewest steps of `width` nodes."""
    each = [[trees.arrays(tree) for tree in row] for row in rows]
    alone = [trees.joined(row, length, TreeSizes(length, width, PLACES)).children for row in each]
    steps = max(trees.num_steps(trees.levels(children), width) for children in alone)
    return jax.tree.map(lambda *x: np.stack(x), *(trees.joined(row, length, TreeSizes(steps, width, PLACES)) for row in each))


def recursive(inputs: torch.Tensor, kernel: torch.Tensor, children: np.ndarray, places: int | None):
    """h [T, H] of a row by equations 2-8, or 9-14 with `places` for children, node by node."""

    def state(j: int) -> tuple[torch.Tensor, torch.Tensor]:
        states = [state(k) for k in children[j] if k >= 0]
        i, o, u, f = inputs[j]
        kept = torch.zeros(H, dtype=inputs.dtype)
        if places is None:
            h = sum((h for h, _ in states), torch.zeros(H, dtype=inputs.dtype))
            i, o, u = (x + h @ kernel[:, g] for g, x in enumerate((i, o, u)))
            for h, c in states:
                kept = kept + torch.sigmoid(f + h @ kernel[:, 3]) * c
        else:
            u_of = kernel.reshape(places, H, 3 + places, H)
            forget = [f] * len(states)
            for k, (h, _) in enumerate(states):
                i, o, u = (x + h @ u_of[k, :, g] for g, x in enumerate((i, o, u)))
                forget = [x + h @ u_of[k, :, 3 + n] for n, x in enumerate(forget)]
            for x, (_, c) in zip(forget, states, strict=True):
                kept = kept + torch.sigmoid(x) * c
        c = torch.sigmoid(i) * torch.tanh(u) + kept
        found[j] = torch.sigmoid(o) * torch.tanh(c)
        return found[j], c

    found: dict[int, torch.Tensor] = {}
    for root in set(range(len(children))) - set(children.ravel().tolist()):
        state(root)
    return torch.stack([found[j] for j in range(len(children))])


@pytest.mark.parametrize("places", [None, PLACES])
@pytest.mark.parametrize("width", [1, 3])
def test_states_and_gradients_are_those_of_the_recursion(places, width):
    """Four rows of one to three trees of random shapes, a chain among them."""
    rng = np.random.default_rng(0)
    rows = [[random_tree(rng, int(n), PLACES) for n in some] for some in ((7,), (3, 4), (1, 2, 3))]
    rows.append([trees.over(np.arange(8), "right", 0)])
    tree, length = batch(rows, 16, width), 16
    shape = (H, 4, H) if places is None else (places * H, 3 + places, H)
    inputs, kernel = rng.normal(size=(4, length, 4, H)).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    weights = rng.normal(size=(4, length, H)).astype(np.float32)

    ours = lambda inputs, kernel: tree_states(inputs, kernel, tree, ordered=places is not None)
    got, pull = jax.vjp(jax.jit(ours), jnp.asarray(inputs), jnp.asarray(kernel))
    gradients = pull(jnp.asarray(weights))

    x, u = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (inputs, kernel))
    expected = torch.stack([recursive(x[b], u, tree.children[b], places) for b in range(4)])
    (expected * torch.tensor(weights, dtype=torch.float64)).sum().backward()
    np.testing.assert_allclose(got, expected.detach(), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients, (x.grad, u.grad), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("places", [None, PLACES])
def test_trees_of_a_row_are_as_if_each_had_its_own(places):
    """And padding changes nothing; the states are equal to the bit for one compiled size."""
    rng = np.random.default_rng(1)
    some = [random_tree(rng, n, PLACES) for n in (5, 2, 6)]
    together = batch([some], 40, 2)
    kernel = rng.normal(size=(H, 4, H) if places is None else (places * H, 3 + places, H)).astype(np.float32)
    inputs = rng.normal(size=(1, 40, 4, H)).astype(np.float32)
    whole = np.asarray(tree_states(inputs, kernel, together, ordered=places is not None))
    begin = 0
    for tree in some:
        end = begin + len(tree.read)
        own = np.zeros_like(inputs)
        own[:, : end - begin] = inputs[:, begin:end]
        sizes = TreeSizes(*together.steps.shape[1:], PLACES)
        alone = jax.tree.map(lambda x: x[None], trees.joined([trees.arrays(tree)], 40, sizes))
        states = np.asarray(tree_states(own, kernel, alone, ordered=places is not None))
        np.testing.assert_array_equal(states[:, : end - begin], whole[:, begin:end])
        begin = end


def test_one_program_serves_trees_of_all_shapes():
    rng = np.random.default_rng(2)
    traced = []

    @jax.jit
    def states(inputs, kernel, tree):
        traced.append(tree.steps.shape)
        return tree_states(inputs, kernel, tree, ordered=False)

    kernel = rng.normal(size=(H, 4, H)).astype(np.float32)
    for shape in ("balanced", "right"):
        tree = trees.arrays(trees.over(np.arange(8), shape, 0))
        row = jax.tree.map(lambda x: jnp.asarray(x)[None], trees.joined([tree], 20, TreeSizes(7, 2, 2)))
        states(rng.normal(size=(1, 20, 4, H)).astype(np.float32), kernel, row)
    assert traced == [(1, 7, 2)]


@pytest.mark.parametrize(("children", "shape"), [(None, (8, 4, 8)), (3, (24, 6, 8))], ids=["child-sum", "ordered"])
def test_a_models_parameters_are_known_without_a_tree(children, shape):
    """As a saved model is opened."""
    model = Model(16, 8, encoder=Stack(1, {"L": Block(ffn=None, mixer=TreeLstm(children=children))}))
    shapes = [
        x.shape for path, x in jax.tree.leaves_with_path(abstract_params(model)) if "recurrent" in jax.tree_util.keystr(path)
    ]
    assert [found[-3:] for found in shapes] == [shape]
