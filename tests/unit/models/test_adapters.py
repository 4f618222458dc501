"""Adapters against plain NumPy: what is added to a matrix, in which precision; and that models begin as their base."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from lm import config
from lm.config import Attention, Block, Mlp, Moe, Rope
from lm.errors import UserError
from lm.models import adapters
from lm.models.layers import Projection
from lm.models.transformer import boxed_params
from tests.unit.models.small import BLOCK, DECODERS, V, apply, decoder, example_for, start

EXPERTS = decoder(replace(BLOCK, ffn=Moe(4, 2, expert=Mlp(32))), Rope(), num_layers=1)
WIDE = decoder(Block(Attention(2, 1, bias=True, head_dim=32), Mlp(64, gated=True, bias=True)), Rope(), num_layers=1)
MODELS = {"experts": EXPERTS, "wide": WIDE, **{name: DECODERS[name] for name in ("scanned LG", "encoder-decoder, scanned")}}


def new(module, lora, std=0.0, seed=0):
    """Adapters of a model, with noise of this size added to all, as NumPy arrays."""
    own = nn.unbox(adapters.init(jax.random.key(0), boxed_params(module), lora))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x + std * rng.normal(size=x.shape), np.float32), own)


def written_out(w, a, b, factor, magnitude=None):
    """By NumPy in float64, with matrices for heads: w [*L, *I, *O], a [*L, *I, r], b [*L, r, *O]."""
    lead = a.ndim + b.ndim - 2 - w.ndim
    stacked, inputs = w.shape[:lead], a.shape[lead:-1]
    found = np.empty(w.shape)
    for at in np.ndindex(*stacked):
        rank, size = a.shape[-1], int(np.prod(inputs))
        v = w[at].reshape(size, -1) + factor * (a[at].reshape(size, rank).astype(float) @ b[at].reshape(rank, -1))
        if magnitude is not None:
            v *= (np.linalg.norm(w[at].reshape(size, -1), axis=0) + magnitude[at].reshape(-1)) / np.linalg.norm(v, axis=0)
        found[at] = v.reshape(w[at].shape)
    return found


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", MODELS)
def test_the_matrices_are_those_of_numpy(name, dora):
    module, params = start(MODELS[name])
    lora = config.Lora(rank=3, alpha=5.0, dora=dora)
    own = new(module, lora, 0.1)
    merged, flat = flatten_dict(adapters.unboxed(adapters.merge(params, own, lora.factor))), flatten_dict(own)
    for path, w in flatten_dict(params).items():
        if (*path, "a") in flat:
            parts = [np.asarray(flat.get((*path, part))) if (*path, part) in flat else None for part in ("a", "b", "magnitude")]
            wanted = written_out(np.asarray(w, float), *parts[:2], 5.0 / 3, parts[2])
            assert np.abs(wanted - w).max() > 1e-3
            np.testing.assert_allclose(merged[path], wanted, atol=2e-6, err_msg=str(path))
        else:
            np.testing.assert_array_equal(merged[path], w)
    kinds = {path[-3] for path in flat}
    assert kinds >= {"query", "key", "value", "out", "up", "down"} and not kinds & {"router", "tokens"}
    assert not any(path[0] in ("head", "embed") for path in flat)


@pytest.mark.parametrize(("name", "dora"), [("experts", False), ("experts", True), ("encoder-decoder, scanned", True)])
def test_the_first_output_is_the_base_to_the_bit(name, dora):
    module, params = start(MODELS[name])
    lora = config.Lora(dora=dora)
    own, example = new(module, lora), example_for(MODELS[name])
    read = jax.jit(lambda params, own: module.apply({"params": adapters.merge(params, own, lora.factor)}, example))
    base = jax.jit(lambda params: module.apply({"params": params}, example))
    np.testing.assert_array_equal(read(params, own), base(params))
    changed = new(module, lora, 0.1)
    opened = base(adapters.unboxed(adapters.merge(params, changed, lora.factor)))
    assert np.abs(opened - base(params)).max() > 1e-2
    np.testing.assert_allclose(read(params, changed), opened, atol=1e-5)


@pytest.mark.parametrize("name", ["wide", "encoder-decoder, scanned"])
def test_beside_the_matrix_it_has_the_gradient_of_the_sum_and_the_frozen_matrix_has_none(name):
    """The work of a step is that of the model's forward and input gradients, two thirds of a full one's, and little more."""
    module, params = start(MODELS[name])
    lora, example = config.Lora(rank=2), example_for(MODELS[name])
    own = new(module, lora, 0.1)

    def loss(params):
        return jnp.sum(jnp.sin(jnp.asarray(module.apply({"params": params}, example, method="hidden"))))

    merged = lambda own: loss(adapters.unboxed(adapters.merge(params, own, lora.factor)))
    beside = lambda own: loss(adapters.merge(params, own, lora.factor))
    compiled = {f: jax.jit(jax.grad(f)).lower(x).compile() for f, x in ((merged, own), (beside, own), (loss, params))}
    got, wanted = compiled[beside](own), compiled[merged](own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), got, wanted)
    assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(wanted))
    work = {f: c.cost_analysis()["flops"] for f, c in compiled.items()}
    if name == "wide":  # XLA counts the body of a scan once, and attention is most of the other's
        assert work[beside] < 0.9 * work[loss] and work[beside] < 0.9 * work[merged]


def test_dropout_is_of_what_the_adapter_reads_in_training_alone():
    """Without an rng it is exactly off; its mean is what there is without; and the matrix reads all of its inputs."""
    layer = Projection((6,), ("embed", "hidden"))
    rng = np.random.default_rng(0)
    x, w, a, b = (rng.normal(size=size).astype(np.float32) for size in ((5, 8), (8, 6), (8, 2), (2, 6)))
    box = lambda rate: {"params": {"kernel": adapters.Adapted(w, a, b, None, 0.5, rate)}}
    whole = x @ w + 0.5 * (x @ a) @ b
    np.testing.assert_allclose(layer.apply(box(0.5), x), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.apply(box(0.5), x), layer.apply(box(0.0), x))
    drawn = jax.jit(jax.vmap(lambda key: layer.apply(box(0.5), x, rngs={"dropout": key})))(
        jax.random.split(jax.random.key(0), 4000)
    )
    apart = np.asarray(drawn) - x @ w
    np.testing.assert_allclose(apart.mean(0), whole - x @ w, atol=5 * apart.std(0).max() / 4000**0.5)
    expected = 0.25 * ((x**2)[:, :, None] * (a @ b)[None] ** 2).sum(1)  # variance of the inverted dropout at a half
    np.testing.assert_allclose(apart.var(0), expected, rtol=0.15)
    with pytest.raises(UserError, match="DoRA merges A"):
        config.Lora(dora=True, dropout=0.1)


def test_alpha_is_divided_by_the_rank_or_its_root():
    assert config.Lora(rank=16, alpha=8.0).factor == 0.5
    assert config.Lora(rank=16, alpha=8.0, scale="alpha/sqrt(rank)").factor == 2.0


def test_a_sum_in_bfloat16_is_rounded_once():
    """A product and a sum in bfloat16 give other numbers."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(32, 24)), jnp.bfloat16)
    a, b = (jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32) for shape in ((32, 4), (4, 24)))
    found = adapters.merged(w, a, b, None, 2.0)
    assert found.dtype == jnp.float32
    exact = np.asarray(w, float) + 2.0 * np.asarray(a, float) @ np.asarray(b, float)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    boxed = {"decoder": {"ffn": {"up": {"kernel": nn.LogicallyPartitioned(w, ("embed", "hidden"))}}}}
    params, own = ({"decoder": {"ffn": {"up": {"kernel": x}}}} for x in (w, {"a": a, "b": b}))
    saved = adapters.added(params, own, boxed, config.Lora(rank=4, alpha=8.0))["decoder"]["ffn"]["up"]["kernel"]
    once = jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16)
    assert saved.dtype == jnp.bfloat16 and np.mean(np.asarray(saved) == np.asarray(once)) > 0.99
    low = w + (jnp.bfloat16(2.0) * (a.astype(jnp.bfloat16) @ b.astype(jnp.bfloat16)))
    assert np.mean(np.asarray(low) == np.asarray(once)) < 0.95


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_base_of_fewer_bits_is_read_and_merged_as_it_was_trained(kind):
    pytest.importorskip("qwix")
    module, params = start(WIDE)
    lora, example = config.Lora(rank=2, base=kind), example_for(WIDE)
    boxed, own = boxed_params(module), new(module, lora, 0.1)
    held = adapters.as_held(params, boxed, kind)
    stored = flatten_dict(held)
    assert {path[-2] for path, x in stored.items() if hasattr(x, "qvalue")} == set(adapters.LINEAR) - {"in"}  # of a mixer
    read = adapters.merge(held, own, lora.factor)
    merged = adapters.added(params, own, boxed, lora)
    np.testing.assert_allclose(apply(module, read, example), apply(module, merged, example), atol=1e-5)
    for path, x in flatten_dict(adapters.unboxed(adapters.merge(held, {}, 1.0))).items():
        w, error = flatten_dict(params)[path], np.abs(np.asarray(x) - flatten_dict(params)[path]).max()
        assert (error > 0) == hasattr(stored[path], "qvalue") and error < (0.02 if kind == "int8" else 0.2) * np.abs(w).max()


