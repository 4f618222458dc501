"""Log-probabilities of targets against jax.nn.log_softmax of all logits: values, gradients, what may not be asked."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm.config import Attention, Block, Head, Mlp, Model, Rope, Stack
from lm.losses.chunked import chunked_map, chunked_sum
from lm.losses.log_probs import forbid, log_probs, log_softmax_at, token_log_probs, token_scores
from lm.models.transformer import Transformer, head_params
from lm.types import Example, TokenStream

B, T, D, V = 3, 8, 16, 29
HEADS = {"tied": Head(bias=True), "untied": Head(tied=False), "capped": Head(softcap=3.0, scale=0.5)}
FORBIDDEN = np.arange(V) % 4 == 3


def setup(head="tied", dtype="float32"):
    """(apply, parameters of logits that differ much, an Example with padding)."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    tokens -= FORBIDDEN[tokens]  # no target is forbidden
    real = np.arange(T) < np.array([[8], [5], [2]])
    stream = TokenStream(tokens[:, :-1], np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)), real.astype(np.int32))
    example = jax.tree.map(jnp.asarray, Example(None, stream, tokens[:, 1:], real.astype(np.float32)))
    stack = Stack(1, {"L": Block(Attention(2), Mlp(16))}, position=Rope())
    network = Transformer(Model(V, D, decoder=stack, head=HEADS[head], dtype=dtype))
    shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), example))["params"]
    return network.apply, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, x.dtype), shapes), example


def plain(params, apply, example, forbidden=None):
    logits = apply({"params": params}, example).astype(jnp.float32)
    logits = logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), example.targets[..., None], axis=-1)[..., 0]


def with_gradient(fn, params, example):
    """Values [B, P], and the gradient of a sum in which each of them has a factor of its own that depends on it."""

    def loss(params):
        values = fn(params, example=example)
        return jnp.sum(example.weights * jnp.sin(values) * jnp.arange(1.0, T + 1)), values

    (_, values), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return values, gradient


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.float32(x), np.float32(y), **tolerance), a, b)


@pytest.mark.parametrize("head,forbidden,chunks", [("tied", None, 4), ("untied", FORBIDDEN, 2), ("capped", FORBIDDEN, 1)])
def test_values_and_gradients_are_those_of_log_softmax(head, forbidden, chunks):
    apply, params, example = setup(head)
    ours = partial(log_probs, apply=apply, head_params=head_params, vocab_size=V, forbidden=forbidden, chunks=chunks)
    values, gradient = with_gradient(ours, params, example)
    expected, expected_gradient = with_gradient(partial(plain, apply=apply, forbidden=forbidden), params, example)
    assert values.shape == (B, T) and values.dtype == jnp.float32 and np.ptp(values) > 1
    close(values, expected, rtol=1e-5, atol=1e-5)
    close(gradient, expected_gradient, rtol=2e-5, atol=2e-5)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


def test_bfloat16_is_as_near_as_plain_bfloat16():
    """Both against float32: logits are rounded to eight bits, the softmax and the sums over tokens are not."""
    apply, params, example = setup(dtype="bfloat16")
    exact = with_gradient(partial(plain, apply=setup()[0]), params, example)
    simple = with_gradient(partial(plain, apply=apply), params, example)
    ours = with_gradient(partial(log_probs, apply=apply, head_params=head_params, vocab_size=V, chunks=4), params, example)
    assert ours[0].dtype == jnp.float32
    apart = lambda x, y: np.square(np.asarray(x) - np.asarray(y)).sum()
    distance = lambda a: np.sqrt(sum(jax.tree.leaves(jax.tree.map(apart, a, exact))))
    assert distance(ours) < 1.5 * distance(simple)


def test_no_array_is_as_large_as_all_logits():
    """Neither in the forward pass nor in the backward pass."""
    apply, params, example = setup()
    loss = lambda p: jnp.sum(log_probs(p, apply, example, head_params=head_params, vocab_size=V, chunks=4) ** 2)
    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    assert f"tensor<{B}x{T // 4}x{V}xf32>" in text or f"tensor<{B * T // 4}x{V}xf32>" in text
    assert not any(f"tensor<{shape}xf32>" in text for shape in (f"{B}x{T}x{V}", f"{B * T}x{V}", f"4x{B}x{T // 4}x{V}"))


def test_several_tokens_after_each():
    """Targets [B, P, K]: K tokens after each prefix, from one softmax."""
    apply, params, example = setup()
    hidden = jax.jit(partial(apply, method="hidden"))({"params": params}, example)
    every = jnp.broadcast_to(jnp.arange(V), (B, T, V))
    got = jax.jit(lambda h: token_log_probs(head_params(params), apply, h, every, vocab_size=V, chunks=2))(hidden)
    close(got, jax.nn.log_softmax(jax.jit(apply)({"params": params}, example)), rtol=1e-5, atol=1e-5)
    close(np.exp(got).sum(-1), np.ones((B, T)), rtol=1e-5)


