"""Stems: vectors in place of tokens, and models that have no table of tokens."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, flops
from lm.errors import UserError
from lm.models.transformer import Transformer, abstract_params
from lm.types import Example, vector_stream

RNG = np.random.default_rng(0)
BLOCKS = {"L": config.Block(config.Attention(4), config.Mlp(64))}
STEM = config.Patches(8, 32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
ENCODER = config.Stack(1, BLOCKS, position=config.Learned(17), stem=STEM)
MODEL = config.Model(1, 32, encoder=ENCODER, head=config.Head(tied=False, outputs=5))


def example(vectors: np.ndarray) -> Example:
    stream = vector_stream(vectors, STEM.length)
    return Example(stream, None, np.zeros((len(vectors), 1), np.int32), np.ones((len(vectors), 1), np.float32))


def test_patches_of_bytes_are_those_of_normalised_floats():
    """Class token, then the projections of the patches: against plain NumPy."""
    pixels = RNG.integers(0, 256, (2, 16, 192), dtype=np.uint8)
    model = Transformer(MODEL)
    params = model.init(jax.random.key(0), example(pixels))["params"]
    floats = ((pixels.reshape(2, 16, 64, 3) / 255 - np.array(STEM.mean)) / np.array(STEM.std)).reshape(2, 16, 192)
    found = [model.apply({"params": params}, example(x).encoder, "encoder", method="embedded") for x in (pixels, floats)]
    tree = jax.tree.map(np.asarray, nn.unbox(params["embed"]))
    stem = tree["encoder_stem"]
    projected = floats @ stem["patches"]["kernel"] + stem["patches"]["bias"]
    wanted = np.concatenate([np.broadcast_to(stem["class_token"], (2, 1, 32)), projected], axis=1)
    wanted = wanted + tree["encoder_positions"]["embedding"]
    for one in found:
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-5)


def test_a_decoder_beside_a_stem_has_its_table():
    decoder = config.Stack(1, {"L": replace(BLOCKS["L"], cross=True)})
    both = config.Model(40, 32, encoder=ENCODER, decoder=decoder)
    params = abstract_params(both)
    assert params["embed"]["tokens"]["embedding"].shape == (40, 32) and "encoder_stem" in params["embed"]
    assert "tokens" not in abstract_params(MODEL)["embed"]


def test_flops_are_those_of_xla():
    """One layer without attention's pairs: the products of the ledger against XLA's count of the compiled forward pass."""
    batch, model = example(RNG.normal(size=(4, 16, 192)).astype(np.float32)), Transformer(MODEL)
    params = model.init(jax.random.key(0), batch)["params"]
    compiled = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(params, batch).compile()
    counted = flops.count(MODEL, batch=4, encoder=17, causal_share=1.0)
    assert counted.embed == 2 * 4 * 16 * 192 * 32
    assert counted.forward == pytest.approx(compiled.cost_analysis()["flops"], rel=0.12)  # XLA counts norms and softmax too
    assert flops.of_rows(MODEL, batch, everywhere=True).forward == counted.forward


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda: config.Patches(7, 32), "does not divide image=32"),
        (lambda: config.Patches(8, 32, mean=(0.1, 0.2)), "mean has 2 numbers"),
        (lambda: replace(MODEL, head=config.Head()), "no stack reads tokens"),
        (lambda: replace(MODEL, encoder=replace(ENCODER, position=config.Learned(16))), "less than the 17 vectors"),
        (lambda: replace(MODEL, embed=config.Embed(width=8)), "leave it out"),
        (lambda: config.Model(40, 32, decoder=ENCODER), "a decoder reads the tokens"),
    ],
)
def test_refusals(change, words):
    with pytest.raises(UserError, match=words):
        change()


def test_gradients_reach_the_stem():
    batch, model = example(RNG.normal(size=(2, 16, 192)).astype(np.float32)), Transformer(MODEL)
    params = model.init(jax.random.key(0), batch)["params"]
    gradient = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, batch) ** 2))(params)
    assert all(bool(jnp.any(x != 0)) for x in jax.tree.leaves(gradient["embed"]))
