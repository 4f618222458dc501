"""The trunk: scanned equals unrolled, recomputed equals stored, shared equals separate; every setting does what it says."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm.config import Alibi, Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Rope, Stack, resolve
from lm.errors import UserError
from lm.models.transformer import Transformer, num_groups, stack_groups
from lm.types import Example, TokenStream
from tests.unit.models.small import (
    BLOCK,
    DECODERS,
    D,
    T,
    V,
    apply,
    both,
    close,
    decoder,
    example_for,
    logits,
    random_stream,
    start,
)


def test_shared_stacks_are_two_with_equal_parameters():
    """Their parameters exist once; only the decoder uses those of cross-attention."""
    model, separate = replace(both(Rope()), shared=True), both(Rope())
    _, params = start(model)
    drop = lambda tree: {k: drop(v) if isinstance(v, dict) else v for k, v in tree.items() if not k.startswith("cross")}
    twice = params | {"encoder": drop(params["decoder"])}
    assert jax.tree.structure(twice) == jax.tree.structure(start(separate)[1])
    close(logits(model, params, example_for(model)), logits(separate, twice, example_for(model)))


@pytest.mark.parametrize(
    "change", [dict(encoder=None), dict(decoder=both(Alibi()).decoder), dict(encoder=both(Rope(theta=9.0)).encoder)]
)
def test_shared_stacks_must_be_alike(change):
    with pytest.raises(UserError, match="shared=True needs"):
        replace(both(Rope()), shared=True, **change)


def with_stacks(model: Model, **changes) -> Model:
    return replace(model, **{n: replace(getattr(model, n), **changes) for n in ("encoder", "decoder") if getattr(model, n)})


def value_and_gradients(model: Model, params, example):
    module = Transformer(model)
    loss = lambda p: jnp.mean(jnp.sin(module.apply({"params": p}, example)))
    return jax.jit(jax.value_and_grad(loss))(params)


def unrolled_and_scanned(name):
    """Returns both models and the parameters of each."""
    unrolled, scanned = (with_stacks(DECODERS[name], scan=scan) for scan in (False, True))
    params = start(unrolled)[1]
    stacked = stack_groups(params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, start(scanned)[1])
    return unrolled, scanned, params, stacked


def test_scanned_is_unrolled():
    unrolled, scanned, params, stacked = unrolled_and_scanned("encoder-decoder")
    example = example_for(unrolled)
    close(logits(scanned, stacked, example), logits(unrolled, params, example), 1e-5)


def test_scanned_gradients_are_unrolled_ones():
    unrolled, scanned, params, stacked = unrolled_and_scanned("scanned LG")
    value, grads = value_and_gradients(unrolled, params, example_for(unrolled))
    scanned_value, scanned_grads = value_and_gradients(scanned, stacked, example_for(unrolled))
    close(scanned_value, value, 1e-6)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), scanned_grads, stack_groups(grads))


@pytest.mark.parametrize("remat,scan", [("dots", False), ("full", True)])
def test_recomputing_changes_nothing(remat, scan):
    model = decoder(position=Rope(), scan=scan)
    example = example_for(model)
    _, params = start(model)
    kept = value_and_gradients(model, params, example)
    again = value_and_gradients(with_stacks(model, remat=remat), params, example)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), again, kept)


@pytest.mark.parametrize("scan", [False, True])
def test_what_waits_in_the_host_memory_changes_nothing(scan):
    """The same gradients to the bit, and each named part goes to the host and comes back."""
    here = decoder(position=Rope(), scan=scan, remat="full", keep=("qkv", "attention"))
    there = with_stacks(here, offload=("input", "attention"))
    example, (_, params) = example_for(here), start(here)
    kept, moved = (value_and_gradients(model, params, example) for model in (here, there))
    jax.tree.map(np.testing.assert_array_equal, moved, kept)
    text = str(jax.make_jaxpr(lambda p: value_and_gradients(there, p, example))(params))
    groups = 1 if scan else num_groups(there.decoder)
    assert text.count("MemorySpace.Host") == 2 * groups and text.count("MemorySpace.Device") == 2 * groups


def test_only_what_is_kept_can_wait_in_the_host_memory():
    for settings, cause in (
        (dict(offload=("input",)), "offload=input is for remat=dots or full, .* set offload=()"),
        (dict(remat="full", keep=("qkv",), offload=("qkv", "attention")), "keep=qkv lacks attention: add it to keep"),
        (dict(remat="full", offload=("input", "input")), "offload=input,input names one part twice"),
    ):
        with pytest.raises(UserError, match=cause):
            decoder(position=Rope(), **settings)


def test_a_pattern_repeats_to_the_depth():
    small, large = replace(BLOCK, ffn=Mlp(8)), replace(BLOCK, ffn=Mlp(40))
    stack = Stack(5, {"S": small, "L": large}, "SSL")
    assert stack.letters() == "SSLSS"
    with pytest.raises(ValueError, match="no multiple of the pattern 'SSL'"):
        num_groups(stack)
    shapes = start(decoder(blocks=stack.blocks, pattern="SSL", num_layers=5))[1]["decoder"]
    hidden = {(t, b): shapes[t][b]["ffn"]["up"]["kernel"].shape[1] for t in ("group_0", "group_1") for b in shapes[t]}
    assert hidden == {
        ("group_0", "block_0"): 8,
        ("group_0", "block_1"): 8,
        ("group_0", "block_2"): 40,
        ("group_1", "block_0"): 8,
        ("group_1", "block_1"): 8,
    }


def test_bf16_computes_in_bf16_and_keeps_float32_parameters():
    model = decoder(
        replace(BLOCK, attention=Attention(4, qk_norm=Norm("rms"))), Rope(), num_layers=1, head=Head(tied=False, bias=True)
    )
    half = replace(model, dtype="bfloat16")
    example = example_for(model)
    module, params = start(half)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
    out = apply(module, params, example)
    assert out.dtype == jnp.bfloat16
    whole = logits(model, params, example)
    assert 0 < np.abs(np.asarray(out, np.float32) - whole).max() < 0.05 * np.abs(whole).max()
    grads = jax.eval_shape(lambda: value_and_gradients(half, params, example)[1])
    assert {str(x.dtype) for x in jax.tree.leaves(grads)} == {"float32"}
    stored = start(replace(half, param_dtype="bfloat16"))[1]
    assert {str(x.dtype) for x in jax.tree.leaves(stored)} == {"bfloat16"}


def test_dropout_is_on_exactly_with_an_rng():
    rate = 0.5
    places = {
        "attention": decoder(replace(BLOCK, attention=Attention(4, dropout=rate)), Rope(), num_layers=1),
        "ffn": decoder(replace(BLOCK, ffn=Mlp(24, dropout=rate)), Rope(), num_layers=1),
        "block": decoder(replace(BLOCK, dropout=rate), Rope(), num_layers=1),
        "embed": decoder(position=Rope(), num_layers=1, embed=Embed(dropout=rate)),
        "tokens": decoder(position=Rope(), num_layers=1, embed=Embed(token_dropout=rate)),
    }
    off = decoder(position=Rope(), num_layers=1)
    example, (_, params) = example_for(off), start(off)
    expected = logits(off, params, example)
    everywhere = Block(Attention(4, dropout=rate), Mlp(24, dropout=rate), dropout=rate)
    close(logits(decoder(everywhere, Rope(), num_layers=1, embed=Embed(dropout=rate)), params, example), expected, 1e-6)
    for model in places.values():
        draw = jax.jit(lambda key, m=model: Transformer(m).apply({"params": params}, example, rngs={"dropout": key}))
        a, b = draw(jax.random.key(0)), draw(jax.random.key(1))
        assert np.abs(a - b).max() > 0.01 and np.abs(a - expected).max() > 0.01
        np.testing.assert_array_equal(a, draw(jax.random.key(0)))


def test_token_dropout_leaves_out_whole_tokens_and_scales_none():
    model = decoder(position=Learned(16), num_layers=1, embed=Embed(token_dropout=0.3))
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (40, 16)).astype(np.int32)
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape)
    stream = TokenStream(tokens, positions, np.ones_like(tokens))
    _, params = start(model)
    embedded = lambda **rngs: Transformer(model).apply({"params": params}, stream, "decoder", method="embedded", **rngs)
    read, dropped = embedded(), embedded(rngs={"dropout": jax.random.key(0)})
    places = np.broadcast_to(params["embed"]["decoder_positions"]["embedding"][:16], read.shape)
    kept, lost = (np.abs(dropped - x).max(axis=-1) < 1e-6 for x in (read, places))
    assert (kept ^ lost).all()
    assert abs(lost.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / lost.size)


def test_dropout_differs_from_layer_to_layer_when_scanned():
    """With layers of equal parameters, equal masks would give equal layers."""
    model = decoder(replace(BLOCK, dropout=0.5), Rope(), scan=True, num_layers=2)
    example = example_for(model)
    _, params = start(model)

    twin = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), params["decoder"]["groups"])
    tree = params | {"decoder": params["decoder"] | {"groups": twin}}

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, nn.Dropout):
            context.module.sow("losses", "dropped", out == 0)  # the collection that a scan stacks by layer
        return out

    @jax.jit
    def dropped(key):
        variables, dropout = {"params": tree}, {"dropout": key}
        with nn.intercept_methods(record):
            return Transformer(model).apply(variables, example, rngs=dropout, method="hidden", mutable=["losses"])[1]

    kept = [layer for both in jax.tree.leaves(dropped(jax.random.key(0))) for layer in both]
    assert len(kept) == 4
    assert all((a != b).any() for i, a in enumerate(kept) for b in kept[:i])


def norm(x, p, eps=1e-5):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


PLACES = [(), ("in",), ("out",), ("in", "res"), ("in", "res", "out")]


@pytest.mark.parametrize(
    "norm_at,parallel", [*((p, "no") for p in PLACES), *((p, kind) for p in PLACES[1:4:2] for kind in ("shared", "separate"))]
)
def test_where_norms_sit(norm_at, parallel):
    """y = out(x + res(f(in(x)))) in NumPy, for one layer with the parameters of the model."""
    block = replace(BLOCK, norm_at=norm_at, parallel=parallel)
    model = decoder(block, num_layers=1, final_norm=False, head=Head())
    example = example_for(model)
    module, params = start(model)
    p = jax.tree.map(np.asarray, params["decoder"]["group_0"]["block_0"])
    kernel = lambda *path: (lambda q: q["kernel"])(p[path[0]][path[1]])

    def attention(x):
        q, k, v = (np.einsum("btd,dnh->btnh", x, kernel("attention", n)) for n in ("query", "key", "value"))
        scores = np.einsum("btnh,bsnh->bnts", q, k) / (D // 4) ** 0.5
        scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("bnts,bsnh,nhd->btd", weights, v, kernel("attention", "out"))

    def ffn(x):
        h = x @ kernel("ffn", "up")
        return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) @ kernel("ffn", "down")

    at = lambda place, name, y: norm(y, p[f"{name}_{place}_norm"]) if place in norm_at else y
    residual = lambda name, f, x: at("out", name, x + at("res", name, f(at("in", name, x))))
    table = np.asarray(params["embed"]["tokens"]["embedding"])
    x = table[example.decoder.tokens]
    if parallel == "shared":
        x = residual("block", lambda y: attention(y) + ffn(y), x)
    elif parallel == "separate":
        x = at("out", "block", x + at("res", "block", attention(at("in", "attention", x)) + ffn(at("in", "ffn", x))))
    else:
        x = residual("ffn", ffn, residual("attention", attention, x))
    close(logits(model, params, example), x @ table.T, 1e-4)
    assert (
        len([n for n in p if n.endswith("norm")])
        == {
            "no": 2 * len(norm_at),
            "shared": len(norm_at),
            "separate": len(norm_at) + ("in" in norm_at),
        }[parallel]
    )


def test_logits_at_the_predicted_positions():
    model = Model(V, D, encoder=Stack(1, {"L": BLOCK}, position=Rope()), head=Head(transform="gelu", bias=True))
    s = random_stream()
    where = np.array([[1, 4], [9, 0]], np.int32)
    _, params = start(model)
    whole = logits(model, params, Example(s, None, None, None))
    some = logits(model, params, Example(s, None, None, None, where))
    close(some, np.take_along_axis(whole, where[..., None], 1), 1e-6)


def test_initial_logits_are_near_uniform():
    """The loss of a new model with the default embedding scale is close to log V."""
    model = decoder(position=Rope(), head=Head(), num_layers=1)
    example = example_for(model)
    params = jax.jit(lambda k: nn.unbox(Transformer(model).init(k, example))["params"])(jax.random.key(0))
    probabilities = jax.nn.softmax(logits(model, params, example), axis=-1)
    assert 0.5 / V < probabilities.min() and probabilities.max() < 2 / V


def test_config_of_a_model_is_hashable():
    assert hash(DECODERS["scanned LG"]) == hash(resolve.build(Model, resolve.to_dict(DECODERS["scanned LG"])))
    assert Norm() == Norm()
