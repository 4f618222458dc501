"""Quantised weights: their values against plain NumPy, their size, and that models of every kind read them as arrays."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm.config import Attention, Block, Head, Mlp, Moe, Rope, Sampling
from lm.errors import UserError
from lm.generation.engine import Engine, Request
from lm.losses.log_probs import token_scores
from lm.models import quantized
from lm.models.quantized import Quantized
from lm.models.transformer import head_params
from tests.unit.models.small import BLOCK, DECODERS, V, apply, both, close, decoder, example_for, start

pytest.importorskip("qwix")

WIDE = decoder(Block(Attention(2, 1, bias=True, head_dim=32), Mlp(64, gated=True, bias=True)), Rope(), num_layers=1)
MODELS = {
    "wide": WIDE,
    "wide, tied": replace(WIDE, head=Head(bias=True)),
    "experts": decoder(replace(BLOCK, ffn=Moe(4, 2, expert=Mlp(32))), Rope(), num_layers=1),
    **{name: DECODERS[name] for name in ("mqa, learned", "scanned LG", "encoder-decoder, scanned")},
}


def levels(path, x, kind):
    """By NumPy the width of a level at each element of an array, the level that 0 is, and how many there are; None for what is
    not quantised. int8: the largest absolute value of the inputs to an output / 127.5. int4: the range of up to 32 of them,
    with 0, is 15 widths."""
    names = [key.key for key in path]
    if names[-1] not in ("kernel", "embedding") or "router" in names or "positions" in names[-2]:
        return None
    stacked = int("groups" in names or (x.ndim == 3 and "ffn" in names))  # layers, or experts
    attention_out = names[-2] == "out" and names[0] != "head"  # heads and their size are its inputs
    inputs = (1,) if names[-1] == "embedding" else (stacked, stacked + 1) if attention_out else (stacked,)
    if kind == "int8" or "tokens" in names or names[:2] == ["head", "out"]:
        return np.broadcast_to(np.abs(x).max(inputs, keepdims=True) / 127.5, x.shape), 0, 256
    last, n = inputs[-1], x.shape[inputs[-1]]
    size = {64: 32, 96: 32}.get(n, n if n <= 32 and n != 24 else 8)
    cut = x.reshape(*x.shape[:last], -1, size, *x.shape[last + 1 :])
    least, most = np.minimum(cut.min(last + 1, keepdims=True), 0), np.maximum(cut.max(last + 1, keepdims=True), 0)
    full = lambda y: np.broadcast_to(y, cut.shape).reshape(x.shape)
    step = (most - least) / 15
    return full(step), full(np.round(-8 - least / step)), 16


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_the_nearest_levels(name, kind):
    module, params = start(MODELS[name])
    ours = quantized.weights(module, params, kind)
    opened, found = nn.unbox(ours), []

    def check(path, x, y):
        x, y, of = np.asarray(x), np.asarray(y), levels(path, np.asarray(x), kind)
        if of is None:
            return np.testing.assert_array_equal(x, y)
        step, zero, count = of
        inexact = count * 2.0**-8 if count == 16 else 1e-4  # in steps: a scale of int4 is bfloat16
        assert (np.abs(x - y) <= (0.5 + inexact) * step + 1e-7).all(), path
        level = np.clip(np.round(x / step + zero), -count // 2, count // 2 - 1)
        sure = np.abs(x / step + zero - level) < 0.49
        np.testing.assert_allclose((y / step)[sure], (level - zero)[sure], atol=inexact)
        found.append(count)

    jax.tree_util.tree_map_with_path(check, params, opened)
    assert set(found) == ({256} if kind == "int8" else {256, 16})
    example = example_for(MODELS[name])
    logits, exact = apply(module, ours, example), apply(module, params, example)
    close(logits, apply(module, opened, example))
    error = float(jnp.abs(logits - exact).mean() / jnp.std(exact))
    assert 1e-4 < error < (0.03 if kind == "int8" else 0.5)


def test_their_size():
    module, params = start(WIDE)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    total, d, f, heads = count(params), 16, 64, 64
    kernels = d * heads + 2 * d * 32 + heads * d + 2 * d * f + f * d  # query, key and value, out, up and gate, down
    tables = V * d + d * V
    rest = total - kernels - tables
    assert quantized.size(params) == 4 * total and quantized.size(quantized.weights(module, params, "bfloat16")) == 2 * total
    outputs = heads + 2 * 32 + d + 2 * f + d
    assert quantized.size(quantized.weights(module, params, "int8")) == kernels + tables + 4 * (outputs + 2 * V + rest)
    groups = heads + 2 * 32 + 2 * d + 2 * f + 2 * d  # 16 inputs are one group, 64 are two
    assert quantized.size(quantized.weights(module, params, "int4")) == (kernels + 5 * groups) // 2 + tables + 4 * (
        2 * V + rest
    )
    assert quantized.weights(module, params, None) is params


@pytest.mark.parametrize("model", [WIDE, both(scan=True)], ids=["decoder", "encoder-decoder"])
def test_greedy_texts_are_those_of_the_opened_weights(model):
    """Twice the same, and in any slot."""
    module, params = start(model)
    ours = quantized.weights(module, params, "int4")
    sizes = dict(slots=2, length=16, steps=4, source=8 if model.encoder else 0)
    prompts = [np.arange(1, 5, dtype=np.int32), np.arange(7, 9, dtype=np.int32)]

    def texts(params, prompts):
        engine, out = Engine(module, params, **sizes), {}
        for prompt in prompts:
            given = (prompt[:1], prompt) if model.encoder else (prompt, None)
            engine.submit(Request(given[0], 8, Sampling(temperature=0.0), given[1]))
        for each in engine.run():
            key = each.request.encoder if model.encoder else each.request.prompt
            out.setdefault(tuple(key.tolist()), []).append(each.token)
        return out

    first = texts(ours, prompts)
    assert first == texts(ours, prompts[::-1]) == texts(nn.unbox(ours), prompts) and all(len(t) == 8 for t in first.values())


def test_scores_read_the_head_as_arrays():
    """The chunks of `lm.losses.chunked` cast matrices, so `head_params` opens its own."""
    module, params = start(MODELS["wide, tied"])
    ours = quantized.weights(module, params, "int4")
    assert [x.dtype for x in jax.tree.leaves(head_params(ours))] == [jnp.float32] * 2
    example = replace(example_for(module.config), targets=jnp.ones((2, 10), jnp.int32), weights=jnp.ones((2, 10)))
    sizes = dict(head_params=head_params, vocab_size=V)
    found = token_scores(ours, module.apply, example, **sizes).log_probs
    close(found, jax.nn.log_softmax(apply(module, ours, example_for(module.config)))[..., 1])


def test_integers_need_qwix(monkeypatch):
    module, params = start(WIDE)
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"int4 weights need qwix .*: pip install -e '\.\[quantize\]'"):
        quantized.weights(module, params, "int4")
    assert quantized.weights(module, params, "bfloat16")["embed"]["tokens"]["embedding"].dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="never written"):
        Quantized(None).replace_boxed(None)