def test_token_scores():
    apply, params, example = setup()
    got = jax.jit(lambda p, e: token_scores(p, apply, e, head_params=head_params, vocab_size=V, forbidden=FORBIDDEN))(
        params, example
    )
    logits = np.where(FORBIDDEN, -np.inf, jax.jit(apply)({"params": params}, example))
    close(got.log_probs, jax.jit(log_softmax_at)(logits, example.targets), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.is_top, logits.argmax(-1) == example.targets)


def test_a_forbidden_target_is_finite_and_unlikely():
    value = log_softmax_at(forbid(jnp.array([0.0, 1.0], jnp.bfloat16), jnp.array([True, False])), jnp.array(0))
    assert -np.inf < value < -1e29 and 0.0 * value == 0


# -------------------------------------------------------------------------------------------- what has no gradient


H, W, WEIGHTS = np.ones((2, 4, 3), np.float32), {"w": np.full((3, 5), 0.5, np.float32)}, np.ones((2, 4), np.float32)


def squares(params, hidden, weights):
    """A sum, and beside it floats and integers of each token."""
    x = jnp.sum(hidden @ params["w"], axis=-1)
    return jnp.sum(weights * x**2), {"float": x, "int": x.astype(jnp.int32)}


def use_sum(params, hidden=H, weights=WEIGHTS):
    total, also = chunked_sum(squares, params, hidden, weights, 2)
    return total, also


def test_arrays_beside_a_sum_refuse_a_gradient():
    with pytest.raises(TypeError, match="only through its sum, not through the arrays beside it"):
        jax.jit(jax.grad(lambda p: jnp.sum(use_sum(p)[1]["float"])))(W)
    with pytest.raises(TypeError, match="only through its sum"):
        jax.grad(lambda p: use_sum(p)[0] + 0.1 * use_sum(p)[1]["float"][0, 0])(W)
    with pytest.raises(TypeError, match="only through its sum"):  # in a compiled part, and in hidden vectors too
        jax.grad(lambda h: jnp.sum(jax.jit(use_sum)(W, h)[1]["float"]))(H)


def test_arrays_beside_a_sum_can_be_used():
    """As results, as integers that later arithmetic depends on, and behind a stop_gradient."""
    direct = jax.jit(jax.grad(lambda p: squares(p, H, WEIGHTS)[0]))(W)

    def loss(params):
        total, also = jax.jit(use_sum)(params)
        picked = params["w"][0, also["int"][0, 0] % 5]
        return total + 0.0 * picked + jnp.sum(jax.lax.stop_gradient(also["float"])), also

    gradient, also = jax.jit(jax.grad(loss, has_aux=True))(W)
    close(gradient, direct, rtol=1e-6)
    np.testing.assert_array_equal(also["int"], np.full((2, 4), 7))

    def body(total, _):  # where a loop makes all cotangents arrays of zeros
        more, also = use_sum(W | {"w": total * W["w"]})
        return total + 1e-3 * more, also["int"]

    assert float(jax.jit(jax.grad(lambda x: jax.lax.scan(body, x, None, length=2)[0]))(1.0)) > 1


@pytest.mark.parametrize("chunked", [chunked_sum, chunked_map])
def test_the_rest_refuses_a_gradient(chunked):
    """It would be zeros, silently; where it is not differentiated it may be anything."""
    fn = squares if chunked is chunked_sum else lambda *args: squares(*args)[1]["float"] * args[2]
    total = lambda p, w: jnp.sum(jax.tree.leaves(chunked(fn, p, H, w, 2))[0])
    with pytest.raises(TypeError, match="not to `rest` .targets, weights.: put jax.lax.stop_gradient around it"):
        jax.jit(jax.grad(total, argnums=1))(W, WEIGHTS)
    jax.grad(lambda p: total(p, jax.lax.stop_gradient(p["w"][0, 0]) * WEIGHTS))(W)


def test_a_map_of_several_results():
    """Floats have gradients, integers and those that are not used need none."""
    fn = lambda p, h, w: squares(p, h, w)[1] | {"other": jnp.sum(h, axis=-1)}
    loss = lambda each: lambda p: jnp.sum(each(p)["float"] ** 3) + jnp.sum(each(p)["int"])
    got = jax.jit(jax.grad(loss(lambda p: chunked_map(fn, p, H, WEIGHTS, 2))))(W)
    close(got, jax.jit(jax.grad(loss(lambda p: fn(p, H, WEIGHTS))))(W), rtol=1e-6)