def test_nf4_has_the_levels_of_the_paper():
    """Each of 64 inputs that share a scale is the nearest of the 16 quantiles times their largest absolute value."""
    pytest.importorskip("qwix")
    from lm.models import quantized

    levels = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
    levels += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    x = np.random.default_rng(0).normal(size=(128, 5)).astype(np.float32)
    largest = np.abs(x.reshape(2, 64, 5)).max(1)
    scale = np.repeat(np.asarray(jnp.asarray(largest, jnp.bfloat16), np.float32), 64, axis=0)
    found = np.asarray(quantized.dequantized(quantized.matrix(jnp.asarray(x), ("embed", "hidden"), "nf4")))
    np.testing.assert_allclose(np.abs((found / scale)[..., None] - np.array(levels)).min(-1), 0, atol=1e-5)
    nearest = np.array(levels)[np.abs((x / scale)[..., None] - np.array(levels)).argmin(-1)] * scale
    assert np.mean(np.isclose(found, nearest, atol=1e-5)) > 0.99  # all but those between two levels


@pytest.mark.parametrize(
    ("modules", "found"),
    [
        (("query", "value"), {"attention/query", "attention/value", "cross/query", "cross/value"}),
        (("cross/query",), {"cross/query"}),
        (("embed/tokens", "head/out", "up"), {"embed/tokens", "head/out", "ffn/up"}),
    ],
)
def test_modules_are_named(modules, found):
    module, params = start(DECODERS["encoder-decoder, scanned"])
    lora = config.Lora(rank=2, modules=modules)
    own = new(module, lora, 0.1)
    assert {"/".join(path[-4:-2]) for path in flatten_dict(own)} == found
    read = lambda: module.apply({"params": adapters.merge(params, own, lora.factor)}, example_for(module.config))
    assert jax.eval_shape(read).shape[-1] == V  # tables and heads open the box too


def test_a_module_that_is_not_there_is_refused():
    module, _ = start(WIDE)
    with pytest.raises(UserError, match="no matrix 'qeury'.*query"):
        new(module, config.Lora(modules=("qeury",)))
