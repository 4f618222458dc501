"""Matrix products have forms that the CPU libraries accept, and no compiled program contains one that none accepts."""

import importlib.metadata
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import startup
from lm.config import Attention, Block, Head, Mlp, Model, Rope, Sampling, Stack
from lm.generation import programs
from lm.generation.engine import Engine, Request
from lm.models.matmul import affine_transposed, batched_matmul
from lm.models.transformer import Transformer, abstract_params
from lm.types import Example, TokenStream

ROOT = Path(__file__).parents[3]
SHAPES = [(1, 64, 7), (5, 64, 1), (5, 1, 7), (1, 1, 1), (3, 4, 5)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
def test_batched_products(rows, inner, columns, dtype):
    """Values and gradients of matrices and vectors, in the dtype of the inputs."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(2, 3, *shape)), dtype) for shape in ((rows, inner), (inner, columns)))
    gradients = jax.jit(jax.grad(lambda x, y: jnp.sum(batched_matmul(x, y).astype("float32")), argnums=(0, 1)))(x, y)
    made = batched_matmul(x, y)
    assert made.dtype == dtype and [g.dtype for g in gradients] == [dtype, dtype]
    a, b = (np.asarray(v, np.float64) for v in (x, y))
    exact = [a @ b, np.broadcast_to(b.sum(-1)[..., None, :], a.shape), np.broadcast_to(a.sum(-2)[..., None], b.shape)]
    for got, right in zip((made, *gradients), exact, strict=True):
        np.testing.assert_allclose(np.asarray(got, np.float64), right, rtol=1e-5, atol=0.15 if dtype == "bfloat16" else 1e-5)


def test_decoding_in_bfloat16_has_no_batch_of_vectors():
    """XLA's CPU compiler (jaxlib 0.12) assigns such a product to a library, which does not accept it."""
    block = Block(Attention(4), Mlp(32))
    model = Model(50, 32, decoder=Stack(1, {"L": block}, position=Rope()), head=Head(), dtype="bfloat16")
    setup, params = programs.Setup(Transformer(model)), abstract_params(model)
    slots = jax.eval_shape(partial(programs.empty, setup, slots=8, length=6), params, None)
    given = np.zeros((1, 3), np.int32), np.int32(3), None
    lowered = programs.jitted().prefill.lower(setup.model, params, *given, prefix=False).as_text()
    given = slots, np.zeros(1, np.int32), np.int32(1), None
    lowered += programs.jitted().decode.lower(setup, params, None, *given, most=1, way="greedy").as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line and "batching_dims = [0" in line]
    assert len(products) >= 4, "prompt and step each look at keys and at values"
    for line in products:
        left, right = (shape.split("x") for shape in re.findall(r"tensor<([^>]*)>", line)[:2])
        assert "bf16" not in (left[-1], right[-1]) or "1" not in (*left[2:4], *right[2:4]), line


