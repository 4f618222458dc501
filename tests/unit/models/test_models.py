"""The trunk against itself: decoded = whole, scanned = unrolled, recomputed = kept; each setting does what it says."""

import dataclasses
from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config
from lm.config import Alibi, Attention, Block, Buckets, Embed, Head, Learned, Mlp, Model, Norm, Rope, Sinusoidal, Stack, resolve
from lm.generation.decoding import fill, generate, left_padded
from lm.models.attention import attend
from lm.models.layers import ACTIVATIONS
from lm.models.mask import Mask
from lm.models.positions import rotate
from lm.models.transformer import Transformer, num_groups, stack_groups
from lm.types import Example, TokenStream

V, D, T = 23, 16, 10
BLOCK = Block(Attention(4), Mlp(24))


def decoder(block=BLOCK, position=None, **changes) -> Model:
    stack = {f.name: changes.pop(f.name) for f in dataclasses.fields(Stack) if f.name in changes}
    blocks = stack.pop("blocks", {"L": block})
    settings = dict(head=Head(tied=False)) | changes  # tied, a random model says the last word again and again
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
    """(module, parameters): from numpy, for compiling an init takes longer than the test; biases and scales matter."""
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


# --------------------------------------------------------------------------------------------------------- decoding


def decoded(model: Model, params, example: Example, first: int) -> np.ndarray:
    """Logits of a prompt of `first` tokens at once, then token by token through the cache."""
    module, variables, s = Transformer(model), {"params": params}, example.decoder
    length, across = s.tokens.shape[1], ()
    if example.encoder is not None:
        across = (
            jax.jit(lambda e: module.apply(variables, e, method="encode"))(example.encoder),
            example.encoder.segments,
        )

    @jax.jit
    def step(cache, part, *across):
        settings = dict(cache_length=length, method="decode", mutable=["cache"])
        hidden, cache = module.apply(variables | cache, part, *across, **settings)
        return cache, module.apply(variables, hidden, method="logits")

    cut = lambda a, b: jax.tree.map(lambda x: x[:, a:b], s)
    cache, out = step({}, cut(0, first), *across)
    parts = [out]
    for t in range(first, length):
        cache, out = step(cache, cut(t, t + 1))
        parts.append(out)
    return np.concatenate(parts, axis=1)


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
    "encoder-decoder": both(Buckets(8, 8)),
    "encoder-decoder, shared": replace(both(Rope()), shared=True),
    "encoder-decoder, scanned": both(Learned(16), scan=True),
}


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "rope"])
def test_decoding_with_a_cache_is_the_whole_forward_pass(name):
    model = DECODERS[name]
    example = example_for(model)
    if model.encoder:  # a padded source
        segments = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32)
        example = example.replace(encoder=example.encoder.replace(segments=segments))
    _, params = start(model)
    close(decoded(model, params, example, first=3), logits(model, params, example))


def test_shared_stacks_are_two_with_equal_parameters():
    """Once in the parameters; cross-attention is the decoder's alone."""
    model, apart = replace(both(Rope()), shared=True), both(Rope())
    _, params = start(model)
    drop = lambda tree: {k: drop(v) if isinstance(v, dict) else v for k, v in tree.items() if not k.startswith("cross")}
    twice = params | {"encoder": drop(params["decoder"])}
    assert jax.tree.structure(twice) == jax.tree.structure(start(apart)[1])
    close(logits(model, params, example_for(model)), logits(apart, twice, example_for(model)))


@pytest.mark.parametrize(
    "change", [dict(encoder=None), dict(decoder=both(Alibi()).decoder), dict(encoder=both(Rope(theta=9.0)).encoder)]
)
def test_shared_stacks_must_be_alike(change):
    with pytest.raises(config.UserError, match="shared=True needs"):
        replace(both(Rope()), shared=True, **change)


def test_decoding_behind_a_prefix():
    """What the prompt's tokens see of each other stays in the cache."""
    model = DECODERS["rope"]
    example = Example(None, random_stream(prefix=np.arange(T)[None].repeat(2, 0) < 4), None, None)
    _, params = start(model)
    whole = logits(model, params, example)
    close(decoded(model, params, example, first=4), whole)
    assert np.abs(whole - logits(model, params, example_for(model)))[:, :3].max() > 0.01


@pytest.mark.parametrize("name", ["mqa, learned", "alibi", "buckets", "gqa, window"])
def test_left_padded_prompts_go_on_as_each_alone(name):
    model = DECODERS[name]
    module, params = start(model)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, V, n).astype(np.int32) for n in (2, 6, 4)]
    settings = dict(new_tokens=5, temperature=0.0)
    together = np.asarray(generate(module, params, left_padded(prompts), jax.random.key(0), **settings))
    for prompt, row in zip(prompts, together, strict=True):
        tokens = prompt.tolist()
        for _ in range(5):  # without a cache, greedily; padded behind, which a causal model cannot see
            padded = np.array([tokens + [0] * (11 - len(tokens))])
            whole = logits(model, params, Example(None, stream(padded), None, None))
            tokens.append(int(whole[0, len(tokens) - 1].argmax()))
        assert row.tolist() == tokens[len(prompt) :]
    assert len(set(together.ravel().tolist())) > 3


