"""Attention and its mask, compared with loops over rows and heads."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Attention, Model, Rope, Stack
from lm.errors import UserError
from lm.models.attention import attend, attend_additively
from lm.models.mask import Mask
from lm.types import Example
from tests.unit.models.small import (
    BLOCK,
    D,
    T,
    V,
    close,
    decoder,
    logits,
    random_stream,
    start,
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


def test_additive_attention_is_that_of_the_equation():
    """arXiv 1409.0473, appendix A.1.2, with two heads to a key, a window and a bias; rows of different documents."""
    rng = np.random.default_rng(1)
    B, S, N, K, H = 2, 6, 4, 2, 3
    q, k, values = (rng.normal(size=(B, S, n, H)).astype(np.float32) for n in (N, K, K))
    v, bias = rng.normal(size=(N, H)).astype(np.float32), rng.normal(size=(N, S, S)).astype(np.float32)
    segments = np.array([[1] * 6, [1, 1, 1, 2, 2, 2]], np.int32)
    mask = Mask(segments, segments, causal=True)
    got = jax.jit(lambda: attend_additively(q, k, values, v, mask=mask, bias_NTS=bias, window=4))()
    index = np.arange(S)
    near = (index[:, None] >= index) & (index[:, None] - index < 4)
    for b in range(B):
        seen = near & (segments[b][:, None] == segments[b])
        for n in range(N):
            scores = np.tanh(q[b, :, None, n] + k[b, None, :, n // 2]) @ v[n] + bias[n]
            weights = np.where(seen, np.exp(scores), 0)
            close(got[b, :, n], weights / weights.sum(-1, keepdims=True) @ values[b, :, n // 2])


def test_additive_attention_is_refused_by_kernels():
    block = replace(BLOCK, attention=Attention(4, score="additive"))
    with pytest.raises(UserError, match="kernel='splash' multiplies queries by keys, and the decoder adds them: take 'plain'"):
        decoder(block, kernel="splash")
    with pytest.raises(UserError, match="score='additive' learns its scale"):
        Attention(4, score="additive", scale=0.5)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_in_blocks_is_attention(window, monkeypatch):
    """Blocks omit keys that none of their queries sees: 12 tokens in blocks of 5, compared with one block."""
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


@pytest.mark.parametrize(("causal", "window"), [(True, 1), (True, 4), (False, 4), (False, 5)])
def test_long_rows_with_windows_are_computed_by_neighbouring_blocks(causal, window, monkeypatch):
    """41 tokens of three documents and padding in blocks of 4, compared with all pairs; in a program nothing is [41, 41]."""
    n = 41
    q, k, v = (jax.random.normal(jax.random.key(i), (2, n, heads, 8)) for i, heads in enumerate((4, 2, 2)))
    segments = jnp.asarray([[1] * 9 + [2] * 20 + [3] * 12, [1] * 30 + [0] * 11])
    real = (segments > 0)[..., None, None]
    mask = Mask(segments, segments, causal=causal)

    def run(q, k, v):
        look = lambda *qkv: attend(*qkv, mask=mask, scale=0.3, window=window, softcap=20.0) * real
        gradient = jax.grad(lambda *qkv: jnp.sum(jnp.sin(look(*qkv))), argnums=(0, 1, 2))
        return look(q, k, v), gradient(q, k, v)

    assert mask.local_block(window) is None
    whole = jax.jit(run)(q, k, v)
    monkeypatch.setattr("lm.models.mask.MIN_BLOCK", 4)
    assert mask.local_block(window) == 4 and mask.local_block(None) is None and mask.local_block(20) is None
    lowered = jax.jit(lambda *qkv: run(*qkv)).lower(q, k, v)
    assert f"{n}x{n}x" not in lowered.as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), lowered.compile()(q, k, v), whole)


def test_windows_reach_as_far_as_their_pattern_says():
    """Through windows alone, token 0 reaches position t if t <= layers * (window - 1); a global layer sees all."""
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