def test_texts_are_decoded_by_other_code_than_training(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=512")
    assert startup.decoding_options() is None, "nothing is changed where nothing was set"
    monkeypatch.setenv("XLA_FLAGS", " ".join(startup.FLAGS))
    options = startup.decoding_options()
    assert options is not None and options["xla_cpu_use_onednn"] is False
    flags = {flag.removeprefix("--").partition("=")[0] for flag in startup.FLAGS}
    assert options.keys() <= flags, "nothing is set that training leaves alone"


def under_the_flags():
    """`compiler_options` of the flags that `lm.startup` sets for training."""
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
        pytest.skip("before jaxlib 0.12 `lm.startup` sets no flags")
    flags = dict(flag.removeprefix("--").split("=") for flag in startup.FLAGS)
    return {name: {"true": True}.get(value, int(value) if value.isdigit() else value) for name, value in flags.items()}


@pytest.mark.parametrize("shape", [(4096, 64, 256), (1024, 128, 512), (4096, 256, 64)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_that_is_scaled_is_right_under_the_flags(shape, dtype):
    """A weight's gradient that is divided by the number of tokens, against NumPy in float64. Nothing else reads the scale that
    is spread over the result's shape, so XLA may put the result in its place."""
    (k, m, n), rng = shape, np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(k, size)), dtype) for size in (m, n))
    scaled = lambda a, b, tokens: jnp.einsum("km,kn->mn", a, b) / jnp.maximum(tokens, 1).astype(dtype)
    found = jax.jit(scaled, compiler_options=under_the_flags())(a, b, jnp.float32(50))
    exact = np.asarray(a, np.float64).T @ np.asarray(b, np.float64) / 50
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, atol={"float32": 1e-5, "bfloat16": 0.05}[dtype])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_under_the_flags_are_those_without(dtype):
    """Of all parameters of a decoder over 4,096 tokens, divided by their number as in a step."""
    block = Block(Attention(2), Mlp(256))
    model = Model(64, 64, decoder=Stack(2, {"L": block}, position=Rope()), head=Head(tied=False), dtype=dtype)
    tokens = np.random.default_rng(0).integers(4, 64, (32, 128)).astype(np.int32)
    ones = np.ones_like(tokens)
    stream = TokenStream(tokens, np.arange(128, dtype=np.int32) + np.zeros_like(tokens), ones)
    batch = Example(None, stream, None, None)
    params = nn.unbox(jax.jit(Transformer(model).init)(jax.random.key(0), batch)["params"])

    def gradient(params, batch, count):
        # Made twice on purpose: where they were made once, XLA with the old flag happened to share no memory.
        logits = lambda p: Transformer(model).apply({"params": p}, batch)
        nats = lambda p: jnp.sum(jax.nn.logsumexp(logits(p).astype(jnp.float32), -1) - logits(p).astype(jnp.float32)[..., 7])
        return jax.tree.map(lambda g: g / jnp.maximum(count, 1), jax.grad(nats)(params))

    lowered = jax.jit(gradient).lower(params, batch, jnp.float32(4096))
    plain, flagged = (lowered.compile(options)(params, batch, jnp.float32(4096)) for options in ({}, under_the_flags()))
    for (path, exact), found in zip(jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(flagged), strict=True):
        largest = float(jnp.abs(exact).max())
        np.testing.assert_allclose(found, exact, atol={"float32": 1e-4, "bfloat16": 0.05}[dtype] * largest, err_msg=str(path))


def test_one_text_is_decoded_as_among_several():
    model = Model(50, 32, decoder=Stack(1, {"L": Block(Attention(4), Mlp(32))}, position=Rope()))
    prompts = [np.arange(1, 4, dtype=np.int32), np.arange(5, 10, dtype=np.int32)]
    params = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), abstract_params(model))
    say = lambda prompts: [
        [w.token for w in written]
        for (written,) in Engine(Transformer(model), params, slots=len(prompts), length=9).write(
            [Request(p, 4, Sampling(temperature=0.0)) for p in prompts]
        )
    ]
    assert [*say(prompts[:1]), *say(prompts[1:])] == say(prompts)


@pytest.mark.skipif(
    tuple(int(n) for n in importlib.metadata.version("jaxlib").split(".")[:2]) < (0, 12), reason="the flags are of jaxlib 0.12"
)
def test_what_decodes_in_bfloat16_compiles_with_our_flags():
    """The hardest cases of `tests/sweeps/cpu_products.py`: batches and caches large enough for XLA to call a library."""
    words = [sys.executable, "-m", "tests.sweeps.cpu_products", "--together", "--kinds=mha;limited;both", "--dtypes=bfloat16"]
    words += ["--programs=generate,rank letters", "--batches=33", "--lengths=33"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "LM_CPU_TUNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(" ok\n") == 6


@pytest.mark.parametrize("rows", [(1,), (2, 3), (65,)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_table_is_multiplied_by_few_rows_as_by_many(rows, bias):
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=shape).astype(np.float32) for shape in ((*rows, 12), (40, 12), (40,)))
    made = jax.jit(affine_transposed)(x, w, b if bias else None)
    np.testing.assert_allclose(made, x @ w.T + (b if bias else 0), atol=1e-5)
    slope = jax.grad(lambda x: affine_transposed(x, w).sum())(x)
    np.testing.assert_allclose(slope, np.broadcast_to(w.sum(0), x.shape), atol=1e-4)