def test_generate_stops_and_avoids_what_is_forbidden():
    module, params = start(DECODERS["rope"])
    prompt = left_padded([np.array([3, 4, 5], np.int32)] * 4)
    draw = lambda **settings: np.asarray(
        generate(module, params, prompt, jax.random.key(1), new_tokens=8, temperature=20.0, **settings)
    )
    free = draw(eos_id=-1, forbidden=jnp.zeros(V, bool))
    assert len({tuple(r) for r in free.tolist()}) == 4  # rows are drawn independently
    eos = int(free[0, 2])
    end = free[0].tolist().index(eos)
    stopped = draw(eos_id=eos, forbidden=jnp.zeros(V, bool))
    assert stopped[0].tolist() == free[0, :end].tolist() + [eos] * (8 - end)
    allowed = draw(eos_id=-1, forbidden=jnp.arange(V) < 20)
    assert allowed.min() >= 20


def test_generate_from_an_encoder():
    model = DECODERS["encoder-decoder"]
    module, params = start(model)
    sources = [np.arange(a, b, dtype=np.int32) for a, b in ((5, 9), (9, 11), (1, 4), (11, 15), (15, 19), (19, 22))]
    begin = lambda n: left_padded([np.array([1], np.int32)] * n)
    make = lambda s: generate(
        module, params, begin(len(s)), jax.random.key(0), new_tokens=4, temperature=0.0, encoder=left_padded(s)
    )
    padded, alone = np.asarray(make(sources)), np.asarray(make(sources[1:2] * 6))
    np.testing.assert_array_equal(padded[1], alone[0])
    assert len({tuple(row) for row in padded.tolist()}) > 1


def test_fill_is_the_likeliest_token():
    model = Model(V, D, encoder=Stack(1, {"L": BLOCK}, position=Learned(16)))
    module, params = start(model)
    example = example_for(model)
    best = fill(module, params, example.encoder)
    np.testing.assert_array_equal(best, logits(model, params, example).argmax(-1))


# ----------------------------------------------------------------------------------------- scanned, recomputed, bf16


def with_stacks(model: Model, **changes) -> Model:
    return replace(model, **{n: replace(getattr(model, n), **changes) for n in ("encoder", "decoder") if getattr(model, n)})


def value_and_gradients(model: Model, params, example):
    module = Transformer(model)
    loss = lambda p: jnp.mean(jnp.sin(module.apply({"params": p}, example)))
    return jax.jit(jax.value_and_grad(loss))(params)


def unrolled_and_scanned(name):
    """Both models, and parameters for each."""
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


def test_windows_reach_as_far_as_their_pattern_says():
    """Token 0 reaches the place t through windows alone if t <= layers * (window - 1); a global layer sees all."""
    local = replace(BLOCK, attention=Attention(4, window=3))
    for pattern, reach in (("L", 4), ("LG", T - 1)):
        model = decoder(blocks={"L": local, "G": BLOCK}, pattern=pattern, position=Rope())
        s = random_stream()
        _, params = start(model)
        changed = s.replace(tokens=np.where(np.arange(T) == 0, s.tokens % (V - 1) + 1, s.tokens))
        a, b = (logits(model, params, Example(None, x, None, None)) for x in (s, changed))
        differ = np.flatnonzero(np.abs(a - b).max((0, 2)))
        assert differ.tolist() == list(range(reach + 1))


def test_an_encoder_window_is_half_to_each_side():
    block = replace(BLOCK, attention=Attention(4, window=4))
    model = Model(V, D, encoder=Stack(1, {"L": block}, position=Rope()), embed_init_std=1.0)
    s = random_stream()
    _, params = start(model)
    changed = s.replace(tokens=np.where(np.arange(T) == 5, s.tokens % (V - 1) + 1, s.tokens))
    a, b = (logits(model, params, Example(x, None, None, None)) for x in (s, changed))
    assert np.flatnonzero(np.abs(a - b).max((0, 2))).tolist() == [3, 4, 5, 6, 7]


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


# ---------------------------------------------------------------------------------------------------- what settings do


