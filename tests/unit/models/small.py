"""Small models of every kind, their parameters and inputs, shared by the tests of models and of decoding."""

import dataclasses
from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.config import (
    Alibi,
    Attention,
    Block,
    Buckets,
    GatedLinear,
    Gru,
    Head,
    Learned,
    Lstm,
    Mamba2,
    Mlp,
    Model,
    Norm,
    Rope,
    Sinusoidal,
    Stack,
)
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream

V, D, T = 23, 16, 10
BLOCK = Block(Attention(4), Mlp(24))


def decoder(block=BLOCK, position=None, **changes) -> Model:
    stack = {f.name: changes.pop(f.name) for f in dataclasses.fields(Stack) if f.name in changes}
    blocks = stack.pop("blocks", {"L": block})
    settings = dict(head=Head(tied=False)) | changes  # a tied random model repeats its last token
    return Model(V, D, decoder=Stack(stack.pop("num_layers", 2), blocks, position=position, **stack), **settings)


def both(position=None, **stack) -> Model:
    make = lambda cross: Stack(2, {"L": replace(BLOCK, cross=cross)}, position=position, **stack)
    return Model(V, D, encoder=make(False), decoder=make(True), head=Head(tied=False))


def stream(tokens, segments=None, prefix=None) -> TokenStream:
    tokens = np.asarray(tokens, np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return TokenStream(tokens, positions, np.ones_like(tokens) if segments is None else segments, prefix)


def random_stream(seed=0, length=T, batch=2, **settings) -> TokenStream:
    return stream(np.random.default_rng(seed).integers(1, V, (batch, length)), **settings)


def example_for(model: Model) -> Example:
    return Example(random_stream(1, 7) if model.encoder else None, random_stream() if model.decoder else None, None, None)


@lru_cache
def start(model: Model):
    """Returns the module and random parameters, biases and scales included; drawn by NumPy, since compiling `init` is slow."""
    module, rng = Transformer(model), np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), example_for(model)))["params"]

    def one(path, leaf):
        noise = rng.normal(size=leaf.shape)
        match path[-1].key:
            case "kernel":
                noise *= (leaf.shape[-1] * leaf.shape[-2]) ** -0.25
            case "scale":
                noise = 1 + 0.1 * noise
            case "bias":
                noise *= 0.1
        return jnp.asarray(noise, leaf.dtype)

    return module, jax.tree_util.tree_map_with_path(one, shapes)


@partial(jax.jit, static_argnums=0)
def apply(module, params, example):
    return module.apply({"params": params}, example)


def logits(model: Model, params, example) -> np.ndarray:
    return np.asarray(apply(Transformer(model), params, example), np.float32)


def close(a, b, atol=2e-5):
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


DECODERS = {
    "rope": decoder(position=Rope()),
    "gqa, window": decoder(
        replace(BLOCK, attention=Attention(4, 2, window=3, softcap=5.0)), Rope(fraction=0.5, interleaved=True)
    ),
    "mqa, learned": decoder(
        replace(BLOCK, attention=Attention(4, 1, bias=True, qk_norm=Norm("rms"))), Learned(16, offset=2), num_layers=1
    ),
    "alibi": decoder(position=Alibi(), num_layers=1),
    "buckets": decoder(position=Buckets(8, 8), num_layers=1),
    "sinusoidal": decoder(replace(BLOCK, parallel="shared"), Sinusoidal(), num_layers=1),
    "scanned LG": decoder(
        blocks={"L": replace(BLOCK, attention=Attention(4, window=3)), "G": BLOCK},
        pattern="LG",
        num_layers=4,
        scan=True,
        position=Rope(),
    ),
    "recurrent RRL": decoder(
        blocks={
            "R": Block(None, Mlp(24), mixer=GatedLinear(num_heads=2)),
            "L": replace(BLOCK, attention=Attention(4, 1, window=3)),
        },
        pattern="RRL",
        num_layers=3,
        position=Rope(),
    ),
    "mamba2, scanned": decoder(Block(mixer=Mamba2(hidden=32, head_dim=8, state=4, groups=2, chunk=4)), num_layers=2, scan=True),
    "lstm": decoder(Block(None, Mlp(24), mixer=Lstm()), num_layers=1),
    "lstm and additive attention": Model(
        V,
        D,
        encoder=Stack(1, {"L": Block(None, Mlp(24), mixer=Lstm(direction="both"))}),
        decoder=Stack(1, {"L": Block(Attention(2, score="additive"), Mlp(24), mixer=Gru(), cross=True)}),
        head=Head(tied=False),
    ),
    "additive attention": decoder(replace(BLOCK, attention=Attention(4, 2, score="additive", window=4)), Rope(), num_layers=1),
    "encoder-decoder": both(Buckets(8, 8)),
    "encoder-decoder, shared": replace(both(Rope()), shared=True),
    "encoder-decoder, scanned": both(Learned(16), scan=True),
}
