"""Layers, positions and heads, compared with their formulas."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm.config import Head, Mlp, Rope
from lm.models.layers import ACTIVATIONS
from lm.models.positions import rotate, sinusoidal
from tests.unit.models.small import (
    BLOCK,
    V,
    close,
    decoder,
    example_for,
    logits,
    start,
)


def test_a_gated_mlp():
    model = decoder(replace(BLOCK, ffn=Mlp(24, "silu", gated=True, bias=True)), num_layers=1)
    example = example_for(model)
    module, params = start(model)
    ffn, captured = params["decoder"]["group_0"]["block_0"]["ffn"], {}

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.module.name == "ffn":
            captured.update(x=args[0], y=out)
        return out

    @jax.jit
    def inside():
        with nn.intercept_methods(record):
            module.apply({"params": params}, example)
        return dict(captured)

    io = jax.tree.map(np.asarray, inside())
    line = lambda name, x: x @ np.asarray(ffn[name]["kernel"]) + np.asarray(ffn[name]["bias"])
    up = line("up", io["x"])
    close(io["y"], line("down", up / (1 + np.exp(-up)) * line("gate", io["x"])), 1e-5)


def test_activations():
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    for name, theirs in dict(
        gelu=lambda x: nn.gelu(x, approximate=False), gelu_tanh=nn.gelu, relu=nn.relu, silu=nn.silu
    ).items():
        close(jax.jit(ACTIVATIONS[name])(x), jax.jit(theirs)(x), 1e-6)


def test_head_softcap_scale_and_bias():
    plain = decoder(num_layers=1, head=Head())
    example = example_for(plain)
    _, params = start(plain)
    base = logits(plain, params, example)
    bias = np.linspace(-1, 1, V, dtype=np.float32)
    model = replace(plain, head=Head(bias=True, scale=0.5, softcap=2.0))
    got = logits(model, params | {"head": {"bias": bias}}, example)
    close(got, 2 * np.tanh((base + bias) * 0.5 / 2), 1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_depends_on_distance_alone(interleaved):
    rope = Rope(fraction=0.5, interleaved=interleaved)
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    turn = jax.jit(lambda x, at: rotate(x, at, rope))
    product = lambda i, j: float(np.sum(turn(q, np.array([[i]])) * turn(k, np.array([[j]]))))
    assert abs(product(3, 1) - product(103, 101)) < 1e-4
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    np.testing.assert_array_equal(turn(q, np.array([[7]]))[..., 4:], q[..., 4:])


def test_sinusoidal_positions():

    got = np.asarray(jax.jit(lambda: sinusoidal(jnp.arange(20)[None], 6))())[0]
    for t in range(20):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)
            close(got[t, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], 1e-5)