def test_dropout_is_on_exactly_with_an_rng():
    rate = 0.5
    places = {
        "attention": decoder(replace(BLOCK, attention=Attention(4, dropout=rate)), Rope(), num_layers=1),
        "ffn": decoder(replace(BLOCK, ffn=Mlp(24, dropout=rate)), Rope(), num_layers=1),
        "block": decoder(replace(BLOCK, dropout=rate), Rope(), num_layers=1),
        "embed": decoder(position=Rope(), num_layers=1, embed=Embed(dropout=rate)),
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
    """y = out(x + res(f(in(x)))), written out for one layer, with attention and feed-forward as the model's own."""
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


def test_attend_with_groups_softcap_and_bias():
    rng = np.random.default_rng(0)
    B, S, N, K, H = 2, 5, 4, 2, 3
    q, k, v = (rng.normal(size=(B, S, n, H)).astype(np.float32) for n in (N, K, K))
    bias = rng.normal(size=(N, S, S)).astype(np.float32)
    segments = np.ones((B, S), np.int32)
    mask = Mask(segments, segments, causal=True)
    got = jax.jit(lambda: attend(q, k, v, mask=mask, bias_NTS=bias, scale=0.7, softcap=1.5))()
    for b in range(B):
        for n in range(N):
            scores = 1.5 * np.tanh(0.7 * q[b, :, n] @ k[b, :, n // 2].T / 1.5) + bias[n]
            scores = np.where(np.tril(np.ones((S, S), bool)), scores, -np.inf)
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            close(got[b, :, n], weights @ v[b, :, n // 2])


@pytest.mark.parametrize("window", [None, 3])
def test_attention_in_blocks_is_attention(window, monkeypatch):
    """Blocks of queries leave out keys that none of them sees: 12 places in blocks of 5, against one product over all."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 12, n, 8)) for i, n in enumerate((4, 2, 2)))
    segments = jnp.repeat(jnp.asarray([[1, 1, 2], [1, 2, 2]]), 4, axis=1)

    def run(block):
        monkeypatch.setattr("lm.models.mask.MIN_BLOCK", block)
        mask = Mask(segments, segments, causal=True)
        look = lambda q, k, v: attend(q, k, v, mask=mask, scale=0.3, window=window)
        gradient = jax.grad(lambda *qkv: jnp.sum(jnp.sin(look(*qkv))), argnums=(0, 1, 2))
        return len(mask.blocks(window)), jax.jit(lambda *qkv: (look(*qkv), gradient(*qkv)))(q, k, v)

    (many, blocked), (one, whole) = run(5), run(256)
    assert (many, one) == (3, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), blocked, whole)


def test_mask_docstring():
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    prefix = np.array([[1, 1, 0, 1, 0, 0]], bool)
    seen = np.asarray(Mask(segments, segments, prefix, causal=True).dense())[0].astype(int)
    assert seen.tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


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


def test_head_softcap_scale_and_bias():
    plain = decoder(num_layers=1, head=Head())
    example = example_for(plain)
    _, params = start(plain)
    base = logits(plain, params, example)
    bias = np.linspace(-1, 1, V, dtype=np.float32)
    model = replace(plain, head=Head(bias=True, scale=0.5, softcap=2.0))
    got = logits(model, params | {"head": {"bias": bias}}, example)
    close(got, 2 * np.tanh((base + bias) * 0.5 / 2), 1e-5)


def test_logits_at_the_places_asked_for():
    model = Model(V, D, encoder=Stack(1, {"L": BLOCK}, position=Rope()), head=Head(transform="gelu", bias=True))
    s = random_stream()
    where = np.array([[1, 4], [9, 0]], np.int32)
    _, params = start(model)
    whole = logits(model, params, Example(s, None, None, None))
    some = logits(model, params, Example(s, None, None, None, where))
    close(some, np.take_along_axis(whole, where[..., None], 1), 1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_depends_on_distance_alone(interleaved):
    rope = Rope(fraction=0.5, interleaved=interleaved)
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    turn = jax.jit(lambda x, at: rotate(x, at, rope))
    product = lambda i, j: float(np.sum(turn(q, np.array([[i]])) * turn(k, np.array([[j]]))))
    assert abs(product(3, 1) - product(103, 101)) < 1e-4
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    np.testing.assert_array_equal(turn(q, np.array([[7]]))[..., 4:], q[..., 4:])


def test_activations():
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    for name, theirs in dict(
        gelu=lambda x: nn.gelu(x, approximate=False), gelu_tanh=nn.gelu, relu=nn.relu, silu=nn.silu
    ).items():
        close(jax.jit(ACTIVATIONS[name])(x), jax.jit(theirs)(x), 1e-6)


def test_sinusoidal_positions():
    from lm.models.positions import sinusoidal

    got = np.asarray(jax.jit(lambda: sinusoidal(jnp.arange(20)[None], 6))())[0]
    for t in range(20):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)
            close(got[t, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], 1e-5)


def test_initial_logits_are_near_uniform():
    """A fresh model with the default embedding scale knows nothing: its loss is close to log V."""
    model = decoder(position=Rope(), head=Head(), num_layers=1)
    example = example_for(model)
    params = jax.jit(lambda k: nn.unbox(Transformer(model).init(k, example))["params"])(jax.random.key(0))
    probabilities = jax.nn.softmax(logits(model, params, example), axis=-1)
    assert 0.5 / V < probabilities.min() and probabilities.max() < 2 / V


def test_config_of_a_model_is_hashable():
    assert hash(DECODERS["scanned LG"]) == hash(resolve.build(Model, resolve.to_dict(DECODERS["scanned LG"])))
    assert Norm() == Norm()
