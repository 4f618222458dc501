"""The Conformer's parts and the stem of sound, against torch's functions; padding and other documents change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config
from lm.errors import UserError
from lm.models.context import Context
from lm.models.mask import Mask
from lm.models.mixers.convolution import Convolution
from lm.models.stem_frames import Frames
from lm.models.transformer import Transformer, abstract_params
from lm.types import Example, TokenStream, vector_stream

D, T = 8, 11
HALF = config.Mlp(24, "silu", bias=True)
BLOCKS = {
    "F": config.Block(ffn=HALF, scale=0.5),
    "A": config.Block(config.Attention(2)),
    "C": config.Block(mixer=config.Convolution(5)),
    "G": config.Block(ffn=HALF, scale=0.5, norm_at=("in", "out")),
}
STACK = config.Stack(8, BLOCKS, "FACG", config.Rope(), final_norm=False, stem=config.Frames(40, 6, strides=(2, 2)))
MODEL = config.Model(30, D, STACK, head=config.Head(tied=False, bias=True))


def filled(module, *args):
    """Parameters of a module, none of them zero or one."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x, shapes))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.5, x.shape).astype(np.float32) for x in leaves])


def arrays(params):
    return {name: jax.tree.map(lambda x: x, part) for name, part in params.items()}


def context(segments) -> Context:
    segments = jnp.asarray(segments, jnp.int32)
    return Context(Mask(segments, segments), jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape))


def test_the_convolution_module_equals_torchs_functions():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    module = Convolution(config.Convolution(5))
    x = np.random.default_rng(1).normal(size=(2, T, D)).astype(np.float32)
    ones = context(np.ones((2, T)))
    p = unboxed(filled(module, x, ones))
    ours = module.apply({"params": p}, x, ones)
    t = jax.tree.map(torch.tensor, p)
    linear = lambda name, y: F.linear(y, t[name]["kernel"].T, t[name]["bias"])
    inside = torch.tensor(x)
    glu = F.glu(torch.cat([linear("up", inside), linear("gate", inside)], -1), -1)
    depthwise = F.conv1d(glu.mT, t["taps"].T[:, None], padding=2, groups=D).mT
    norm = F.layer_norm(depthwise, (D,), t["norm"]["scale"], t["norm"]["bias"], 1e-5)
    np.testing.assert_allclose(ours, linear("down", F.silu(norm)).numpy(), rtol=1e-5, atol=1e-5)


def unboxed(params):
    from flax import linen as nn

    return nn.unbox(params)


def test_the_convolution_sees_no_other_document():
    """Two documents in a row give what each gives alone, and padding gives nothing to either."""
    module = Convolution(config.Convolution(5))
    x = np.random.default_rng(1).normal(size=(1, T, D)).astype(np.float32)
    p = unboxed(filled(module, x, context(np.ones((1, T)))))
    packed = module.apply({"params": p}, x, context([[1] * 4 + [2] * 5 + [0] * 2]))
    for part in (slice(0, 4), slice(4, 9)):
        y = x[:, part]
        np.testing.assert_allclose(packed[:, part], module.apply({"params": p}, y, context(np.ones(y.shape[:2]))), atol=1e-6)


@pytest.mark.parametrize("strides, kernel", [((1, 2), 3), ((2, 2), 3), ((1,), 5), ((2, 1, 2), 3)])
def test_the_stem_equals_torchs_convolutions(strides, kernel):
    torch = pytest.importorskip("torch")
    c = config.Frames(21, 6, kernel, strides)
    vectors = np.random.default_rng(2).normal(size=(2, 21, 6)).astype(np.float32)
    module, segments = Frames(c, D), np.ones((2, c.length), np.int32)
    p = unboxed(filled(module, vectors, segments))
    y = torch.tensor(vectors).mT
    for i, stride in enumerate(strides):
        weight, bias = (torch.tensor(p[f"conv_{i}"][name]) for name in ("kernel", "bias"))
        y = torch.nn.functional.gelu(torch.nn.functional.conv1d(y, weight.permute(2, 1, 0), bias, stride, kernel // 2))
        assert y.shape[-1] == c.lengths[i]
    np.testing.assert_allclose(module.apply({"params": p}, vectors, segments), y.mT.numpy(), rtol=1e-5, atol=1e-5)


def example(frames: np.ndarray, row: int, used: int) -> Example:
    """One utterance in a row of `row` frames; the stack reads `used` vectors of it, and padding is not silence."""
    vectors = np.full((1, row, frames.shape[1]), 7.0, np.float32)
    vectors[0, : len(frames)] = frames
    stream = vector_stream(vectors, -(-row // 4))
    segments = (np.arange(stream.tokens.shape[1]) < used).astype(np.int32)[None]
    return Example(dataclasses.replace(stream, segments=segments), None, None, None)


def test_an_utterance_does_not_depend_on_the_rows_length():
    model = Transformer(MODEL)
    params = jax.tree.map(lambda x: np.random.default_rng(0).normal(0, 0.3, x.shape).astype(np.float32), abstract_params(MODEL))
    frames = np.random.default_rng(3).normal(size=(24, 6)).astype(np.float32)
    short, long = (model.apply({"params": params}, example(frames, row, 6))[:, :6] for row in (24, 40))
    np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-5)


def test_a_scanned_conformer_equals_the_unrolled_one():
    from lm.models.transformer import stack_groups

    params = jax.tree.map(lambda x: np.random.default_rng(0).normal(0, 0.3, x.shape).astype(np.float32), abstract_params(MODEL))
    scanned = dataclasses.replace(MODEL, encoder=dataclasses.replace(STACK, scan=True))
    one = example(np.random.default_rng(3).normal(size=(24, 6)).astype(np.float32), 40, 6)
    a = Transformer(MODEL).apply({"params": params}, one)
    b = Transformer(scanned).apply({"params": stack_groups(params)}, one)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_half_a_feed_forward_is_half():
    """A block of a feed-forward alone adds `scale` times its output."""
    block = dataclasses.replace(BLOCKS["F"], norm_at=())
    outputs = []
    for scale in (1.0, 0.5):
        stack = config.Stack(1, {"F": dataclasses.replace(block, scale=scale)}, "F", final_norm=False)
        model = config.Model(30, D, stack, head=None)
        params = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), abstract_params(model))
        tokens = np.arange(4, dtype=np.int32)[None]
        stream = TokenStream(tokens, tokens, np.ones_like(tokens))
        outputs.append(np.asarray(Transformer(model).apply({"params": params}, Example(stream, None, None, None))))
    np.testing.assert_allclose(outputs[1] - 0.1, (outputs[0] - 0.1) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: config.Block(), "a block has attention, a mixer, or a feed-forward alone"),
        (lambda: config.Block(ffn=HALF, cross=True), "a feed-forward alone has cross=False"),
        (lambda: config.Convolution(4), "give an odd number"),
        (lambda: config.Frames(kernel=2), "give an odd kernel"),
        (
            lambda: config.Model(9, D, decoder=config.Stack(1, {"C": BLOCKS["C"]}, "C")),
            "decoder.blocks.C.mixer is a convolution, which sees what a decoder has yet to write",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()
